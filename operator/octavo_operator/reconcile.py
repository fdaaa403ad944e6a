"""One LLMDeployment, from what is wanted to what is there: fetch → render → apply → observe → status.

Level-based: a pass looks at the state and never at what happened, so it can be cut off after any write and be done
again. Nothing is written where nothing changed.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from octavo_common.names import DEPLOYMENT_LABEL, KIND
from octavo_operator import drift
from octavo_operator.accounting import Ledger, epoch
from octavo_operator.api import LLMDeployment, ManifestError, parse
from octavo_operator.api.status import Resolved
from octavo_operator.applying import Applying
from octavo_operator.autoscale.cluster import write_costs
from octavo_operator.autoscale.decisions import Decisions
from octavo_operator.autoscale.pods import stale_costs
from octavo_operator.cache import CacheState, ModelCache, claims_in_use
from octavo_operator.children import MISSING_API, Children, remove
from octavo_operator.contests import Contests
from octavo_operator.events import Event, events_of
from octavo_operator.kube import Kube, KubeError
from octavo_operator.observation import (
    CONTESTED,
    DOWNLOAD_FAILED,
    TERMINATING,
    Observation,
    Problem,
    Scaling,
    Verdict,
)
from octavo_operator.render import RenderSettings, cache_name, lacks_commit, render_own, wants_prefetch
from octavo_operator.resolved import pinned, resolve
from octavo_operator.revision import ask_no_more, find_revision
from octavo_operator.status import build_status, stamped_status, status_patch
from octavo_operator.workqueue import Retry

Manifest = dict[str, Any]

_FOR_PEOPLE: Final = frozenset({"InvalidSpec", TERMINATING, MISSING_API, DOWNLOAD_FAILED})
"""Problems that trying again does not cure: an event tells of a change, else the next look at everything does."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Which LLMDeployment."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class _GoneError(Exception):
    """There is no such LLMDeployment any more."""


