"""The volume that deployments of one model share, and the Job that fills it: brought about, watched, given up.

Whichever deployment's turn it is, the same objects are wanted: they are made of all that share them.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from octavo_common.names import CACHE_LABEL, FIELD_MANAGER, KIND, MANAGED_BY_LABEL
from octavo_operator import drift
from octavo_operator.api import LLMDeployment, ManifestError, parse
from octavo_operator.downloads import told_revision
from octavo_operator.events import Event, events_of_apply
from octavo_operator.jobs import has_condition, is_terminating, pods_of, why_it_failed
from octavo_operator.kube import Kube, KubeError
from octavo_operator.observation import CHILD_TERMINATING, DOWNLOAD_FAILED, Problem, Verdict
from octavo_operator.pods import unscheduled, why_it_fails
from octavo_operator.render import (
    REVISION_ANNOTATION,
    RenderSettings,
    cache_name,
    claim,
    prefetch_job,
    prefetch_policy,
    pull_source,
    wants_prefetch,
)

Manifest = dict[str, Any]

CLAIM: Final = "PersistentVolumeClaim"

_MOST_READ: Final = 4096
_READ: Final[dict[tuple[str, int], LLMDeployment | None]] = {}


@dataclass(slots=True)
class CacheState:
    """What became of the cache. `cached`: the condition ModelCached, None where no Job sees to it. `revision`: what the
    model on the volume is, where that is known.
    """

    cached: Verdict | None = None
    revision: str | None = None
    problem: Problem | None = None
    actions: list[Event] = field(default_factory=list)

    @property
    def is_awaited(self) -> bool:
        """Whether pods that were started now would find no model."""
        return self.cached is not None and self.cached.status != "True"


@dataclass(frozen=True, slots=True)
class Sharers:
    """The LLMDeployments of a namespace by what they cache; `unreadable`: uids of those that are not valid."""

    by_claim: dict[str, list[LLMDeployment]]
    unreadable: frozenset[str]

    @classmethod
    async def find(cls, kube: Kube, namespace: str) -> "Sharers":
        """Of all that are not being deleted."""
        by_claim: dict[str, list[LLMDeployment]] = {}
        unreadable = set()
        for body in await kube.select(KIND, namespace):
            if "deletionTimestamp" in body["metadata"] or not (body["spec"].get("storage") or {}).get("cache"):
                continue
            deployment = _read(body)
            if deployment is None:
                unreadable.add(str(body["metadata"]["uid"]))
                continue
            if (name := cache_name(deployment)) is not None:
                by_claim.setdefault(name, []).append(deployment)
        return cls(by_claim, frozenset(unreadable))

    def claim(self, name: str, live: Manifest | None) -> Manifest:
        """What the claim of this name has to be. Owners whose wishes cannot be read stay owners."""
        wanted = claim(self.by_claim[name], live)
        owners = (live or {}).get("metadata", {}).get("ownerReferences", [])
        kept = [each for each in owners if each["uid"] in self.unreadable]
        if kept:
            wanted["metadata"]["ownerReferences"] = [*wanted["metadata"].get("ownerReferences", []), *kept]
        return drift.stamped(wanted)


class ModelCache:
    """The caches of one namespace as one LLMDeployment needs them. `expect_alive` raises where it is gone meanwhile."""

    def __init__(self, kube: Kube, settings: RenderSettings, namespace: str) -> None:
        self._kube = kube
        self._settings = settings
        self._namespace = namespace

    async def bring_about(self, deployment: LLMDeployment, expect_alive: Callable[[], Awaitable[None]]) -> CacheState:
        """Make or correct volume, policy and Job of `deployment`, and tell how far the download is."""
        name, state = cache_name(deployment), CacheState()
        if name is None:
            return state
        sharers = await Sharers.find(self._kube, self._namespace)
        if name not in sharers.by_claim:
            await expect_alive()  # which raises: the list is newer than what we go by
            return state
        together = sharers.by_claim[name]
        volume = await self._volume(name, sharers, state, expect_alive)
        if volume is not None:
            policy = prefetch_policy(together, volume)
            await self._policy(name, policy, volume, state)
            if wants_prefetch(deployment):
                job = prefetch_job(together, self._settings, volume)
                await self._job(deployment, job, volume, state)
                await self._remember(name, sharers, volume, state)
            elif not any(wants_prefetch(each) for each in together):
                await self._no_job(volume, state)
        elif wants_prefetch(deployment):
            state.cached = Verdict("False", "NoVolume", state.problem.message if state.problem is not None else "")
        return state

    async def give_up(self, owner: Manifest, keep: str | None, in_use: set[str]) -> list[Event]:
        """Leave volumes that `owner` has a share in and needs no more, or delete them where nobody else does."""
        actions: list[Event] = []
        sharers: Sharers | None = None
        for volume in await self._kube.select(CLAIM, self._namespace, CACHE_LABEL):
            metadata = volume["metadata"]
            name, owners = metadata["name"], {each["uid"] for each in metadata.get("ownerReferences", [])}
            if owner["metadata"]["uid"] not in owners or name == keep or name in in_use:
                continue
            if "deletionTimestamp" in metadata or not _ours(volume, name):
                continue
            sharers = sharers or await Sharers.find(self._kube, self._namespace)
            if name in sharers.by_claim:
                await self._kube.update_by_apply(sharers.claim(name, volume), metadata["uid"])
            elif not owners & sharers.unreadable:
                await self._kube.delete(volume)
                actions.append(Event("Normal", "Deleted", f"deleted {CLAIM} {name}: no deployment needs it any more"))
        return actions

    async def _volume(
        self, name: str, sharers: Sharers, state: CacheState, expect_alive: Callable[[], Awaitable[None]]
    ) -> Manifest | None:
        live = await self._kube.find(CLAIM, self._namespace, name)
        if live is None:
            await expect_alive()
            made = await self._kube.create_by_apply(sharers.claim(name, None))
            state.actions.append(Event("Normal", "Created", f"created {CLAIM} {name}"))
            return made
        if not _ours(live, name):
            state.problem = Problem("NameConflict", f"there is a {CLAIM} {name}, not made by Octavo; it is left alone")
            return None
        if "deletionTimestamp" in live["metadata"]:
            text = f"the {CLAIM} {name} is being deleted; it is made again when it is gone"
            state.problem = Problem(CHILD_TERMINATING, text)
            return None
        wanted = sharers.claim(name, live)
        if drift.in_sync(wanted, live):
            return live
        try:
            applied = await self._kube.update_by_apply(wanted, live["metadata"]["uid"])
            state.actions += events_of_apply(live, applied, "")
            return applied
        except KubeError as error:
            if not error.is_refusal:
                raise
            # As where its class cannot grow. What is there is as good as before: the Job goes on.
            state.problem = Problem("ApplyRefused", f"the API server refused {CLAIM} {name}: {error.message}")
            return live

    async def _policy(self, name: str, wanted: Manifest | None, volume: Manifest, state: CacheState) -> None:
        look = self._kube.find_ours if wanted is None else self._kube.find
        live = await look("NetworkPolicy", self._namespace, name)
        if live is not None and drift.controller_uid(live) != volume["metadata"]["uid"]:
            return  # of an earlier volume, or a stranger's: neither is ours to change
        if wanted is None:
            if live is not None:
                await self._kube.delete(live)
                state.actions.append(Event("Normal", "Deleted", f"deleted NetworkPolicy {name}: nobody wants it"))
            return
        wanted = drift.stamped(wanted)
        if live is None:
            await self._kube.create_by_apply(wanted)
            state.actions.append(Event("Normal", "Created", f"created NetworkPolicy {name}"))
        elif not drift.in_sync(wanted, live):
            applied = await self._kube.update_by_apply(wanted, live["metadata"]["uid"])
            state.actions += events_of_apply(live, applied, "")

    async def _job(
        self, deployment: LLMDeployment, wanted: Manifest | None, volume: Manifest, state: CacheState
    ) -> None:
        """A Job's pods cannot be changed: one that is not done is replaced. What it has downloaded stays."""
        name, source = volume["metadata"]["name"], pull_source(deployment.spec.model.source)
        look = self._kube.find_ours if wanted is None else self._kube.find
        live = await look("Job", self._namespace, name)
        state.cached = Verdict("False", "Downloading", f"Job {name} downloads {source}")
        if live is not None and drift.controller_uid(live) != volume["metadata"]["uid"]:
            state.problem = Problem("PredecessorTerminating", f"the Job {name} of an earlier volume is still there")
        elif live is not None and has_condition(live, "Complete"):
            state.revision = await self._revision(volume, live)
            told = f", revision {state.revision}" if state.revision is not None else ""
            state.cached = Verdict("True", "Cached", f"{source} is on the volume {name}{told}")
        elif wanted is None:
            state.cached = Verdict("False", "Suspended", f"nothing is downloaded while spec.suspend is true: {source}")
            if live is not None and not is_terminating(live):
                await self._kube.delete(live)
                state.actions.append(Event("Normal", "Deleted", f"deleted Job {name}: spec.suspend is true"))
        elif live is None:
            await self._kube.create_by_apply(drift.stamped(wanted))
            state.actions.append(Event("Normal", "Created", f"created Job {name}"))
        elif is_terminating(live):
            state.problem = Problem(CHILD_TERMINATING, f"the Job {name} is being replaced")
        elif drift.digest(live) != drift.digest(drift.stamped(wanted)):
            await self._kube.delete(live)
            state.actions.append(Event("Normal", "Deleted", f"deleted Job {name}: another spec of it is wanted"))
            state.problem = Problem(CHILD_TERMINATING, f"the Job {name} is being replaced")
        else:
            await self._explain(live, state)

    async def _no_job(self, volume: Manifest, state: CacheState) -> None:
        """One that is not done could keep the volume from other nodes; one that is says that the model is there."""
        live = await self._kube.find_ours("Job", self._namespace, volume["metadata"]["name"])
        if live is None or drift.controller_uid(live) != volume["metadata"]["uid"]:
            return
        if not has_condition(live, "Complete") and not is_terminating(live):
            await self._kube.delete(live)
            text = f"deleted Job {live['metadata']['name']}: pods download the model themselves"
            state.actions.append(Event("Normal", "Deleted", text))

    async def _remember(self, name: str, sharers: Sharers, volume: Manifest, state: CacheState) -> None:
        """On the volume, what is on it: those that share it later find no pod that tells it."""
        annotations = volume["metadata"].get("annotations", {})
        if state.revision is None or state.problem is not None or REVISION_ANNOTATION in annotations:
            return
        told = volume["metadata"] | {"annotations": annotations | {REVISION_ANNOTATION: state.revision}}
        await self._kube.update_by_apply(sharers.claim(name, volume | {"metadata": told}), volume["metadata"]["uid"])

    async def _revision(self, volume: Manifest, job: Manifest) -> str | None:
        """Which revision is on the volume: what it says itself, else the pod that downloaded it, which may go."""
        metadata = volume["metadata"]
        known: str | None = metadata.get("annotations", {}).get(REVISION_ANNOTATION)
        if known is not None:
            return known
        pods = pods_of(job, await self._kube.select("Pod", self._namespace, f"{CACHE_LABEL}={metadata['name']}"))
        return next((told for pod in pods if (told := told_revision(pod)) is not None), None)

    async def _explain(self, job: Manifest, state: CacheState) -> None:
        """In the words of the Job's pods."""
        name = job["metadata"]["name"]
        pods = pods_of(job, await self._kube.select("Pod", self._namespace, f"{CACHE_LABEL}={name}"))
        words = why_it_fails(pods)
        if has_condition(job, "Failed"):
            text = f"the download has failed: {why_it_failed(job, pods)}; once that is mended, delete Job {name}"
            state.cached = Verdict("False", DOWNLOAD_FAILED, text)
            state.problem = state.problem or Problem(DOWNLOAD_FAILED, text)
            return
        words = words or "; ".join(unscheduled(pods).messages)
        if words and state.cached is not None:
            state.cached = Verdict("False", "Downloading", f"{state.cached.message}: {words}")


