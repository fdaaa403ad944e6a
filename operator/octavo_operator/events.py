"""Which decisions and changes of status are worth an Event, for `kubectl describe` and whoever is on call. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from octavo_operator.status import condition

_BLIND: Final = frozenset({"ScrapesLost", "PendingTooLong"})
"""Reasons of ScalingActive for which the load is not followed although it should be."""


@dataclass(frozen=True, slots=True)
class Event:
    """What `kubectl describe` shows."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def events_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Event]:
    """What became degraded or unschedulable, for another reason than before, whether readiness changed, what is there
    now, and what was decided for all pods of the spec.
    """
    events = [Event("Warning", each["reason"], each["message"]) for each in _worse(before, after)]
    was, now = condition(before, "Ready").get("status"), condition(after, "Ready")
    if now["status"] == "True" and was != "True":
        events.append(Event("Normal", "Ready", now["message"]))
    elif was == "True" and now["status"] != "True":
        events.append(Event("Normal", "NotReady", now["message"]))
    cached, had = condition(after, "ModelCached"), condition(before, "ModelCached")
    if cached.get("reason") == "Cached" and had.get("reason") != "Cached":
        events.append(Event("Normal", "ModelCached", cached["message"]))
    revision = after.get("modelRevision")
    if revision is not None and before.get("modelRevision") != revision:
        events.append(Event("Normal", "Resolved", f"the model is of revision {revision}"))
    scaling, was_scaling = after.get("autoscaling") or {}, before.get("autoscaling") or {}
    recommended = scaling.get("recommendedReplicas")
    if recommended is not None and recommended != was_scaling.get("recommendedReplicas"):
        events.append(Event("Normal", "Recommended", f"recommends {recommended} replicas: {scaling.get('reason', '')}"))
    return events


def events_of_apply(before: Mapping[str, Any], after: Mapping[str, Any], scaled_by: str) -> list[Event]:
    """What applying a child changed, as it was and as it is; nothing where it is the same. `scaled_by`: which field
    decides how many replicas there are.
    """
    kind, name = after["kind"], after["metadata"]["name"]
    if before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]:
        return []
    if kind != "Deployment":
        return [Event("Normal", "Updated", f"applied {kind} {name}")]
    events = []
    replicas = before["spec"].get("replicas", 1), after["spec"].get("replicas", 1)
    if replicas[0] != replicas[1]:
        events.append(Event("Normal", "Scaled", f"scaled from {replicas[0]} to {replicas[1]} replicas: {scaled_by}"))
    if before["spec"]["template"] != after["spec"]["template"]:
        text = "pods are replaced" if replicas[1] else "pods will be as the spec is now"
        events.append(Event("Normal", "RollingOut", f"{text}: {_difference(before, after)}"))
    return events or [Event("Normal", "Updated", f"applied {kind} {name}")]


def _worse(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = []
    for kind, bad in (("Degraded", "True"), ("Scheduled", "False")):
        old, new = condition(before, kind), condition(after, kind)
        if new.get("status") == bad and (old.get("status"), old.get("reason")) != (bad, new["reason"]):
            found.append(new)
    blind, was = condition(after, "ScalingActive"), condition(before, "ScalingActive")
    if blind.get("reason") in _BLIND and was.get("reason") != blind["reason"]:
        found.append(blind)
    return found


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What of a pod is another now, by the fields that people know."""
    old, new = before["spec"]["template"], after["spec"]["template"]
    changed = [] if old["metadata"] == new["metadata"] else ["labels or annotations"]
    containers = [{each["name"]: each for each in template["spec"]["containers"]} for template in (old, new)]
    for name, container in containers[1].items():
        was = containers[0].get(name, {})
        fields = [field for field in sorted({*was, *container}) if was.get(field) != container.get(field)]
        changed += [f"{name}'s {field}" for field in fields if field != "image"]
        if was.get("image") != container.get("image"):
            changed.append(f"image {was.get('image')} becomes {container['image']}")
    rest = sorted({*old["spec"], *new["spec"]} - {"containers"})
    changed += [field for field in rest if old["spec"].get(field) != new["spec"].get(field)]
    return ", ".join(changed) or "defaults"
