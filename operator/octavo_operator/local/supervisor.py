"""Holds all replicas of one deployment on this machine, from the first start to the last process gone."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Final, Self

import httpx

from octavo_operator.local.replica import Launch, Replica, ReplicaState

PROBE_SECONDS: Final = 5.0
ERROR_PREFIX: Final = "octavo: "


class ReplicaFailedError(Exception):
    """A replica ended before it was ever ready: it would end so again. Carries its state with its last lines."""

    def __init__(self, state: ReplicaState) -> None:
        last = last_words(state.tail)
        super().__init__(f"{state.name} {state.last_exit}" + (f": {last}" if last else ""))
        self.state = state


def last_words(lines: Sequence[str]) -> str:
    """What a replica wrote on why it ended: the error of its command line, else its last line."""
    told = [line for line in lines if line.startswith(ERROR_PREFIX)] or lines
    return told[-1].removeprefix(ERROR_PREFIX) if told else ""


class Supervisor:
    """An asynchronous context: entering starts replicas, leaving drains and stops them all.

    There is a place for each launch, and the first `count` of them (None: all) are taken at first; `scale` takes more
    or frees some. A replica is named after its place; `birth` in its state tells it from an earlier one.
    """

    def __init__(
        self,
        name: str,
        launches: Sequence[Launch],
        on_change: Callable[[Sequence[ReplicaState]], None] | None = None,
        count: int | None = None,
    ) -> None:
        # The environment's proxies are for the world outside, not for processes on this machine.
        self._client = httpx.AsyncClient(trust_env=False, timeout=PROBE_SECONDS)
        self._name = name
        self._launches = list(launches)
        self._on_change = on_change
        self._changed = asyncio.Event()
        self._replicas: dict[int, Replica] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._births = 0
        self._closing = False
        self.wanted = len(self._launches) if count is None else count
        self._take_places()

    @property
    def states(self) -> tuple[ReplicaState, ...]:
        """A copy of what is known of each replica, those that are ending included."""
        return tuple(replace(replica.state) for _, replica in sorted(self._replicas.items()))

    async def __aenter__(self) -> Self:
        self._fill()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopping = asyncio.create_task(self.stop())
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:  # somebody cannot wait for the drain; the processes still go first
            self.kill()
            await stopping
            raise
        finally:
            await self._client.aclose()

    async def wait_ready(self) -> None:
        """Wait until as many replicas as wanted are ready.

        Raises:
            ReplicaFailedError: one ended before it was ever ready.
        """
        while sum(replica.state.ready for replica in self._replicas.values()) < self.wanted:
            self._raise_failures()
            self._changed.clear()
            await self._changed.wait()

    async def run(self) -> None:
        """Keep the replicas alive until this is cancelled, which leaves them to `stop`."""
        while True:
            self._raise_errors()
            self._changed.clear()
            await self._changed.wait()

    def scale(self, count: int, victims: Sequence[str] = ()) -> None:
        """Have `count` replicas, at most one for each place. Those of `victims`, by name, end first, in their order;
        then those that are not ready. One that ends drains first, and its place is free when it is gone.
        """
        self.wanted = min(count, len(self._launches))
        staying = [each for each in self._replicas.values() if not each.is_stopping]
        order = {name: place for place, name in enumerate(victims)}

        def least(replica: Replica) -> tuple[int, bool, int]:
            return order.get(replica.state.name, len(order)), replica.state.ready, -replica.state.birth

        for replica in sorted(staying, key=least)[: max(0, len(staying) - self.wanted)]:
            replica.stop()
        self._fill()

    async def stop(self) -> None:
        """Drain and stop all replicas at once; returns when no process is left."""
        self._closing = True
        for replica in self._replicas.values():
            replica.stop()
        await asyncio.gather(*self._tasks.values())

    def kill(self) -> None:
        """End every process now, without draining."""
        for replica in self._replicas.values():
            replica.kill()

    def _fill(self) -> None:
        """Start what is wanted and not there, as far as there are free places."""
        self._take_places()
        for place in self._replicas.keys() - self._tasks.keys():
            self._tasks[place] = asyncio.create_task(self._replicas[place].run())
            self._tasks[place].add_done_callback(partial(self._ended, place))

    def _take_places(self) -> None:
        lacking = self.wanted - sum(not each.is_stopping for each in self._replicas.values())
        free = [place for place in range(len(self._launches)) if place not in self._replicas]
        for place in free[: max(0, lacking)]:
            self._births += 1
            name, launch = f"{self._name}-{place}", self._launches[place]
            self._replicas[place] = Replica(name, launch, self._client, self._notify, self._births)

    def _ended(self, place: int, task: asyncio.Task[None]) -> None:
        """A place is free again; one whose replica failed keeps it, for `run` to tell."""
        if not self._closing and not task.cancelled() and task.exception() is None:
            del self._replicas[place], self._tasks[place]
            self._fill()
            self._notify()
        self._changed.set()

    def _raise_failures(self) -> None:
        for state in self.states:
            if state.phase == "Backoff" and not state.ever_ready:
                raise ReplicaFailedError(state)
        self._raise_errors()

    def _raise_errors(self) -> None:
        for task in self._tasks.values():
            if task.done():
                task.result()

    def _notify(self) -> None:
        self._changed.set()
        if self._on_change is not None:
            self._on_change(self.states)
