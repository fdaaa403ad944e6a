"""What `decide` remembers from one decision to the next."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Learned:
    """Figures that are worth keeping over a restart of the operator: a few numbers, each within bounds.

    `replica_tokens`: KV tokens of a replica. `startup_seconds`: from a pod's making to ready. `utilization`: share of a
    replica's capacity that is asked of it. 0: not known yet.
    """

    replica_tokens: float = 0.0
    startup_seconds: float = 0.0
    utilization: float = 0.0


_BOUNDS: dict[str, tuple[float, float]] = {
    "replica_tokens": (0.0, 1e9),
    "startup_seconds": (0.0, 7200.0),
    "utilization": (0.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class State:
    """`learned` outlives the operator, as JSON; the rest is of the last minutes and is begun anew with it."""

    learned: Learned = field(default_factory=Learned)

    def to_json(self) -> dict[str, Any]:
        """What is to be kept: plain numbers under short names, some hundred bytes."""
        return asdict(self.learned)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Self:
        """The state after a restart. Whatever is missing, out of bounds or no number counts as not known."""
        known = {each.name: _within(each.name, kept.get(each.name)) for each in fields(Learned)}
        return cls(Learned(**{name: value for name, value in known.items() if value is not None}))


def _within(name: str, value: Any) -> float | None:
    low, high = _BOUNDS[name]
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number and low <= value <= high else None
