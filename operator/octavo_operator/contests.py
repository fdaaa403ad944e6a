"""Objects that somebody else changes or deletes whenever we have put them right. Pure; the time is passed in.

Two who want different things of one object, such as two operators, or a policy that rewrites it, would write as fast as
the API server lets them, for ever. Some corrections in a row are free; after those each waits twice as long as the one
before, and the fight is told of until nothing had to be put right for a while.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from octavo_operator import drift
from octavo_operator.observation import CONTESTED, Problem

Manifest = Mapping[str, Any]
_Name = tuple[str, str, str]

FREE: Final = 4
FIRST_SECONDS: Final = 5.0
MOST_SECONDS: Final = 300.0
QUIET_SECONDS: Final = 60.0
"""After which it is over, or after twice the last wait if that is longer."""


@dataclass(slots=True)
class _Record:
    """Writes of one and the same content in a row: what, how many, when the last was in seconds since the epoch."""

    digest: str | None
    times: int
    last: float

    @property
    def pause(self) -> float:
        """Seconds from the last write to the next."""
        return 0.0 if self.times <= FREE else min(MOST_SECONDS, FIRST_SECONDS * 2.0 ** min(self.times - FREE - 1, 16))

    @property
    def over(self) -> float:
        """When nothing of it counts any more."""
        return self.last + max(QUIET_SECONDS, 2.0 * self.pause)


class Contests:
    """What was written how often. Objects are known by their stamped manifests; `now`: seconds since the epoch."""

    def __init__(self) -> None:
        self._records: dict[_Name, _Record] = {}
        self._settled: dict[_Name, tuple[str | None, str]] = {}

    def settle(self, wanted: Manifest, made: Manifest) -> None:
        """Applying it made no difference: what is there is what the cluster's admission makes of it."""
        self._settled[_name(wanted)] = (drift.digest(dict(wanted)), _state(made))

    def is_settled(self, wanted: Manifest, live: Manifest) -> bool:
        """Whether that is still so, and another try would be in vain."""
        return self._settled.get(_name(wanted)) == (drift.digest(dict(wanted)), _state(live))

    def may_write(self, wanted: Manifest, now: float) -> bool:
        """Whether it may be put right now, or has to wait."""
        record = self._current(wanted, now)
        return record is None or now >= record.last + record.pause

    def wrote(self, wanted: Manifest, now: float) -> None:
        """It was made, or put right."""
        record = self._current(wanted, now)
        times = record.times if record is not None else 0
        self._records[_name(wanted)] = _Record(drift.digest(dict(wanted)), times + 1, now)

    def problem(self, wanted: Sequence[Manifest], now: float) -> Problem | None:
        """The first of these objects that is fought over."""
        for each in wanted:
            record = self._current(each, now)
            if record is not None and record.times > FREE:
                kind, name = each["kind"], each["metadata"]["name"]
                text = (
                    f"somebody changes or deletes the {kind} {name} again and again; it is put right ever more seldom"
                )
                who = f"kubectl get {kind.lower()} {name} --show-managed-fields --output yaml"
                return Problem(CONTESTED, f"{text}: another operator, an autoscaler or a policy may be at work: {who}")
        return None

    def wait(self, wanted: Sequence[Manifest], now: float) -> float:
        """Seconds until one of them may be written, or is fought over no more."""
        records = [
            record for each in wanted if (record := self._current(each, now)) is not None and record.times > FREE
        ]
        ends = [end for record in records for end in (record.last + record.pause, record.over) if end > now]
        return max(1.0, min(ends, default=now) - now)

    def forget(self, namespace: str, name: str) -> None:
        """An LLMDeployment is gone, and what bears its name with it."""
        for records in (self._records, self._settled):
            for key in [each for each in records if each[::2] == (namespace, name)]:
                del records[key]

    def _current(self, wanted: Manifest, now: float) -> _Record | None:
        """Of this very content, if it still counts."""
        record = self._records.get(_name(wanted))
        if record is None or record.digest != drift.digest(dict(wanted)) or now >= record.over:
            return None
        return record


def _state(live: Manifest) -> str:
    """What changes when an object does; of those that have a generation their status is no part of it."""
    metadata = live["metadata"]
    told = [metadata.get(field) for field in ("uid", "labels", "annotations", "ownerReferences")]
    return json.dumps([*told, metadata.get("generation") or metadata["resourceVersion"]], sort_keys=True)


def _name(wanted: Manifest) -> _Name:
    metadata = wanted["metadata"]
    return metadata["namespace"], wanted["kind"], metadata["name"]
