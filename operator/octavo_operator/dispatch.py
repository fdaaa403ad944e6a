"""Which LLMDeployments something heard is about. Nothing is decided here by what happened: only whom to look at."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from octavo_common.names import CACHE_LABEL, DEPLOYMENT_LABEL, KIND, REVISION_LABEL
from octavo_operator.api import ManifestError, parse
from octavo_operator.reconcile import Key
from octavo_operator.render import cache_name
from octavo_operator.workqueue import WorkQueue

Manifest = dict[str, Any]


class Dispatcher:
    """Puts keys into `queue`, and keeps in `known` which LLMDeployments there are."""

    def __init__(self, queue: WorkQueue[Key], known: dict[Key, Any]) -> None:
        self._queue = queue
        self._known = known

    def deployment(self, body: Manifest, gone: bool) -> None:
        """An LLMDeployment is new, changed or gone."""
        metadata = body["metadata"]
        key, version = Key(metadata["namespace"], metadata["name"]), _version(body)
        changed = self._known.get(key) != version
        if gone:
            self._known.pop(key, None)
            self._add_sharers(key.namespace, version[2], urgent=False)
        else:
            self._known[key] = version
        self._queue.add(key, urgent=changed)

    def child(self, body: Manifest, gone: bool) -> None:
        """Something that was made for one of them, or for a cache that some share, is."""
        metadata = body["metadata"]
        labels, namespace = metadata.get("labels") or {}, metadata["namespace"]
        name = labels.get(DEPLOYMENT_LABEL) or labels.get(REVISION_LABEL)
        if name is not None:
            self._queue.add(Key(namespace, name), urgent=gone)
        else:
            self._add_sharers(namespace, labels.get(CACHE_LABEL), urgent=gone)

    def written(self, kind: str, body: Manifest) -> None:
        """What we have written ourselves, as the API server has it now."""
        (self.deployment if kind == KIND else self.child)(body, False)

    def everything(self) -> None:
        """Something changed that may concern any of them."""
        for key in self._known:
            self._queue.add(key)

    def _add_sharers(self, namespace: str, cache: str | None, *, urgent: bool) -> None:
        """What becomes of a shared cache is seen to by those that share it."""
        for key, (_, _, name) in self._known.items():
            if cache is not None and (key.namespace, name) == (namespace, cache):
                self._queue.add(key, urgent=urgent)


def _version(body: Mapping[str, Any]) -> tuple[str, int | None, str | None]:
    """What tells one state of an LLMDeployment from another, and the cache that it has a share in."""
    metadata, cache = body["metadata"], None
    if (body.get("spec") or {}).get("storage"):
        with suppress(ManifestError):
            cache = cache_name(parse(body))
    return metadata["uid"], metadata.get("generation"), cache
