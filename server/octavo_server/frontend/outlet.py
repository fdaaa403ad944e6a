"""The short way between an answer and its connection: pieces of a stream, and that the client has gone."""

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Outlet:
    """Writes pieces of a streamed answer to its connection at once, past the task that sends it."""

    def __init__(self, cycle: RequestResponseCycle, watchers: "dict[Outlet, Callable[[], object]]") -> None:
        """watchers: whom the connection calls when it is lost."""
        self._cycle = cycle
        self._watchers = watchers

    def watch(self, gone: Callable[[], object]) -> None:
        """Call `gone` when the client leaves, or soon if it has. For whoever has received all of the body."""
        if self._cycle.disconnected:
            asyncio.get_running_loop().call_soon(gone)
            return
        self._watchers[self] = gone
        self._cycle.flow.resume_reading()  # else nothing is heard of it: a long body stops the reading

    def unwatch(self) -> None:
        """The counterpart of `watch`."""
        self._watchers.pop(self, None)

    @property
    def is_open(self) -> bool:
        """Whether a piece can be written now: the answer has begun, and the client reads as fast as it is written."""
        cycle = self._cycle
        return (
            cycle.response_started
            and not (cycle.response_complete or cycle.disconnected or cycle.flow.write_paused)
            and cycle.chunked_encoding is True
        )

    def write(self, piece: bytes) -> None:
        """Write a piece, which is not empty; only while it `is_open`."""
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
