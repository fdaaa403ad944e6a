"""The engine's socket, and the one thread that reads and writes it.

ZeroMQ sockets belong to one thread. What others have to send goes through an in-process pair, which wakes the thread
as a message of the engine does; without either it sleeps.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import zmq

from octavo_server.errors import EngineError

log = logging.getLogger(__name__)

_END: Final = b""  # no message of the protocol is empty
_AT_ONCE: Final = 16  # messages that are handled together: those who wait for the first should not wait for long


class EngineLink:
    """The link to one engine. Made, used and closed by one thread; `receive` is called in the link's own."""

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
        self._outbox, self._inbox = _pair(context), _pair(context)
        name = f"inproc://link-{id(self)}"
        self._outbox.bind(name)
        self._inbox.connect(name)
        self._thread = threading.Thread(target=self._run, name="engine link", daemon=True)
        self._thread.start()

    def send(self, frame: bytes) -> None:
        """Send a message; never blocks. What is queued is bounded by the requests that are open."""
        self._outbox.send(frame)

    def close(self) -> None:
        """Send what was given to `send`, then end the thread. Waits for it: milliseconds."""
        self._outbox.send(_END)
        self._thread.join()
        self._outbox.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._engine, zmq.POLLIN)
        poller.register(self._inbox, zmq.POLLIN)
        try:
            while True:
                poller.poll()
                for frame in _waiting(self._inbox):
                    if frame == _END:
                        return
                    self._to_engine(frame)
                if frames := _waiting(self._engine):
                    self._handle(frames)
        finally:
            self._engine.close()
            self._inbox.close()

    def _handle(self, frames: list[bytes]) -> None:
        try:
            for reply in self._receive(frames):
                self._to_engine(reply)
        except Exception:
            log.exception("messages of the engine could not be handled")  # the next ones may be

    def _to_engine(self, frame: bytes) -> None:
        try:
            self._engine.send(frame, zmq.NOBLOCK)
        except zmq.ZMQError as error:  # there is no limit on what may be queued, but nobody is there
            log.debug("the engine takes no messages: %s", error)


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