def _read(body: Manifest) -> LLMDeployment | None:
    """Parsed, None if it is not valid. Of a generation once: whoever shares a cache reads all that are beside it."""
    metadata = body["metadata"]
    key = (str(metadata["uid"]), int(metadata.get("generation") or 0))
    if key not in _READ:
        while len(_READ) >= _MOST_READ:
            del _READ[next(iter(_READ))]
        try:
            _READ[key] = parse(body)
        except ManifestError:
            _READ[key] = None
    return _READ[key]


def claims_of(pod_spec: Manifest) -> set[str]:
    """The claims that a pod mounts."""
    claims = (each.get("persistentVolumeClaim") for each in pod_spec.get("volumes") or ())
    return {str(each["claimName"]) for each in claims if each is not None}


def claims_in_use(pods: Sequence[Manifest], deployment: Manifest | None) -> set[str]:
    """Of pods that are there, and of those that the Deployment would make."""
    specs = [pod["spec"] for pod in pods]
    specs += [deployment["spec"]["template"]["spec"]] if deployment is not None else []
    return {name for spec in specs for name in claims_of(spec)}


def _ours(live: Manifest, name: str) -> bool:
    labels = live["metadata"].get("labels", {})
    return (labels.get(CACHE_LABEL), labels.get(MANAGED_BY_LABEL)) == (name, FIELD_MANAGER)
