"""What applying a manifest would change in a cluster: the object itself, and what the operator would make of it.

Asked of the API server by server-side applies that it does not carry out, so that its defaults and its refusals are
part of the answer. Whoever may not change Deployments himself is shown what of them would differ as far as he may read
them; whoever may not read them is told so.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from octavo_common.names import DEPLOYMENT_LABEL, FIELD_MANAGER, KIND
from octavo_operator import drift
from octavo_operator.api import LLMDeployment, parse
from octavo_operator.children import KINDS, OPTIONAL_KINDS
from octavo_operator.diff_text import unified_diff, within
from octavo_operator.jobs import has_condition
from octavo_operator.kube import Kube, KubeError
from octavo_operator.render import (
    RenderSettings,
    cache_name,
    claim,
    lacks_commit,
    prefetch_job,
    prefetch_policy,
    render_own,
    revision_job,
    revision_policy,
)
from octavo_operator.resolved import pinned, resolve, spec_digest

Manifest = dict[str, Any]

_UNSEEN: Final = frozenset({403, 404})
_GIVEN_METADATA: Final = ("name", "namespace", "labels", "annotations", "finalizers", "ownerReferences")


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one object, as text. action: Create, Update or Delete."""

    kind: str
    name: str
    action: str
    text: str


@dataclass(slots=True)
class Comparison:
    """All that would change; `notes`: what could not be seen, a sentence each."""

    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, name: str, before: Manifest | None, after: Manifest | None) -> None:
        """The difference between two states of an object, if there is one."""
        text = unified_diff(f"{kind}/{name}", before, after)
        if text:
            action = "Create" if before is None else "Delete" if after is None else "Update"
            self.differences.append(Difference(kind, name, action, text))


class Comparer:
    """Compares with one namespace. `settings`: the operator's, as far as they are known here; `fallback`: what is taken
    for them where the cluster does not tell them either.
    """

    def __init__(self, kube: Kube, settings: RenderSettings, fallback: RenderSettings, namespace: str) -> None:
        self._kube = kube
        self._settings = settings
        self._fallback = fallback
        self._namespace = namespace
        self._found = Comparison()

    async def compare(self, deployment: LLMDeployment, manager: str) -> Comparison:
        """What a server-side apply of `deployment` by `manager` would change.

        Raises:
            KubeError: the API server would refuse it, or does not answer.
        """
        live = await self._kube.get(KIND, self._namespace, deployment.name)
        after = await self._kube.preview(_given(deployment, self._namespace), manager)
        self._found.add(KIND, deployment.name, live, after)
        planned = parse(_without_status(after) | {"metadata": _identity(after, live)})
        before = live or {"metadata": {}}
        if planned.spec.autoscaling is not None:
            running = await self._seen("Deployment", planned.name)
            planned = planned.scaled(there=None if running is None else running["spec"].get("replicas", 1))
        settings = await self._known_settings(before, planned)
        resolved = resolve(before, planned, settings)
        asked = lacks_commit(planned) and resolved.revision is None and planned.desired_replicas > 0
        held = ((before.get("status") or {}).get("resolved") or {}).get("revision")
        if asked and _same_source(live, planned) and held:
            # Most likely the answer again; another would show every pod as replaced, which is not known yet.
            resolved = resolved.model_copy(update={"revision": held})
            self._found.notes.append(f"which commit the branch is will be asked anew; now it is {held}")
        elif asked:
            self._found.notes.append("which commit the branch is will be asked by a Job; until then there are no pods")
        await self._children(before, render_own(*pinned(planned, settings, resolved)))
        if asked:
            await self._asking(planned, settings)
        await self._cache(live, planned, settings)
        return self._found

    async def _known_settings(self, live: Manifest, planned: LLMDeployment) -> RenderSettings:
        """What the cluster tells of the operator there: its images of now, and its namespace."""
        resolved = (live.get("status") or {}).get("resolved") or {}
        # An image that the spec named is not the operator's own.
        named = ((live.get("spec") or {}).get("server") or {}).get("image")
        running = await self._seen("Deployment", planned.name)
        policy = None if self._settings.operator_namespace else await self._seen("NetworkPolicy", planned.name)
        return RenderSettings(
            self._settings.server_image or (None if named else resolved.get("image")) or self._fallback.server_image,
            self._settings.pull_image or resolved.get("pullImage") or self._fallback.pull_image,
            self._settings.operator_namespace or _operator_namespace(policy) or self._fallback.operator_namespace,
            _gateway_key_secret(running),
        )

    async def _children(self, owner: Manifest, wanted: list[Manifest]) -> None:
        uid = owner["metadata"].get("uid")
        for manifest in wanted:
            await self._child(manifest, uid)
        name = owner["metadata"].get("name")
        for kind in (*KINDS, *OPTIONAL_KINDS):
            if uid is None or any(each["kind"] == kind for each in wanted):
                continue
            child = await self._seen(kind, str(name))
            if child is not None and drift.controller_uid(child) == uid:
                self._found.add(kind, str(name), child, None)

    async def _child(self, manifest: Manifest, uid: str | None) -> None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        manifest = drift.stamped(manifest | {"metadata": manifest["metadata"] | {"namespace": self._namespace}})
        try:
            child = await self._kube.get(kind, self._namespace, name)
        except KubeError as error:
            if error.status not in _UNSEEN:
                raise
            self._found.notes.append(f"{kind} {name} is not compared: {error.message}")
            return
        if child is None and kind == "Deployment" and not self._found.differences and uid is not None:
            self._found.notes.append(
                f"Deployment {name} is not there yet: the condition Progressing says what it awaits"
            )
            return
        if child is not None and drift.controller_uid(child) != uid and not _is_ours(child):
            self._found.notes.append(f"there is a {kind} {name} that is not this LLMDeployment's: it is left alone")
            return
        if child is not None and drift.in_sync(manifest, child):
            return
        try:
            self._found.add(kind, name, child, await self._kube.preview(manifest, FIELD_MANAGER))
        except KubeError as error:
            if error.status == 404:
                self._found.notes.append(f"{kind} {name} cannot be made: this cluster has no {manifest['apiVersion']}")
            elif error.status != 403:
                raise
            else:
                # Not his to change: what would differ is told without the API server's defaults.
                self._found.add(kind, name, None if child is None else within(manifest, child), manifest)

    async def _asking(self, planned: LLMDeployment, settings: RenderSettings) -> None:
        job = revision_job(planned, settings, spec_digest(planned))
        live = await self._seen("Job", job["metadata"]["name"])
        for manifest in (revision_policy(planned), job):
            if manifest is not None and live is None:
                self._found.add(manifest["kind"], manifest["metadata"]["name"], None, manifest)

    async def _cache(self, live: Manifest | None, planned: LLMDeployment, settings: RenderSettings) -> None:
        """The volume of this model, shared as it is; and one that nobody would need any more."""
        name, old = cache_name(planned), None if live is None else cache_name(parse(_without_status(live)))
        if name is None and old is None:
            return
        others = [each for each in await self._sharers() if each.name != planned.name]
        try:
            if name is not None:
                together = [planned, *(each for each in others if cache_name(each) == name)]
                await self._shared(name, together, settings)
            if live is not None and old not in {None, name, *map(cache_name, others)}:
                await self._given_up(str(old), live["metadata"]["uid"])
        except KubeError as error:
            if error.status != 403:
                raise
            self._found.notes.append(f"the volume for the model is not compared: {error.message}")

    async def _shared(self, name: str, together: list[LLMDeployment], settings: RenderSettings) -> None:
        volume = await self._kube.get("PersistentVolumeClaim", self._namespace, name)
        policy, job = [await self._kube.get(kind, self._namespace, name) for kind in ("NetworkPolicy", "Job")]
        if job is not None and not self._settings.pull_image:
            settings = replace(settings, pull_image=job["spec"]["template"]["spec"]["containers"][0]["image"])
        owner = volume or {"metadata": {}}
        self._applied(claim(together, volume), volume)
        self._applied(prefetch_policy(together, owner), policy)
        if job is None or not has_condition(job, "Complete"):
            self._applied(prefetch_job(together, settings, owner), job)

    async def _given_up(self, name: str, uid: str) -> None:
        volume = await self._kube.get("PersistentVolumeClaim", self._namespace, name)
        if volume is not None and {each["uid"] for each in volume["metadata"].get("ownerReferences", [])} == {uid}:
            self._found.add("PersistentVolumeClaim", name, volume, None)

    def _applied(self, manifest: Manifest | None, live: Manifest | None) -> None:
        """What is the same for all that share it is compared as it is: nothing of it is the user's."""
        if manifest is None:
            return
        stamped = drift.stamped(manifest)
        if live is None or not drift.in_sync(stamped, live):
            before = None if live is None else within(stamped, live)
            self._found.add(manifest["kind"], manifest["metadata"]["name"], before, stamped)

    async def _sharers(self) -> Iterator[LLMDeployment]:
        bodies = await self._kube.select(KIND, self._namespace)
        return (parse(_without_status(body)) for body in bodies if "deletionTimestamp" not in body["metadata"])

    async def _seen(self, kind: str, name: str) -> Manifest | None:
        """An object; None also where it may not be read, or there is no such kind."""
        try:
            return await self._kube.get(kind, self._namespace, name)
        except KubeError as error:
            if error.status in _UNSEEN:
                return None
            raise


