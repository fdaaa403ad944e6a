"""The operator's own decision, as it is."""

from typing import TYPE_CHECKING

from octavo_operator.autoscale.decide import INTERVAL_SECONDS, decide
from octavo_operator.autoscale.observation import Fleet
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import State

if TYPE_CHECKING:
    from octavo_operator.simulate.world import World


class Octavo:
    """`decide` with its defaults."""

    name = "octavo"
    interval = INTERVAL_SECONDS

    def __init__(self) -> None:
        self.victims: tuple[str, ...] = ()
        self.log: list[tuple[float, int, str, str]] = []
        self._state = State()
        self._settings = Settings()

    def begin(self, world: "World") -> int:
        """As many as the first minute needs."""
        self._settings = Settings(max_replicas=world.scenario.max_replicas)
        return first_need(world)

    def decide(self, fleet: Fleet, now: float) -> int:
        """Replicas wanted."""
        decision = decide(fleet, self._settings, self._state, now)
        self._state, self.victims = decision.state, decision.victims
        wanted = fleet.desired if decision.replicas is None else decision.replicas
        self.log.append((now, wanted, decision.reason, decision.message))
        return wanted


def first_need(world: "World", utilization: float = 0.6, seconds: float = 60.0) -> int:
    """Replicas for the first seconds of the trace: every policy begins with them, ready."""
    work = world.scenario.hardware.work
    load = sum(work(each.prompt, 0, each.output) for each in world.scenario.trace.arrivals if each.time < seconds)
    return max(1, -int(-load / seconds // utilization))
