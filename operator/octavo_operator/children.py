"""The objects of one LLMDeployment: which are there, whose they are, and what must be written or taken away."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from octavo_common.names import DEPLOYMENT_LABEL, KIND
from octavo_operator import drift
from octavo_operator.events import Event
from octavo_operator.kube import Kube, KubeError
from octavo_operator.observation import Problem

Manifest = dict[str, Any]

KINDS: Final = ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy")
OPTIONAL_KINDS: Final = {
    "PodMonitor": ("monitoring.coreos.com/v1", "spec.observability.podMonitor"),
    "InferencePool": ("inference.networking.k8s.io/v1", "spec.networking.inferencePool"),
}
"""Kinds that not every cluster has: their API, and the field that asks for one."""
MISSING_API: Final = "MissingAPI"


@dataclass(slots=True)
class Children:
    """What the API server holds under the name of an LLMDeployment, ours or not. `missing`: kinds that it lacks."""

    live: dict[str, Manifest | None] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)

    @classmethod
    async def find(cls, kube: Kube, namespace: str, name: str, wanted: set[str]) -> "Children":
        """Look for every kind; for a stranger's only where the kind is `wanted`."""
        found = cls()
        for kind in (*KINDS, *OPTIONAL_KINDS):
            look = kube.find if kind in wanted else kube.find_ours
            try:
                found.live[kind] = await look(kind, namespace, name)
            except KubeError as error:
                # A role that does not name what the cluster lacks is as good as a cluster that lacks it.
                if kind not in OPTIONAL_KINDS or error.status not in {403, 404}:
                    raise
                found.missing.add(kind)
        return found

    def own(self, owner: Manifest, kind: str) -> Manifest | None:
        """The child of this kind if `owner` controls it."""
        return own(owner, self.live.get(kind))

    def conflict(self, owner: Manifest, wanted: list[Manifest]) -> Problem | None:
        """What has one of our names and is not ours is left alone, and nothing else is written either."""
        for kind in (each["kind"] for each in wanted):
            child = self.live.get(kind)
            if child is None or own(owner, child) is not None:
                continue
            if not drift.is_orphan(child, {DEPLOYMENT_LABEL: child["metadata"]["name"]}):
                return _conflict(kind, child)
            # An orphan is of an earlier installation: adopted by the apply.
        return None

    def unwanted(self, owner: Manifest, wanted: list[Manifest]) -> list[Manifest]:
        """What `owner` controls and does not ask for any more."""
        kinds = {each["kind"] for each in wanted}
        found = [self.own(owner, kind) for kind in self.live if kind not in kinds]
        return [each for each in found if each is not None and "deletionTimestamp" not in each["metadata"]]

    def lacking(self, wanted: list[Manifest]) -> Problem | None:
        """What is asked for and cannot be, because the cluster does not know its kind."""
        for kind in (each["kind"] for each in wanted):
            if kind in self.missing:
                api, asked_by = OPTIONAL_KINDS[kind]
                text = f"{asked_by} asks for a {kind}, and this cluster has no {api}, or the operator may not list them"
                return Problem(
                    MISSING_API, f"{text}: install its CRD, extend the operator's role, or leave the field out"
                )
        return None


async def remove(kube: Kube, unwanted: list[Manifest]) -> list[Event]:
    """Delete what is not wanted any more."""
    actions = []
    for child in unwanted:
        await kube.delete(child)
        what = f"{child['kind']} {child['metadata']['name']}"
        actions.append(Event("Normal", "Deleted", f"deleted {what}: the spec does not ask for it any more"))
    return actions


def own(owner: Manifest, child: Manifest | None) -> Manifest | None:
    """`child` if `owner` controls it."""
    return child if child is not None and drift.controller_uid(child) == owner["metadata"]["uid"] else None


def _conflict(kind: str, child: Mapping[str, Any]) -> Problem:
    name = child["metadata"]["name"]
    references = child["metadata"].get("ownerReferences", [])
    owner: Manifest = next((each for each in references if each.get("controller")), {})
    if owner.get("kind") == KIND and owner.get("name") == name:
        text = f"the {kind} of an earlier LLMDeployment {name} is still being deleted"
        return Problem("PredecessorTerminating", text)
    whose = f"controlled by {owner['kind']} {owner['name']}" if owner else "not made by Octavo"
    return Problem(
        "NameConflict",
        f"there is a {kind} {name}, {whose}; it is left alone: delete it or rename this LLMDeployment",
    )
