"""Pods as members of a fleet, gateways among pods, and which pods are to go first. Pure; time is passed in."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from octavo_common.names import LABEL_PREFIX
from octavo_operator.accounting import epoch
from octavo_operator.autoscale.members import Member
from octavo_operator.autoscale.observation import Phase
from octavo_operator.pods import has_ended, unscheduled

Manifest = Mapping[str, Any]
Annotations = dict[str, str | None]
"""What a merge patch makes of annotations: None takes one away."""

COST: Final = "controller.kubernetes.io/pod-deletion-cost"
OUR_COST: Final = f"{LABEL_PREFIX}deletion-cost"
"""Beside the other and equal to it where we wrote that: what somebody else wrote is left alone."""
SCHEME: Final = "prometheus.io/scheme"
"""By which a gateway's pod says that its metrics are behind TLS."""


def members(pods: Sequence[Manifest], now: float) -> list[Member]:
    """Those of a fleet's pods that may serve, or did. `now`: seconds since the epoch."""
    return [_member(pod, now) for pod in pods if not has_ended(pod)]


def gateway_urls(pods: Sequence[Manifest]) -> dict[str, str]:
    """Where those gateways that are ready, and stay, tell their metrics, by uid."""
    ports = ("metrics", "admin", "http")
    found = (
        (pod["metadata"]["uid"], _url(pod, ports, "https" if _annotations(pod).get(SCHEME) == "https" else "http"))
        for pod in pods
        if _phase(pod) == "ready"
    )
    return {uid: url for uid, url in found if url is not None}


def costs_to_write(pods: Sequence[Manifest], victims: Sequence[str]) -> list[tuple[Manifest, Annotations]]:
    """Which annotations make `victims` (names, the first to go in front) go first, and no other pod.

    A cost of somebody else stays: a pod that a person wants to keep is kept.
    """
    costs = {name: str(place - len(victims)) for place, name in enumerate(victims)}
    changes = []
    for pod in _living(pods):
        annotations, cost = _annotations(pod), costs.get(pod["metadata"]["name"])
        ours, there = annotations.get(OUR_COST), annotations.get(COST)
        if cost is None:
            changes += [(pod, _cleared(pod))] if ours is not None else []
        elif there != cost and there in (None, ours):
            changes.append((pod, {COST: cost, OUR_COST: cost}))
    return changes


def stale_costs(pods: Sequence[Manifest]) -> list[tuple[Manifest, Annotations]]:
    """What takes every cost of ours back."""
    return costs_to_write(pods, ())


def is_settled(pods: Sequence[Manifest], replicas: int) -> bool:
    """Whether nobody has to be chosen to go any more: only then may costs be taken back."""
    return sum(1 for _ in _living(pods)) <= replicas


def _cleared(pod: Manifest) -> Annotations:
    annotations = _annotations(pod)
    ours = [OUR_COST, COST] if annotations.get(COST) == annotations.get(OUR_COST) else [OUR_COST]
    return dict.fromkeys(ours)


def _member(pod: Manifest, now: float) -> Member:
    metadata, phase = pod["metadata"], _phase(pod)
    made = _time(metadata.get("creationTimestamp"), now)
    ready = _condition(pod, "Ready")
    since = _time(ready.get("lastTransitionTime"), made)
    # One that was ready and is no more counts from then, as if it were starting.
    age = now - (max(made, since) if phase == "pending" else made)
    return Member(
        key=str(metadata["uid"]),
        name=str(metadata["name"]),
        phase=phase,
        age=max(0.0, age),
        url=_url(pod, ("admin", "http")),
        startup=max(0.0, since - made) if phase == "ready" and ready.get("lastTransitionTime") else None,
        unschedulable=bool(unscheduled([pod]).count),
    )


def _phase(pod: Manifest) -> Phase:
    if pod["metadata"].get("deletionTimestamp") or has_ended(pod):
        return "terminating"
    return "ready" if _condition(pod, "Ready").get("status") == "True" else "pending"


def _url(pod: Manifest, names: Iterable[str], scheme: str = "http") -> str | None:
    """Of its metrics, at the first of these ports that a container has; None without an address or such a port."""
    address = str((pod.get("status") or {}).get("podIP") or "")
    containers = pod["spec"].get("containers") or ()
    ports = {each.get("name"): each["containerPort"] for one in containers for each in one.get("ports") or ()}
    port = next((ports[name] for name in names if name in ports), None)
    if not address or port is None:
        return None
    return f"{scheme}://{f'[{address}]' if ':' in address else address}:{port}/metrics"


def _living(pods: Sequence[Manifest]) -> Iterator[Manifest]:
    return (pod for pod in pods if _phase(pod) != "terminating")


def _annotations(pod: Manifest) -> Mapping[str, str]:
    found: Mapping[str, str] = pod["metadata"].get("annotations") or {}
    return found


def _condition(pod: Manifest, kind: str) -> Manifest:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] == kind), {})


def _time(text: Any, otherwise: float) -> float:
    try:
        return epoch(str(text)) if text else otherwise
    except ValueError:
        return otherwise
