"""Holds all replicas of one deployment on this machine, from the first start to the last process gone."""

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
    """An asynchronous context: entering starts the replicas, one for each launch, leaving drains and stops them all."""

    def __init__(
        self, name: str, launches: Sequence[Launch], on_change: Callable[[Sequence[ReplicaState]], None] | None = None
    ) -> None:
        # The environment's proxies are for the world outside, not for processes on this machine.
        self._client = httpx.AsyncClient(trust_env=False, timeout=PROBE_SECONDS)
        self._on_change = on_change
        self._changed = asyncio.Event()
        self._replicas = [
            Replica(f"{name}-{index}", launch, self._client, self._notify) for index, launch in enumerate(launches)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def states(self) -> tuple[ReplicaState, ...]:
        """A copy of what is known of each replica."""
        return tuple(replace(replica.state) for replica in self._replicas)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(replica.run()) for replica in self._replicas]
        for task in self._tasks:
            task.add_done_callback(lambda _: self._changed.set())
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
        """Wait until all replicas are ready.

        Raises:
            ReplicaFailedError: one ended before it was ever ready.
        """
        while not all(replica.state.ready for replica in self._replicas):
            self._raise_failures()
            self._changed.clear()
            await self._changed.wait()

    async def run(self) -> None:
        """Keep the replicas alive until this is cancelled, which leaves them to `stop`."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Drain and stop all replicas at once; returns when no process is left."""
        for replica in self._replicas:
            replica.stop()
        await asyncio.gather(*self._tasks)

    def kill(self) -> None:
        """End every process now, without draining."""
        for replica in self._replicas:
            replica.kill()

    def _raise_failures(self) -> None:
        for state in self.states:
            if state.phase == "Backoff" and not state.ever_ready:
                raise ReplicaFailedError(state)
        for task in self._tasks:
            if task.done():
                task.result()

    def _notify(self) -> None:
        self._changed.set()
        if self._on_change is not None:
            self._on_change(self.states)
