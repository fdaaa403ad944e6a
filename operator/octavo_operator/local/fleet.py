"""Processes of this machine as the fleet that the autoscaler keeps: by the same loop as in a cluster."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from octavo_operator.api import LLMDeployment
from octavo_operator.autoscale.decisions import Decisions, Entry, Name
from octavo_operator.autoscale.loop import Seen
from octavo_operator.autoscale.members import Member
from octavo_operator.autoscale.observation import Phase
from octavo_operator.local.replica import ReplicaState
from octavo_operator.local.supervisor import Supervisor
from octavo_operator.observation import Scaling
from octavo_operator.render import start_seconds

_PHASES: Final[Mapping[str, Phase]] = {"Ready": "ready", "Draining": "terminating", "Stopped": "terminating"}
_UID: Final = "local"


class LocalFleet:
    """A `Keeper` of one deployment. `gateways`: where gateways tell their metrics, by any key.

    What is decided is applied at once: there is no crash to be survived between the two. `told` is called after that,
    and whenever the status has something new.
    """

    def __init__(
        self,
        deployment: LLMDeployment,
        supervisor: Supervisor,
        decisions: Decisions,
        gateways: Callable[[], dict[str, str]] = dict,
        told: Callable[[Scaling], None] = lambda _: None,
    ) -> None:
        self._deployment = deployment
        self._supervisor = supervisor
        self._decisions = decisions
        self._gateways = gateways
        self._told = told
        self._victims: Sequence[str] = ()
        self._status: dict[str, Any] = {}
        self._settle()

    async def see(self, name: Name, entry: Entry, now: float) -> Seen | None:
        """All processes, those that drain included."""
        found = [_member(state, time.monotonic()) for state in self._supervisor.states]
        return Seen(found, self._supervisor.wanted, start_seconds(self._deployment))

    async def gateways(self) -> dict[str, str]:
        """As they were given."""
        return self._gateways()

    async def prepare(self, name: Name, victims: Sequence[str]) -> bool:
        """Remembered until fewer are asked for."""
        self._victims = victims
        return True

    def tell(self, name: Name) -> None:
        """Apply what was decided, and tell it."""
        before = self._supervisor.wanted
        pinned, scaling = self._settle()
        if scaling is None:
            return
        if pinned.desired_replicas != before:
            self._supervisor.scale(pinned.desired_replicas, self._victims)
            self._victims = ()
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            scaling = self._decisions.scaled(name, scaling, now)
        self._status["autoscaling"] = dict(scaling.told)
        self._told(scaling)

    def _settle(self) -> tuple[LLMDeployment, Scaling | None]:
        live = {"metadata": {"uid": _UID, "name": self._deployment.name}, "status": self._status}
        there = {"spec": {"replicas": self._supervisor.wanted}}
        return self._decisions.settle(live, self._deployment, there)


def _member(state: ReplicaState, now: float) -> Member:
    phase = _PHASES.get(state.phase, "pending")
    return Member(
        key=f"{state.name}/{state.birth}",
        name=state.name,
        phase=phase,
        age=max(0.0, now - state.since),
        url=f"{state.url}/metrics" if state.url is not None else None,
        startup=state.startup_seconds,
    )
