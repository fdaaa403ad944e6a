"""Pods that are ending, and those whose node does not answer: what they still hold, and what can be done. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Endings:
    """Pods that were told to end: `draining` of them in their time, `overdue` that nobody has heard of since."""

    draining: int
    overdue: tuple[Manifest, ...]

    def __str__(self) -> str:
        """For people; empty where there is none."""
        told = [f"{self.draining} pods end their requests" if self.draining > 1 else "1 pod ends its requests"]
        told = told if self.draining else []
        for pod in self.overdue[:1]:
            name, node = pod["metadata"]["name"], pod["spec"].get("nodeName")
            others = len(self.overdue) - 1
            more = f" (and {others} more)" if others else ""
            told.append(
                f"pod {name}{more} should have ended at {pod['metadata']['deletionTimestamp']}, and node {node} does "
                "not say so: it holds its accelerator until the node is back, or is deleted"
            )
        return "; ".join(told)


def endings(pods: Sequence[Manifest], now: str) -> Endings:
    """Those of `pods` that end. What was never on a node is gone at once. `now` is RFC 3339, of UTC, in seconds."""
    told = [
        pod
        for pod in pods
        if pod["metadata"].get("deletionTimestamp")
        and pod["spec"].get("nodeName")
        and (pod.get("status") or {}).get("phase") not in {"Failed", "Succeeded"}
    ]
    # A deletionTimestamp is when the grace period is over, not when it began; times of this form sort as text.
    overdue = tuple(pod for pod in told if str(pod["metadata"]["deletionTimestamp"]) < now)
    return Endings(len(told) - len(overdue), overdue)


def is_silent(pod: Manifest) -> bool:
    """Whether its node does not answer: not ready by what Kubernetes says, its containers as they were heard of last.

    Only the kubelet writes ContainersReady; Ready is also taken away by the controller of nodes.
    """
    said = {each["type"]: each["status"] for each in (pod.get("status") or {}).get("conditions") or ()}
    gates = pod["spec"].get("readinessGates")
    return said.get("Ready") == "False" and said.get("ContainersReady") == "True" and not gates
