"""The short way of a streamed answer's pieces to their connection."""

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Outlet:
    """Writes pieces of a streamed answer to its connection at once, past the task that sends it."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

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
