"""The API server as a pass sees it: read from what watches keep at hand, written to itself.

A pass may read what is a moment old. That is made good in three ways: what is to be created is looked for live first;
an update is pinned to the object that was read, by its uid; and the answer to a write is at hand at once, so that the
next pass does not do again what this one did.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from octavo_common.names import FIELD_MANAGER, KIND
from octavo_operator.dispatch import Dispatcher
from octavo_operator.informer import Informer
from octavo_operator.kube import OURS, Kube, KubeError
from octavo_operator.store import Store

Manifest = dict[str, Any]

WATCHED: Final = (
    *("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "PersistentVolumeClaim", "Job", "Pod"),
)
OPTIONAL: Final = ("PodMonitor", "InferencePool")


class CachedKube(Kube):
    """A `Kube` that reads from stores: of LLMDeployments, which kopf watches, and of what `watches` watch."""

    def __init__(
        self,
        kube: Kube,
        stores: Mapping[str, Store],
        watches: Sequence[Informer],
        heard: Callable[[str, Manifest], None],
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(kube.api, may_write)
        self._heard = heard
        self._stores = stores
        self._watches = {(each.kind, each.namespace): each for each in watches}

    def is_synced(self, namespace: str) -> bool:
        """Whether every kind was listed there: before that nothing can be said to be missing."""
        return all(each.synced.is_set() for each in self._watches.values() if each.namespace in {None, namespace})

    async def synced(self) -> None:
        """Wait until it is so everywhere."""
        for each in self._watches.values():
            await each.synced.wait()

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        store = self._stores.get(kind)
        return await super().get(kind, namespace, name) if store is None else store.get(namespace, name)

    async def get_live(self, kind: str, namespace: str, name: str) -> Manifest | None:
        found = await super().get_live(kind, namespace, name)
        if found is not None:
            self._keep(kind, found)
        else:
            self._forget(kind, namespace, name)
        return found

    async def find(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """Live where it is not at hand: a stranger's object, say, or one that has lost its label."""
        self._expect(kind, namespace)
        found = self._stores[kind].get(namespace, name)
        return found if found is not None else await super().find(kind, namespace, name)

    async def find_ours(self, kind: str, namespace: str, name: str) -> Manifest | None:
        self._expect(kind, namespace)
        return self._stores[kind].get(namespace, name)

    async def select(self, kind: str, namespace: str, selector: str = "") -> list[Manifest]:
        return self._stores[kind].select(namespace, selector)

    async def delete(self, live: Manifest) -> None:
        await super().delete(live)
        self._stores[live["kind"]].mark_deleted(live)

    async def patch_status(self, live: Manifest, patch: Manifest) -> Manifest:
        try:
            return self._keep(KIND, await super().patch_status(live, patch))
        except KubeError as error:
            if error.status == 404:
                self._stores[KIND].remove(live)
            raise

    async def annotate(self, live: Mapping[str, Any], annotations: Mapping[str, str | None]) -> Manifest:
        return self._keep(live["kind"], await super().annotate(live, annotations))

    async def _apply(
        self, manifest: Manifest, *, force: bool, manager: str = FIELD_MANAGER, dry_run: bool = False
    ) -> Manifest:
        answer = await super()._apply(manifest, force=force, manager=manager, dry_run=dry_run)
        return answer if dry_run else self._keep(manifest["kind"], answer)

    def _keep(self, kind: str, body: Manifest) -> Manifest:
        """The answer to a write may hold what others changed meanwhile: that no watch will tell as news again."""
        if kind in self._stores and self._stores[kind].put(body):
            self._heard(kind, body)
        return body

    def _forget(self, kind: str, namespace: str, name: str) -> None:
        store = self._stores.get(kind)
        known = store.get(namespace, name) if store is not None else None
        if store is not None and known is not None:
            store.remove(known)

    def _expect(self, kind: str, namespace: str) -> None:
        """Raises a KubeError, 404, where the cluster has no such kind: as the API server would say."""
        watch = self._watches.get((kind, namespace)) or self._watches.get((kind, None))
        if watch is not None and watch.is_missing:
            raise KubeError(404, f"the cluster has no {kind}")


def informers(
    kube: Kube, namespaces: Sequence[str], stores: Mapping[str, Store], dispatch: Dispatcher
) -> list[Informer]:
    """One for each kind of child and each of `namespaces`, or for all namespaces where there is none."""
    return [
        Informer(
            *(kube, kind, namespace, stores[kind], dispatch.child),
            selector=OURS,
            optional=kind in OPTIONAL,
            appeared=dispatch.everything,
        )
        for kind in (*WATCHED, *OPTIONAL)
        for namespace in (namespaces or (None,))
    ]
