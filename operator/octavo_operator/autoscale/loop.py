"""The autoscaler's own loop: for each LLMDeployment that is autoscaled, look, decide, and have it applied, in turn.

It writes no number of replicas: a pass over the LLMDeployment does, when it is told that there is something to do. So
replicas have one writer, whatever decides. While nothing is autoscaled the loop sleeps.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from octavo_operator.autoscale.decide import INTERVAL_SECONDS, Decision
from octavo_operator.autoscale.decisions import Decisions, Entry, Name
from octavo_operator.autoscale.gateways import GatewayTally
from octavo_operator.autoscale.members import Member
from octavo_operator.autoscale.metrics import AutoscalingMetrics
from octavo_operator.autoscale.scrape import Scraper

FRESH_SECONDS: Final = 0.5
"""What gateways told so recently is good for another LLMDeployment's look."""
_LEAST_SECONDS: Final = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """A fleet as it is kept: `desired` replicas are asked for now, and each has `startup_deadline` seconds to start."""

    members: Sequence[Member]
    desired: int
    startup_deadline: float


class Keeper(Protocol):
    """Who keeps the replicas: the cluster, or a supervisor of processes."""

    async def see(self, name: Name, entry: Entry, now: float) -> Seen | None:
        """The fleet of one LLMDeployment; None where there is nothing to be scaled yet, or any more."""

    async def gateways(self) -> dict[str, str]:
        """Where the gateways that are ready tell their metrics, by any key."""

    async def prepare(self, name: Name, victims: Sequence[str]) -> bool:
        """Have these replicas, by name, be the first to go when there are to be fewer; none: forget earlier ones.

        Whether fewer may be asked for now.
        """

    def tell(self, name: Name) -> None:
        """There is something to apply, or to write into the status."""


class Autoscaler:
    """Looks at what `decisions` says is to be looked at. Times are seconds; `clock` goes on over restarts."""

    def __init__(
        self,
        decisions: Decisions,
        keeper: Keeper,
        scraper: Scraper,
        metrics: AutoscalingMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._decisions = decisions
        self._keeper = keeper
        self._scraper = scraper
        self._metrics = metrics
        self._clock = clock
        self._tally = GatewayTally()
        self._told_at = float("-inf")
        self._asking = asyncio.Lock()
        self._due: dict[Name, float] = {}
        self._looks: dict[Name, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until cancelled. A look that fails is logged, and taken again an interval later."""
        try:
            while True:
                self._decisions.changed.clear()
                self._start_due()
                await self._sleep()
        finally:
            for task in self._looks.values():
                task.cancel()
            await asyncio.gather(*self._looks.values(), return_exceptions=True)

    async def look(self, name: Name) -> float:
        """One look at one LLMDeployment. Returns the seconds until the next."""
        entry = self._decisions.entry(name)
        if entry is None or not entry.is_looked_at:
            return INTERVAL_SECONDS
        now = self._clock()
        seen = await self._keeper.see(name, entry, now)
        if seen is None:
            return INTERVAL_SECONDS
        await self._ask_gateways()
        is_told_of = self._decisions.is_behind_gateway(name)
        gateway = self._tally.of(entry.deployment.model_name) if is_told_of else None
        fleet = await entry.memory.look(self._scraper, seen.members, seen.desired, seen.startup_deadline, gateway)
        taken = self._decisions.take(name, fleet, self._clock())
        if taken is None:
            return INTERVAL_SECONDS
        decision, has_news = taken
        self._metrics.decided(name, decision)
        if await self._has_applied(name, decision, seen.desired) or has_news:
            self._keeper.tell(name)
        return decision.next_in

    async def _has_applied(self, name: Name, decision: Decision, current: int) -> bool:
        """Whether a pass has another number of replicas to apply. Who is to go is known before fewer are asked for."""
        wanted = decision.replicas
        if not decision.apply or wanted is None:
            return False
        is_less = wanted < current
        may_go = await self._keeper.prepare(name, decision.victims[: current - wanted] if is_less else ())
        if (is_less and not may_go) or not self._decisions.want(name, decision, current):
            return False
        self._metrics.applied(name, decision, current)
        log.info("%s/%s: from %d to %d replicas: %s", *name, current, wanted, decision.message)
        return True

    async def _ask_gateways(self) -> None:
        """Once for all LLMDeployments that are looked at together."""
        async with self._asking:
            if 0 <= self._clock() - self._told_at < FRESH_SECONDS:  # a clock that was set back is not waited for
                return
            urls = await self._keeper.gateways()
            told = await self._scraper.gateways(urls)
            self._told_at = self._clock()
            self._tally.look(urls, told, self._told_at)

    def _start_due(self) -> None:
        now, names = time.monotonic(), self._decisions.looked_at()
        for gone in self._due.keys() - set(names):
            del self._due[gone]
            self._metrics.forget(gone)
        for name in names:
            if self._due.get(name, now) <= now and name not in self._looks:
                self._looks[name] = asyncio.create_task(self._one_look(name))

    async def _one_look(self, name: Name) -> None:
        started, pause = time.monotonic(), INTERVAL_SECONDS
        try:
            with self._metrics.seconds.time():
                pause = await self.look(name)
        except Exception:
            log.exception("%s/%s: its load could not be looked at", *name)
        finally:
            self._due[name] = started + max(_LEAST_SECONDS, pause)
            del self._looks[name]
            self._decisions.changed.set()

    async def _sleep(self) -> None:
        """Until the next one is due, or something has changed."""
        waiting = [due for name, due in self._due.items() if name not in self._looks]
        pause = min(waiting) - time.monotonic() if waiting else None
        try:
            async with asyncio.timeout(pause):
                await self._decisions.changed.wait()
        except TimeoutError:
            pass