class Reconciler:
    """Brings one LLMDeployment after the other to its wanted state.

    `now` gives the time as RFC 3339, for conditions that change.
    """

    def __init__(
        self,
        kube: Kube,
        settings: RenderSettings,
        now: Callable[[], str],
        ledger: Ledger | None = None,
        decisions: Decisions | None = None,
    ) -> None:
        self._kube = kube
        self._settings = settings
        self._now = now
        self._ledger = ledger if ledger is not None else Ledger()
        self._decisions = decisions if decisions is not None else Decisions()
        self._contests = Contests()

    async def __call__(self, key: Key) -> bool:
        """One pass. Whether there still is such an LLMDeployment.

        Raises:
            Retry: something is in the way that no event will tell the end of, or the API server would not have it now.
        """
        try:
            return await self._pass(key)
        except _GoneError:
            self._forget(key)
            return False
        except KubeError as error:
            raise Retry(str(error), after=error.retry_after) from error

    async def _pass(self, key: Key) -> bool:
        live = await self._kube.get(KIND, key.namespace, key.name)
        if live is None:
            self._forget(key)
            return False
        wanted, deployment, resolved, problem = self._wanted(live)
        kinds = {str(each["kind"]) for each in wanted}
        children = await Children.find(self._kube, key.namespace, key.name, kinds)
        scaling: Scaling | None = None
        if deployment is None or resolved is None:
            self._decisions.forget((key.namespace, key.name))
        else:
            deployment, scaling = self._decisions.settle(live, deployment, children.live.get("Deployment"))
            wanted = wanted if scaling is None else self._rendered(deployment, resolved)
        problem = _terminating(live) or problem or children.conflict(live, wanted)
        cache, actions = CacheState(), list[Event]()
        if problem is None and deployment is not None and resolved is not None:
            cache = await self._cache(live, deployment)
            if lacks_commit(deployment) and resolved.revision is None and deployment.desired_replicas:
                cache = await self._revision(live, deployment, resolved)
                if cache.revision is not None:
                    resolved = resolved.model_copy(update={"revision": cache.revision})
                    wanted = self._rendered(deployment, resolved)
            now = [each for each in wanted if not (each["kind"] == "Deployment" and _waits(deployment, cache))]
            by = "spec.suspend is true" if deployment.spec.suspend else scaling.by if scaling else "spec.replicas"
            applying = Applying(self._kube, self._contests, epoch(self._now()), partial(self._expect_alive, live), by)
            problem = await applying.bring_about(now, children, actions)
            problem = problem or cache.problem or children.lacking(wanted)
            if scaling is not None and any(each.reason == "Scaled" for each in actions):
                scaling = self._decisions.scaled((key.namespace, key.name), scaling, self._now())
            actions += await remove(self._kube, children.unwanted(live, wanted))
            if not (lacks_commit(deployment) and deployment.desired_replicas):
                actions += await ask_no_more(self._kube, live)
        pods = await self._kube.select("Pod", key.namespace, f"{DEPLOYMENT_LABEL}={key.name}")
        if problem is None and deployment is not None:
            in_use = claims_in_use(pods, children.own(live, "Deployment"))
            actions += await ModelCache(self._kube, self._settings, key.namespace).give_up(
                live, cache_name(deployment), in_use
            )
            if scaling is None or not scaling.is_internal:
                await write_costs(self._kube, stale_costs(pods))
        observed = Observation(
            deployment=children.own(live, "Deployment"),
            service=children.own(live, "Service"),
            pods=pods,
            problem=problem,
            cached=cache.cached,
            resolved=resolved,
            revision=cache.revision,
            accounting=self._ledger.look(live, pods, self._now()),
            scaling=scaling,
            gateway_url=self._settings.gateway_url,
        )
        later = await self._report(live, deployment, observed, [*cache.actions, *actions])
        if problem is not None and problem.reason == CONTESTED:
            wait = self._contests.wait(wanted, epoch(self._now()))
            raise Retry(f"{problem.reason}: {problem.message}", after=wait, is_gentle=True)
        if problem is not None and problem.reason not in _FOR_PEOPLE:
            raise Retry(f"{problem.reason}: {problem.message}")
        if later:
            raise Retry("somebody else writes its status, too", after=later, is_gentle=True)
        return True

    def _forget(self, key: Key) -> None:
        self._ledger.close(key.namespace, key.name)
        self._decisions.forget((key.namespace, key.name))
        self._contests.forget(key.namespace, key.name)

    async def _cache(self, live: Manifest, deployment: LLMDeployment) -> CacheState:
        caches = ModelCache(self._kube, self._settings, deployment.namespace)
        try:
            return await caches.bring_about(deployment, partial(self._expect_alive, live))
        except KubeError as error:
            return _refused(error, "the volume for the model, or its Job", awaited=wants_prefetch(deployment))

    async def _revision(self, live: Manifest, deployment: LLMDeployment, resolved: Resolved) -> CacheState:
        try:
            return await find_revision(
                self._kube, self._settings, deployment, resolved.for_spec, partial(self._expect_alive, live)
            )
        except KubeError as error:
            return _refused(error, "the Job that asks which commit the model is", awaited=True)

    def _wanted(self, live: Manifest) -> tuple[list[Manifest], LLMDeployment | None, Resolved | None, Problem | None]:
        try:
            # Its status is ours: what a later version has written there is no fault of the spec.
            deployment = parse({name: value for name, value in live.items() if name != "status"})
            resolved = resolve(live, deployment, self._settings)
            return self._rendered(deployment, resolved), deployment, resolved, None
        except ManifestError as error:
            return [], None, None, Problem("InvalidSpec", str(error).replace("\n", "; "))

    def _rendered(self, deployment: LLMDeployment, resolved: Resolved) -> list[Manifest]:
        return [drift.stamped(each) for each in render_own(*pinned(deployment, self._settings, resolved))]

    async def _expect_alive(self, live: Manifest) -> None:
        """Before anything is created: children of what is gone would be collected and made again, for ever."""
        metadata = live["metadata"]
        again = await self._kube.get_live(KIND, metadata["namespace"], metadata["name"])
        if again is None:
            raise _GoneError
        if again["metadata"]["uid"] != metadata["uid"] or "deletionTimestamp" in again["metadata"]:
            raise Retry("it was deleted meanwhile")

    async def _report(
        self, live: Manifest, deployment: LLMDeployment | None, observed: Observation, actions: list[Event]
    ) -> float:
        """Write what changed of the status; the seconds until it may be, where somebody else does so, too."""
        before, at = live.get("status") or {}, epoch(self._now())
        status = build_status(live, deployment, observed, self._now())
        patch, told = status_patch(before, status), stamped_status(live, status)
        may_write = patch is None or self._contests.may_write(told, at)
        if patch is not None and may_write:
            await self._kube.patch_status(live, patch)
            self._contests.wrote(told, at)
        for event in [*actions, *(events_of(before, status) if may_write else [])]:
            await self._kube.record(live, event.type, event.reason, event.message)
        return 0.0 if may_write else self._contests.wait([told], at)


def _refused(error: KubeError, what: str, *, awaited: bool) -> CacheState:
    """Without what the API server would not have. `awaited`: pods need it. Raises an error that is no refusal."""
    if not error.is_refusal:
        raise error
    text = f"the API server refused {what}: {error.message}"
    return CacheState(
        cached=Verdict("False", "ApplyRefused", text) if awaited else None, problem=Problem("ApplyRefused", text)
    )


def _waits(deployment: LLMDeployment, cache: CacheState) -> bool:
    """Whether the Deployment stays as it is, there or not, until its model is: new pods would hold accelerators for
    nothing, and a roll-out would end pods that serve. To have no pods, nothing need be waited for.
    """
    return cache.is_awaited and deployment.desired_replicas > 0


def _terminating(live: Manifest) -> Problem | None:
    """Nothing is applied for what is being deleted: its children go with it, by their owner references."""
    if "deletionTimestamp" not in live["metadata"]:
        return None
    return Problem(TERMINATING, "this LLMDeployment is being deleted, and all that was made for it")
