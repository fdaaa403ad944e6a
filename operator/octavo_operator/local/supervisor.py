"""Holds processes of one kind on this machine, from the first start to the last one gone; how many, may change."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
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
    """An asynchronous context: entering starts `count` replicas (None: all), leaving drains and stops them all.

    There is a place for each launch, and so many replicas at the most: a place has what only one can use, as a GPU.
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
        self._launches = tuple(launches)
        self._on_change = on_change
        self._wanted = len(launches) if count is None else count
        self._changed = asyncio.Event()
        self._replicas: dict[int, Replica] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._leaving: set[int] = set()
        self._is_ending = False
        self._failure: asyncio.Future[None] | None = None

    @property
    def states(self) -> tuple[ReplicaState, ...]:
        """A copy of what is known of each replica, those that are draining included."""
        return tuple(replace(self._replicas[place].state) for place in sorted(self._replicas))

    async def __aenter__(self) -> Self:
        self._failure = asyncio.get_running_loop().create_future()
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

    def scale(self, count: int, victims: Sequence[str] = ()) -> None:
        """From now on `count` replicas are wanted. Fewer: those that are not ready drain and end first, then `victims`
        (names) in turn, then the others from the last place on. One that ends by itself is replaced in its place.
        """
        self._wanted = count
        surplus = len(self._replicas) - len(self._leaving) - count
        for place in self._first_to_go(victims)[: max(0, surplus)]:
            self._leaving.add(place)
            self._replicas[place].stop()
        self._fill()

    async def wait_ready(self) -> None:
        """Wait until all replicas are ready.

        Raises:
            ReplicaFailedError: one ended before it was ever ready.
        """
        while not all(replica.state.ready for replica in self._replicas.values()):
            self._raise_failures()
            self._changed.clear()
            await self._changed.wait()

    async def run(self) -> None:
        """Keep the replicas alive until this is cancelled, which leaves them to `stop`."""
        if self._failure is not None:
            await asyncio.shield(self._failure)

    async def stop(self) -> None:
        """Drain and stop all replicas at once; returns when no process is left."""
        self._is_ending = True
        for replica in self._replicas.values():
            replica.stop()
        await asyncio.gather(*self._tasks.values())

    def kill(self) -> None:
        """End every process now, without draining."""
        for replica in self._replicas.values():
            replica.kill()

    def _fill(self) -> None:
        """Start what is missing, in the first places that are free. A place is free when its last process has gone."""
        missing = self._wanted - len(self._replicas) + len(self._leaving)
        free = [place for place in range(len(self._launches)) if place not in self._replicas]
        for place in free[: max(0, missing)]:
            replica = Replica(f"{self._name}-{place}", self._launches[place], self._client, self._notify)
            self._replicas[place] = replica
            task = self._tasks[place] = asyncio.create_task(replica.run())
            task.add_done_callback(lambda task, place=place: self._ended(place, task))  # type: ignore[misc]

    def _ended(self, place: int, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)
        if not self._is_ending and place in self._leaving:
            self._leaving.discard(place)
            del self._replicas[place], self._tasks[place]
            self._fill()
        self._notify()

    def _first_to_go(self, victims: Sequence[str]) -> list[int]:
        turn = {name: index for index, name in enumerate(victims)}

        def order(place: int) -> tuple[bool, int, int]:
            state = self._replicas[place].state
            return state.ready, turn.get(state.name, len(turn)), -place

        return sorted(self._replicas.keys() - self._leaving, key=order)

    def _raise_failures(self) -> None:
        for state in self.states:
            if state.phase == "Backoff" and not state.ever_ready:
                raise ReplicaFailedError(state)
        if self._failure is not None and self._failure.done():
            self._failure.result()

    def _notify(self) -> None:
        self._changed.set()
        if self._on_change is not None:
            self._on_change(self.states)
