"""llm-d's workload variant autoscaler: its saturation analyzer by shares (v1) and by tokens (v2).

A controller proposes every 60 s; an HPA with the default window for fewer carries it out. A replica is saturated at
80 % of its KV tokens or 5 waiting requests. The thresholds of v2 are assumed: they were not found documented.
"""

from collections.abc import Sequence
from math import ceil
from typing import Final

from octavo_operator.autoscale.observation import Fleet, Sample
from octavo_operator.simulate.policies.hpa import DOWN_SECONDS, Rival, Stabilizer

KV_THRESHOLD: Final = 0.8
QUEUE_THRESHOLD: Final = 5.0
KV_SPARE: Final = 0.1
QUEUE_SPARE: Final = 3.0
UP_THRESHOLD: Final = 0.85
DOWN_BOUNDARY: Final = 0.70


class Saturation(Rival):
    """v1: one more if the replicas that are not saturated have too little to spare on average; one less if they had
    enough with the load of one more among them. Nothing changes while replicas start."""

    name = "llmd-v1"
    interval = 60.0

    def __init__(self, kv_threshold: float = KV_THRESHOLD, down_seconds: float = DOWN_SECONDS) -> None:
        self._kv = kv_threshold
        # The trigger keeps its proportion where another threshold is tried.
        self._kv_spare = KV_SPARE * kv_threshold / KV_THRESHOLD
        self._stabilizer = Stabilizer(down_seconds)

    def decide(self, fleet: Fleet, now: float) -> int:
        """Replicas wanted."""
        samples = [each.sample for each in fleet.ready if each.sample is not None]
        wanted = fleet.desired
        if samples and not fleet.pending:
            wanted += self._step(samples)
        return self._stabilizer.apply(max(1, wanted), fleet.desired, now)

    def _step(self, samples: Sequence[Sample]) -> int:
        uses = [each.kv_tokens_used / each.kv_tokens_total for each in samples]
        free = [
            (use, each.waiting)
            for use, each in zip(uses, samples, strict=True)
            if use < self._kv and each.waiting < QUEUE_THRESHOLD
        ]
        if not free:
            return 1
        use, waiting = (sum(values) / len(free) for values in zip(*free, strict=True))
        if self._kv - use < self._kv_spare or QUEUE_THRESHOLD - waiting < QUEUE_SPARE:
            return 1
        if len(free) < 2:
            return 0
        grown = len(free) / (len(free) - 1)
        fits = self._kv - use * grown >= self._kv_spare and QUEUE_THRESHOLD - waiting * grown >= QUEUE_SPARE
        return -1 if fits else 0


class SaturationTokens(Rival):
    """v2: tokens in use and waiting against the tokens that replicas have room for, those that start included.

    Room is 80 % of the KV tokens, or what was in use when requests queued, if that was less.
    """

    name = "llmd-v2"
    interval = 60.0

    def __init__(self, scale: float = 1.0, down_seconds: float = DOWN_SECONDS) -> None:
        self._scale = scale
        self._seen_full = 0.0
        self._stabilizer = Stabilizer(down_seconds)

    def decide(self, fleet: Fleet, now: float) -> int:
        """Replicas wanted."""
        samples = [each.sample for each in fleet.ready if each.sample is not None]
        if not samples:
            return max(1, fleet.desired)
        room = self._scale * KV_THRESHOLD * sum(each.kv_tokens_total for each in samples) / len(samples)
        for each in samples:
            if each.waiting >= QUEUE_THRESHOLD:
                used = float(each.kv_tokens_used)
                self._seen_full = used if not self._seen_full else self._seen_full + 0.3 * (used - self._seen_full)
        if self._seen_full:
            room = max(1.0, min(room, self._seen_full * self._scale))
        demand = sum(each.kv_tokens_used + each.waiting_prompt_tokens for each in samples)
        if fleet.gateway is not None:
            demand += fleet.gateway.held_prompt_tokens
        supply = room * (len(fleet.ready) + len(fleet.pending))
        wanted = fleet.desired
        if demand / UP_THRESHOLD > supply:
            wanted += ceil((demand / UP_THRESHOLD - supply) / room)
        elif not fleet.pending and demand / DOWN_BOUNDARY < supply - room:
            wanted -= 1
        return self._stabilizer.apply(max(1, wanted), fleet.desired, now)
