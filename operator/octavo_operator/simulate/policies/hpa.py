"""Kubernetes' HorizontalPodAutoscaler, on KV use and on queues, and KEDA, which drives one.

The rules and defaults are those that the Kubernetes documentation gives for autoscaling/v2: a look every 15 s, ratios
within 10 % of 1 change nothing, pods that are not ready count as idle when there would be more, at most twice as many
or four more in 15 s, and fewer only down to the highest recommendation of 300 s. All rivals here see figures without
delay, which flatters them: Prometheus adds 15 to 30 s.
"""

from collections import deque
from math import ceil
from typing import TYPE_CHECKING, Final

from octavo_operator.autoscale.observation import Fleet, Sample
from octavo_operator.simulate.policies.own import first_need

if TYPE_CHECKING:
    from octavo_operator.simulate.world import World

SYNC_SECONDS: Final = 15.0
TOLERANCE: Final = 0.1
DOWN_SECONDS: Final = 300.0


class Rival:
    """Begins as all policies do, and lets Kubernetes choose who ends."""

    name = ""
    interval = SYNC_SECONDS
    victims: tuple[str, ...] = ()

    def begin(self, world: "World") -> int:
        """As many as the first minute needs."""
        return first_need(world)


class Stabilizer:
    """Bounds on how fast an HPA goes up, and the highest recommendation of the last seconds for going down."""

    def __init__(self, down_seconds: float = DOWN_SECONDS) -> None:
        self._down_seconds = down_seconds
        self._wanted = deque[tuple[float, int]]()

    def apply(self, wanted: int, current: int, now: float) -> int:
        """What is done of what is wanted."""
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - self._down_seconds:
            self._wanted.popleft()
        if wanted > current:
            return min(wanted, max(2 * current, current + 4))
        return min(current, max(value for _, value in self._wanted))


class Hpa(Rival):
    """On a mean over pods: `target` of what `measure` says."""

    def __init__(self, target: float, down_seconds: float = DOWN_SECONDS) -> None:
        self._target = target
        self._stabilizer = Stabilizer(down_seconds)

    def measure(self, sample: Sample) -> float:
        """The figure of a pod."""
        raise NotImplementedError

    def decide(self, fleet: Fleet, now: float) -> int:
        """Replicas wanted."""
        values = [self.measure(each.sample) for each in fleet.ready if each.sample is not None]
        current = fleet.desired
        if not values:
            return max(1, current)
        missing = max(0, current - len(values))
        ratio = sum(values) / len(values) / self._target
        if missing and ratio > 1:
            # Pods without figures count as idle for more and at target for fewer; if that turns it round: no change.
            ratio = max(1.0, sum(values) / current / self._target)
        elif missing and ratio < 1:
            ratio = min(1.0, (sum(values) + missing * self._target) / current / self._target)
        wanted = current if abs(ratio - 1) <= TOLERANCE else ceil(ratio * (current if missing else len(values)) - 1e-9)
        return self._stabilizer.apply(max(1, wanted), current, now)


class HpaKv(Hpa):
    """KV cache use, 0.7 by default."""

    name = "hpa-kv"

    def __init__(self, target: float = 0.7, down_seconds: float = DOWN_SECONDS) -> None:
        super().__init__(target, down_seconds)

    def measure(self, sample: Sample) -> float:
        """Share of KV tokens in use."""
        return sample.kv_tokens_used / sample.kv_tokens_total


class HpaQueue(Hpa):
    """Waiting requests of a pod, 5 by default."""

    name = "hpa-queue"

    def __init__(self, target: float = 5.0, down_seconds: float = DOWN_SECONDS) -> None:
        super().__init__(target, down_seconds)

    def measure(self, sample: Sample) -> float:
        """Waiting requests."""
        return sample.waiting


class Keda(Rival):
    """The sum of `vllm:num_requests_waiting`, a replica for every 5, as production-stack documents it.

    KEDA hands the sum to an HPA as an average value: what there is now does not count.
    """

    name = "keda"

    def __init__(self, threshold: float = 5.0, down_seconds: float = DOWN_SECONDS) -> None:
        self._threshold = threshold
        self._stabilizer = Stabilizer(down_seconds)

    def decide(self, fleet: Fleet, now: float) -> int:
        """Replicas wanted."""
        waiting = sum(each.sample.waiting for each in fleet.ready if each.sample is not None)
        ratio = waiting / self._threshold / max(1, fleet.desired)
        wanted = fleet.desired if abs(ratio - 1) <= TOLERANCE else ceil(waiting / self._threshold - 1e-9)
        return self._stabilizer.apply(max(1, wanted), fleet.desired, now)
