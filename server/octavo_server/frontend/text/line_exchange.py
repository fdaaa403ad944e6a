"""A line to a process and its answer, in the event loop: two turns of a thread cost more than a short one does."""

import asyncio
from typing import Protocol

from octavo_server.frontend.text.line_process import LineProcess


class Done(Protocol):
    """Is called once with the answer, which is empty if the process has gone, or did not answer in time: `late`."""

    def __call__(self, answer: bytes, *, late: bool) -> None:
        """It has ended."""


class LineExchange:
    """Of one process, which nobody else asks meanwhile."""

    def __init__(self, process: LineProcess, line: bytes, seconds: float, done: "Done") -> None:
        """Write the line, and let `done` know what came of it."""
        self._loop = asyncio.get_running_loop()
        self._process, self._done = process, done
        self._pending = memoryview(line)
        self._received = bytearray()
        self._timer = self._loop.call_later(seconds, lambda: self._end(b"", late=True))
        self._loop.add_reader(process.answers, self._read)
        if self._write():
            self._loop.add_writer(process.questions, self._write)

    def _write(self) -> bool:
        """Whether some of it is left."""
        try:
            self._pending = self._process.write(self._pending)
        except BrokenPipeError:
            self._pending = memoryview(b"")  # there is nothing to be read either, which is what tells
        if not self._pending:
            self._loop.remove_writer(self._process.questions)
        return bool(self._pending)

    def _read(self) -> None:
        piece = self._process.read()
        self._received += piece
        if not piece or piece.endswith(b"\n"):
            self._end(bytes(self._received) if piece else b"", late=False)

    def _end(self, answer: bytes, *, late: bool) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._process.answers)
        self._loop.remove_writer(self._process.questions)
        self._done(answer, late=late)
