"""Two that no cluster can run: a fleet that never changes, sized by hindsight, and one that knows the true load."""

from collections import deque
from math import ceil
from typing import TYPE_CHECKING

from octavo_operator.autoscale.observation import Fleet
from octavo_operator.simulate.policies.own import first_need

if TYPE_CHECKING:
    from octavo_operator.simulate.world import World


class StaticPeak:
    """The same number of replicas all the time."""

    name = "static-peak"
    interval = 60.0
    victims: tuple[str, ...] = ()

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas

    def begin(self, world: "World") -> int:
        """The number."""
        return self._replicas

    def decide(self, fleet: Fleet, now: float) -> int:
        """The number."""
        return self._replicas


class CausalBound:
    """Knows what the requests of the last `window` seconds truly need, answers included, and nothing to come."""

    name = "causal-bound"
    interval = 10.0
    victims: tuple[str, ...] = ()

    def __init__(self, utilization: float = 0.6, window: float = 60.0) -> None:
        self._utilization, self._window = utilization, window
        self._work: list[tuple[float, float]] = []
        self._recent = deque[tuple[float, float]]()
        self._next = 0
        self._sum = 0.0

    def begin(self, world: "World") -> int:
        """Work out what each request needs."""
        arrivals, hardware = world.scenario.trace.arrivals, world.scenario.hardware
        self._work = [(each.time, hardware.work(each.prompt, 0, each.output)) for each in arrivals]
        return first_need(world)

    def decide(self, fleet: Fleet, now: float) -> int:
        """The work that came, over the time that it came in."""
        while self._next < len(self._work) and self._work[self._next][0] <= now:
            self._recent.append(self._work[self._next])
            self._sum += self._work[self._next][1]
            self._next += 1
        while self._recent and self._recent[0][0] <= now - self._window:
            self._sum -= self._recent.popleft()[1]
        return max(1, ceil(self._sum / min(self._window, now) / self._utilization - 1e-9))
