"""A decider that does as it is told: what a fleet does is tested elsewhere, here is what becomes of a decision."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from octavo_operator.autoscale.decide import Decision
from octavo_operator.autoscale.observation import Fleet
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import Learned, State
from octavo_operator.autoscale.victims import victims


@dataclass
class Wish:
    """Wants `replicas` (None: as many as there are), the least loaded first to go, and remembers what it was shown."""

    replicas: int | None = None
    learned: Learned | None = None
    active: bool = True
    fleets: list[Fleet] = field(default_factory=list)
    states: list[State] = field(default_factory=list)

    def __call__(self, fleet: Fleet, settings: Settings, state: State, now: float) -> Decision:
        self.fleets.append(fleet)
        self.states.append(state)
        wanted = fleet.desired if self.replicas is None else self.replicas
        return Decision(
            replicas=wanted,
            reason="Work",
            message=f"the work is for {wanted}",
            state=replace(state, learned=self.learned) if self.learned is not None else state,
            victims=victims(fleet),
            apply=settings.mode == "Internal",
            active=self.active,
            next_in=0.1,
        )
