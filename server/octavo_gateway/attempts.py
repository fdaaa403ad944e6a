"""Requests that are at replicas now, and the end of those that will never be answered there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from octavo_gateway.replica import Replica
from octavo_gateway.replicas_http import ReplicaLost

UNREAD_SECONDS: Final = 600.0  # that a client may not read what it asked for
GONE_SECONDS: Final = 10.0  # of silence, from a replica that is no longer listed


@dataclass(eq=False, slots=True)
class Attempt:
    """One try at one replica.

    latest: when it last said something; begun: whether it has begun to answer; writing: since when the client has not
    taken what is written to it, if it has not.
    """

    replica: Replica
    latest: float
    limit: asyncio.Timeout
    begun: bool = False
    writing: float | None = None


class Attempts:
    """All of them. A connection to a machine that is gone stays open for hours: silence has to be noticed."""

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._open: set[Attempt] = set()

    @asynccontextmanager
    async def at(self, replica: Replica) -> AsyncIterator[Attempt]:
        """One more, until the block ends.

        Raises:
            ReplicaLost: in the block, when the replica is given up.
            ConnectionResetError: in the block, when the client is.
        """
        limit = asyncio.timeout(None)
        attempt = Attempt(replica, asyncio.get_running_loop().time(), limit)
        self._open.add(attempt)
        try:
            async with limit:
                yield attempt
        except TimeoutError as error:
            if limit.expired() and attempt.writing is not None:
                raise ConnectionResetError("the client does not read") from error
            if limit.expired():
                raise ReplicaLost("silent") from error
            raise
        finally:
            self._open.discard(attempt)

    def look(self, now: float) -> None:
        """Give up those that are silent."""
        for attempt in self._open:
            if attempt.writing is not None:  # it is not the replica that is slow
                if now - attempt.writing > UNREAD_SECONDS:
                    attempt.limit.reschedule(0.0)
                continue
            silent = now - attempt.latest
            replica = attempt.replica
            unheard = replica.heard > 0 and now - replica.heard > self._stall_seconds
            if (replica.gone and silent > GONE_SECONDS) or (
                silent > self._stall_seconds and (attempt.begun or unheard)
            ):
                attempt.limit.reschedule(0.0)  # at once

    async def watch(self) -> None:
        """Look every second, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            self.look(loop.time())
