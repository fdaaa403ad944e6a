"""What `decide` remembers from one decision to the next."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Self

from octavo_operator.autoscale.observation import GatewaySample, Sample


@dataclass(frozen=True, slots=True)
class Learned:
    """Figures that are worth keeping over a restart of the operator: a few numbers, each within bounds; 0: not known.

    `replica_tokens`: KV tokens of a replica. `startup_seconds`: from a pod's making to ready. `step_seconds`,
    `request_seconds`, `prompt_seconds`: what a step takes, and besides for each request and each prompt token in it
    (`curve`). `work_per_token`: replica-seconds that the load of a prompt token is (`demand.load`). `utilization`:
    share of a replica's capacity that is asked of it. `momentum`, `reserve`: of a rise of the load, the share that
    follows while a replica starts; and by what share it rises beyond that, but for the steepest tenth of rises.
    """

    replica_tokens: float = 0.0
    startup_seconds: float = 0.0
    step_seconds: float = 0.0
    request_seconds: float = 0.0
    prompt_seconds: float = 0.0
    work_per_token: float = 0.0
    utilization: float = 0.0
    reserve: float = 0.0
    momentum: float = 0.0


BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "replica_tokens": (0.0, 1e9),
    "startup_seconds": (0.0, 7200.0),
    "step_seconds": (0.0, 10.0),
    "request_seconds": (0.0, 10.0),
    "prompt_seconds": (0.0, 10.0),
    "work_per_token": (0.0, 10.0),
    "utilization": (0.0, 0.95),
    "reserve": (0.0, 1.0),
    "momentum": (0.0, 1.0),
}
"""What a learned figure can be; anything else is not believed."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest sample of a replica, and its work, from this and the one before: replica-seconds a second, 0 to 1.

    `work` is None until there were two samples. `at` is when the sample was taken.
    """

    name: str
    sample: Sample
    work: float | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """The last minutes. Times are seconds on the decider's clock; pairs are (time, value), oldest first.

    `sums`: of the observations that `curve` fits. `gateway`: its last samples. `demands`: load a second. `needs`: time,
    work and replicas for KV tokens that were needed, by which fewer are judged. `wants`: replicas that were wanted.
    `loads`: demand as a share of the ready replicas' capacity. `work`, `load`: slow averages of the work done and of
    the load that asked for it. `rises`: sums for the momentum. `late`, `ended`: recent requests that count, the newer
    the more. `busy_at`: when there was last anything to do. `tightened_at`: when less was last asked of replicas.
    """

    begun: float | None = None
    seen: tuple[Seen, ...] = ()
    sums: tuple[float, ...] = ()
    gateway: tuple[GatewaySample, ...] = ()
    demands: tuple[tuple[float, float], ...] = ()
    needs: tuple[tuple[float, float, float], ...] = ()
    wants: tuple[tuple[float, int], ...] = ()
    loads: tuple[tuple[float, float], ...] = ()
    work: float = 0.0
    load: float = 0.0
    rises: tuple[float, float] | None = None
    late: float = 0.0
    ended: float = 0.0
    averaged_at: float | None = None
    preempted_at: float | None = None
    busy_at: float | None = None
    scaled_up_at: float | None = None
    scaled_down_at: float | None = None
    tightened_at: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """`learned` outlives the operator, as JSON; the rest is of the last minutes and is begun anew with it."""

    learned: Learned = field(default_factory=Learned)
    memory: Memory = field(default_factory=Memory)

    def to_json(self) -> dict[str, Any]:
        """What is to be kept: plain numbers under short names, some hundred bytes."""
        return asdict(self.learned)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Self:
        """The state after a restart. Whatever is missing, out of bounds or no number counts as not known."""
        known = {each.name: _within(each.name, kept.get(each.name)) for each in fields(Learned)}
        return cls(Learned(**{name: value for name, value in known.items() if value is not None}))


def _within(name: str, value: Any) -> float | None:
    low, high = BOUNDS[name]
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number and low <= value <= high else None
