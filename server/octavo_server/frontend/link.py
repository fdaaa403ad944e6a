"""The engine's socket, in the event loop.

No thread of its own: two threads of Python take turns rather than run together, and what they do to each other whenever
one of them writes to a socket costs more than all that there is to do for a token. ZeroMQ's own thread moves the bytes.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextvars import copy_context
from pathlib import Path
from typing import Final

import zmq

from octavo_server.errors import EngineError

log = logging.getLogger(__name__)

_AT_ONCE: Final = 16  # messages that are handled together: those who wait for the first should not wait for long


class EngineLink:
    """The link to one engine. Made, used and closed in one event loop, which calls `receive`."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", path: Path, receive: Callable[[list[bytes]], Iterable[bytes]]
    ) -> None:
        """Bind to `path`, and hand what arrives there to `receive`, whose results are sent back.

        Raises:
            EngineError: there can be no socket at `path`.
        """
        self._receive = receive
        self._engine = _pair(context)
        try:
            self._engine.bind(f"ipc://{path}")
        except zmq.ZMQError as error:
            self._engine.close()
            raise EngineError(f"no socket at {path}: {error.strerror}; set TMPDIR to a short, writable path") from error
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(self._engine.getsockopt(zmq.FD))
        self._loop.add_reader(self._descriptor, self._take_in)
        self._again: asyncio.Handle | None = None
        self._context = copy_context()  # not that of a request which happens to send something
        self._look_again()

    def send(self, frame: bytes) -> None:
        """Send a message; never blocks. What is queued is bounded by the requests that are open."""
        try:
            self._engine.send(frame, zmq.NOBLOCK)
        except zmq.ZMQError as error:  # there is no limit on what may be queued, but nobody is there
            log.debug("the engine takes no messages: %s", error)
        self._look_again()

    def close(self) -> None:
        """Close the socket; what it did not get rid of by now is lost."""
        self._loop.remove_reader(self._descriptor)
        if self._again is not None:
            self._again.cancel()
        self._engine.close()

    def _take_in(self) -> None:
        self._again = None
        if frames := _waiting(self._engine):
            try:
                for reply in self._receive(frames):
                    self.send(reply)
            except Exception:
                log.exception("messages of the engine could not be handled")  # the next ones may be
        if not self._engine.closed:
            self._look_again()

    def _look_again(self) -> None:
        """The descriptor tells that something has changed, and any use of the socket may be what takes note of it."""
        if self._again is None and int(self._engine.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._again = self._loop.call_soon(self._take_in, context=self._context)


def _pair(context: "zmq.Context[zmq.Socket[bytes]]") -> "zmq.Socket[bytes]":
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    return socket


def _waiting(socket: "zmq.Socket[bytes]") -> list[bytes]:
    """Messages that are there already, some of them."""
    frames: list[bytes] = []
    try:
        while len(frames) < _AT_ONCE:
            frames.append(socket.recv(zmq.NOBLOCK))
    except zmq.Again:
        pass
    return frames
