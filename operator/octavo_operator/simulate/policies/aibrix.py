"""AIBrix's APA: a ratio to a target with separate tolerances for up and down."""

from collections import deque
from math import ceil, floor
from typing import Final

from octavo_operator.autoscale.observation import Fleet
from octavo_operator.simulate.policies.hpa import Rival

UP_TOLERANCE: Final = 0.1
DOWN_TOLERANCE: Final = 0.2
MAX_RATE: Final = 2.0
"""At most twice as many, and at least half as many, in a decision."""
WINDOW_SECONDS: Final = 30.0


class Apa(Rival):
    """KV use averaged over pods and 30 s, 0.5 by default; every 10 s. The count of pods includes those that start."""

    name = "apa"
    interval = 10.0

    def __init__(self, target: float = 0.5) -> None:
        self._target = target
        self._values = deque[tuple[float, float]]()

    def decide(self, fleet: Fleet, now: float) -> int:
        """Replicas wanted."""
        samples = [each.sample for each in fleet.ready if each.sample is not None]
        current = fleet.desired
        if samples:
            use = sum(each.kv_tokens_used / each.kv_tokens_total for each in samples) / len(samples)
            self._values.append((now, use))
        while self._values and self._values[0][0] < now - WINDOW_SECONDS:
            self._values.popleft()
        if not self._values:
            return max(1, current)
        ratio = sum(value for _, value in self._values) / len(self._values) / self._target
        if ratio > 1 + UP_TOLERANCE:
            return min(ceil(current * ratio), ceil(current * MAX_RATE))
        if ratio < 1 - DOWN_TOLERANCE:
            return max(1, ceil(current * ratio), floor(current / MAX_RATE))
        return current
