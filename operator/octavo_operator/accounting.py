"""How long pods had a node, and its accelerators: what a deployment costs. Pure but for its memory; time is passed in.

A pod counts from when it was bound to its node until it is seen to have ended or to be gone. What is remembered between
two looks is which pods there were; after a restart the status says up to when was counted, and a pod that is still
there says since when it is. So only the end of a pod that went while no operator looked is not known: it then counts up
to the last look that the status tells of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from octavo_operator.api.quantities import quantity
from octavo_operator.pods import has_ended

Manifest = Mapping[str, Any]
Used = tuple[float, float]
"""Seconds of pods, and of their accelerators."""

_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(slots=True)
class Account:
    """Of one LLMDeployment. `as_of`, seconds since the epoch: up to when `total` counts. `units`: of its pods then."""

    total: Used
    as_of: float
    units: dict[str, float] = field(default_factory=dict)
    counted: Used = (0.0, 0.0)

    @classmethod
    def opened(cls, live: Manifest, now: float) -> "Account":
        """What the status of an LLMDeployment tells of it."""
        told = (live.get("status") or {}).get("accounting") or {}
        total = (float(told.get("replicaSeconds", 0)), float(told.get("acceleratorSeconds", 0)))
        as_of = _seconds(told.get("asOf")) or _seconds(live["metadata"].get("creationTimestamp")) or now
        return cls(total, min(as_of, now))

    def look(self, pods: Sequence[Manifest], now: float) -> None:
        """Count up to `now`, with these pods there at the end."""
        now = max(now, self.as_of)
        used = [0.0, 0.0]
        seen: dict[str, float] = {}
        for pod in pods:
            uid, since, end = pod["metadata"]["uid"], _bound(pod), _ended(pod)
            if since is None:
                continue
            span = max(0.0, min(now, end or now) - max(self.as_of, since))
            used[0] += span
            used[1] += span * accelerators(pod)
            if end is None:
                seen[uid] = accelerators(pod)
        there = {pod["metadata"]["uid"] for pod in pods}
        for uid, units in self.units.items():
            if uid not in there:
                used[0] += now - self.as_of
                used[1] += (now - self.as_of) * units
        self.total = (self.total[0] + used[0], self.total[1] + used[1])
        self.counted = (self.counted[0] + used[0], self.counted[1] + used[1])
        self.as_of, self.units = now, seen

    def counted_until(self, now: float) -> Used:
        """Since it was opened, with what the pods of the last look have used meanwhile."""
        span = max(0.0, now - self.as_of)
        return self.counted[0] + span * len(self.units), self.counted[1] + span * sum(self.units.values())

    def document(self) -> dict[str, Any]:
        """For the status."""
        as_of = datetime.fromtimestamp(self.as_of, UTC).strftime(_FORMAT)
        return {"replicaSeconds": int(self.total[0]), "acceleratorSeconds": int(self.total[1]), "asOf": as_of}


class Ledger:
    """The accounts of all LLMDeployments that this operator looks after."""

    def __init__(self) -> None:
        self._accounts: dict[tuple[str, str], tuple[str, Account]] = {}

    def look(self, live: Manifest, pods: Sequence[Manifest], now: str) -> dict[str, Any]:
        """What an LLMDeployment, whose pods these are, has used up to `now`, for its status."""
        metadata, at = live["metadata"], epoch(now)
        key, uid = (metadata["namespace"], metadata["name"]), metadata["uid"]
        if key not in self._accounts or self._accounts[key][0] != uid:
            self._accounts[key] = (uid, Account.opened(live, at))
        account = self._accounts[key][1]
        account.look(pods, at)
        return account.document()

    def close(self, namespace: str, name: str) -> None:
        """Forget one that is gone."""
        self._accounts.pop((namespace, name), None)

    def used(self, now: float) -> list[tuple[str, str, Used]]:
        """(namespace, name, seconds) since this operator looks after it."""
        return [(*key, account.counted_until(now)) for key, (_, account) in sorted(self._accounts.items())]


def accelerators(pod: Manifest) -> float:
    """Units of extended resources, which alone have a slash in their names, that its containers hold together."""
    limits = (each.get("resources", {}).get("limits") or {} for each in pod["spec"].get("containers") or ())
    return sum(float(quantity(amount)) for each in limits for name, amount in each.items() if "/" in name)


def epoch(now: str) -> float:
    """Seconds since the epoch of an RFC 3339 time as Kubernetes writes it. Raises ValueError if it is none."""
    return datetime.strptime(now, _FORMAT).replace(tzinfo=UTC).timestamp()


def _bound(pod: Manifest) -> float | None:
    """Since when it has a node; None while it has none."""
    status = pod.get("status") or {}
    verdict: Manifest = next((each for each in status.get("conditions") or () if each["type"] == "PodScheduled"), {})
    if verdict.get("status") != "True" and not pod["spec"].get("nodeName"):
        return None
    times = (verdict.get("lastTransitionTime"), status.get("startTime"), pod["metadata"].get("creationTimestamp"))
    return next((told for each in times if (told := _seconds(each)) is not None), None)


def _ended(pod: Manifest) -> float | None:
    """When the last of its containers ended; None while one may run."""
    if not has_ended(pod):
        return None
    status = pod["status"]
    ends = [
        each.get("state", {}).get("terminated", {}).get("finishedAt") for each in status.get("containerStatuses", ())
    ]
    told = [seconds for each in ends if (seconds := _seconds(each)) is not None]
    # An evicted pod may tell nothing of its containers: it then was not long on its node.
    return max(told, default=_seconds(status.get("startTime")) or 0.0)


def _seconds(text: Any) -> float | None:
    try:
        return epoch(str(text)) if text else None
    except ValueError:
        return None