def _given(deployment: LLMDeployment, namespace: str) -> Manifest:
    """What the manifest says, and nothing that only defaults say."""
    said: Manifest = deployment.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"status"})
    metadata = {name: said["metadata"][name] for name in _GIVEN_METADATA if name in said["metadata"]}
    return said | {"metadata": metadata | {"namespace": namespace}}


def _is_ours(child: Manifest) -> bool:
    """Whether an earlier installation left it, which the operator adopts."""
    return drift.is_orphan(child, {DEPLOYMENT_LABEL: child["metadata"]["name"]})


def _identity(after: Manifest, live: Manifest | None) -> Manifest:
    """Its metadata; the uid that a dry run makes up is none."""
    metadata = {name: value for name, value in after["metadata"].items() if name != "uid"}
    return metadata | ({"uid": live["metadata"]["uid"]} if live is not None else {})


def _without_status(body: Manifest) -> Manifest:
    return {name: value for name, value in body.items() if name != "status"}


def _same_source(live: Manifest | None, planned: LLMDeployment) -> bool:
    return live is not None and parse(_without_status(live)).spec.model.source == planned.spec.model.source


def _gateway_key_secret(running: Manifest | None) -> str | None:
    """The operator's, as the pods of a Deployment that it made mount it."""
    volumes = ((running or {"spec": {"template": {"spec": {}}}})["spec"]["template"]["spec"]).get("volumes") or []
    found = (each["secret"]["secretName"] for each in volumes if each["name"] == "gateway-key")
    return next(found, None)


def _operator_namespace(policy: Manifest | None) -> str | None:
    """The operator's, as a policy that it made lets it in."""
    rules = ((policy or {}).get("spec") or {}).get("ingress") or [{}]
    peers = rules[0].get("from") or [{}]
    labels = (peers[0].get("namespaceSelector") or {}).get("matchLabels") or {}
    name: str | None = labels.get("kubernetes.io/metadata.name")
    return name
