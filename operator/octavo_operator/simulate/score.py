"""What came of a run: which requests met their targets, what it cost, how steady it was."""

from array import array
from dataclasses import asdict, dataclass
from math import ceil, nan
from typing import Any, Final

TTFT_SECONDS: Final = 1.0
TTFT_SECONDS_PER_TOKEN: Final = 0.25e-3
"""The target of a first token grows with its prompt: a quarter of a second for 1,000 tokens."""
TPOT_SECONDS: Final = 0.050


@dataclass(frozen=True, slots=True)
class Objectives:
    """Targets in seconds."""

    ttft: float = TTFT_SECONDS
    ttft_per_token: float = TTFT_SECONDS_PER_TOKEN
    tpot: float = TPOT_SECONDS


@dataclass(frozen=True, slots=True)
class Result:
    """One policy's figures. `attainment`: share of all requests that met both targets; dropped ones did not.

    `gpu_hours` count a replica from the node it gets to its end, loading included. `reversals`: changes of direction
    within one start-up time.
    """

    policy: str
    attainment: float
    gpu_hours: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p99_ms: float
    max_replicas: int
    reversals: int
    dropped: int
    setting: str = ""

    def as_json(self) -> dict[str, Any]:
        """As `octavo simulate --json` prints it; figures that there are none of are null."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


class Score:
    """Counts requests that arrived from `begin` on."""

    def __init__(self, objectives: Objectives, begin: float) -> None:
        self.objectives = objectives
        self.begin = begin
        self.ttft, self.tpot = array("d"), array("d")
        self.met = self.total = self.dropped = 0

    def judge(self, arrival: float, prompt: int, output: int, first: float, end: float) -> tuple[bool, bool]:
        """A request ended: whether its first token was late, and whether the others were."""
        targets = self.objectives
        ttft = first - arrival
        late_first = ttft > targets.ttft + targets.ttft_per_token * prompt
        tpot = (end - first) / (output - 1) if output > 1 else 0.0
        late_rest = tpot > targets.tpot
        if arrival >= self.begin:
            self.met += not (late_first or late_rest)
            self.ttft.append(ttft)
            if output > 1:
                self.tpot.append(tpot)
        return late_first, late_rest


def percentile(values: "array[float]", share: float) -> float:
    """The smallest value that at least this share of them does not exceed; nan of none."""
    if not values:
        return nan
    return sorted(values)[max(0, ceil(share * len(values)) - 1)]
