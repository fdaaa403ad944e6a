"""The whole of a deployment on this machine: replicas, the gateway before them, and the autoscaler that counts them.

The autoscaler is the cluster's own, loop and all; here it is told of processes instead of pods, and what it decides is
applied to a supervisor instead of a Deployment.
"""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry

from octavo_operator.api import LLMDeployment
from octavo_operator.autoscale.decide import Decision, decide
from octavo_operator.autoscale.decisions import Decisions, Entry, Name
from octavo_operator.autoscale.loop import Autoscaler, Seen
from octavo_operator.autoscale.metrics import AutoscalingMetrics
from octavo_operator.autoscale.observation import Fleet
from octavo_operator.autoscale.scrape import Scraper
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import State
from octavo_operator.local.gateway import Door, GatewayFiles, gateway_launch
from octavo_operator.local.observe import endpoints, local_status, members
from octavo_operator.local.plan import LocalPlan
from octavo_operator.local.replica import ReplicaState
from octavo_operator.local.supervisor import Supervisor
from octavo_operator.observation import Scaling
from octavo_operator.render import startup_seconds

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told: of `changed` processes, of each `line` that one of them (by name) writes, and of each decision, with
    the number of replicas that were asked for until then.
    """

    changed: Callable[[], None] = lambda: None
    line: Callable[[str, str], None] | None = None
    decided: Callable[[Decision, int], None] = lambda decision, before: None


class LocalFleet:
    """An asynchronous context, which leaves no process. It is the autoscaler's `Keeper`."""

    def __init__(self, plan: LocalPlan, door: Door, listener: Listener | None = None) -> None:
        self._plan = plan
        self._listener = listener or Listener()
        self._name: Name = (plan.deployment.namespace, plan.deployment.name)
        self._decisions = Decisions(self._decide)
        self._victims: Sequence[str] = ()
        self._directory = tempfile.TemporaryDirectory(prefix="octavo-up-")
        self._files = GatewayFiles(Path(self._directory.name))
        self._open = contextlib.AsyncExitStack()
        self._wanted = 0
        self.history: list[int] = []  # numbers of replicas that were wanted, in turn
        self._deployment = plan.deployment
        self._scaling: Scaling | None = None
        self.status: Manifest = {}
        self._settle(None)
        launches = plan.launches(self._files.key_file, self._listener.line)
        self._replicas = Supervisor(plan.deployment.name, launches, self._observed, count=self._wanted)
        gateway = gateway_launch(plan.deployment, door, self._files, self._listener.line)
        self._gateway = Supervisor("gateway", [gateway], self._observed)
        self._autoscaler: asyncio.Task[None] | None = None

    @property
    def deployment(self) -> LLMDeployment:
        """As it is now, with the number of replicas that was decided."""
        return self._deployment

    @property
    def replicas(self) -> tuple[ReplicaState, ...]:
        """What is known of each replica."""
        return self._replicas.states

    @property
    def gateway(self) -> ReplicaState:
        """What is known of the gateway, once this was entered."""
        return self._gateway.states[0]

    @property
    def processes(self) -> tuple[ReplicaState, ...]:
        """The replicas, and the gateway."""
        return *self._replicas.states, *self._gateway.states

    @property
    def url(self) -> str | None:
        """Where the gateway listens; clients add /v1."""
        return self.gateway.url if self._gateway.states else None

    @property
    def key(self) -> str:
        """With which gateway and replicas let us in, where they ask for one."""
        return self._files.key

    async def __aenter__(self) -> Self:
        self._observed(())
        try:
            # The gateway ends first: until then what it has open needs the replicas.
            await self._open.enter_async_context(self._replicas)
            await self._open.enter_async_context(self._gateway)
            scraper = await self._open.enter_async_context(Scraper(key=self.key))
            metrics = AutoscalingMetrics(CollectorRegistry())
            self._autoscaler = asyncio.create_task(Autoscaler(self._decisions, self, scraper, metrics).run())
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._autoscaler is not None:
                self._autoscaler.cancel()
                await asyncio.gather(self._autoscaler, return_exceptions=True)
        finally:
            try:
                await self._open.aclose()
            finally:
                self._directory.cleanup()

    async def wait_ready(self) -> None:
        """Until the gateway is ready, and all replicas that are wanted from the beginning.

        Raises:
            ReplicaFailedError: one of them ended before it was ever ready.
        """
        await _together(self._gateway.wait_ready(), self._replicas.wait_ready())

    async def run(self) -> None:
        """Keep it all alive until this is cancelled."""
        await _together(self._replicas.run(), self._gateway.run(), self._decide_on())

    async def _decide_on(self) -> None:
        """A fleet that nobody scales any more must not go on as if somebody did."""
        if self._autoscaler is not None:
            await asyncio.shield(self._autoscaler)

    def kill(self) -> None:
        """End every process now, without draining."""
        self._gateway.kill()
        self._replicas.kill()

    async def see(self, name: Name, entry: Entry, now: float) -> Seen | None:
        """The replicas as the autoscaler takes them."""
        return Seen(
            members=members(self._replicas.states, time.monotonic()),
            desired=self._wanted,
            startup_deadline=startup_seconds(self._deployment),
        )

    async def gateways(self) -> dict[str, str]:
        """The one there is, in each of its lives."""
        state = self.gateway
        return {state.id: f"{state.url}/metrics"} if state.ready else {}

    async def prepare(self, name: Name, victims: Sequence[str]) -> bool:
        """Remember who is to go first."""
        self._victims = victims
        return True

    def tell(self, name: Name) -> None:
        """Apply what was decided, and tell it in the status."""
        before = self._wanted
        self._settle({"spec": {"replicas": before}})
        if self._scaling is not None and self._wanted != before:
            self._scaling = self._decisions.scaled(name, self._scaling, _now())
        self._replicas.scale(self._wanted, self._victims)
        self._observed(())

    def _settle(self, child: Manifest | None) -> None:
        """What the operator's pass does: the number of replicas, and what there is to tell of it."""
        live = {"metadata": {"uid": self._plan.deployment.name}, "status": self.status}
        self._deployment, self._scaling = self._decisions.settle(live, self._plan.deployment, child)
        self._wanted = self._deployment.desired_replicas
        if self.history[-1:] != [self._wanted]:
            self.history.append(self._wanted)

    def _decide(self, fleet: Fleet, settings: Settings, state: State, now: float) -> Decision:
        decision = decide(fleet, settings, state, now)
        self._listener.decided(decision, fleet.desired)
        return decision

    def _observed(self, _: Sequence[ReplicaState]) -> None:
        """A process has changed, or what is wanted: tell the gateway and everybody else."""
        states = self._replicas.states
        self._files.write(endpoints(self._deployment.model_name, states))
        self.status = local_status(self._deployment, states, self.status, _now(), self.url, self._scaling)
        self._listener.changed()


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """All of it, or the first failure as it is."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
