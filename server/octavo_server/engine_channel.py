"""The engine's end of the socket, and the messages that wait between two steps."""

import logging
from collections import deque
from collections.abc import Iterator
from typing import Final

import msgspec
import zmq

from octavo_server import ipc

log = logging.getLogger(__name__)

_LINGER_MS: Final = 1000  # for the last messages, if nobody reads them


class Channel:
    """The engine's end of the socket. Only messages of its epoch get through, and garbage does not."""

    def __init__(self, path: str, epoch: int) -> None:
        self.epoch = epoch
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # a slow reader must not stop the step loop
        self._socket.connect(f"ipc://{path}")
        self._told_of_garbage = False

    def send(self, message: ipc.EngineMessage) -> None:
        """Queues a message; never blocks."""
        self._socket.send(ipc.encoder.encode(message))

    def receive(self, timeout: float) -> list[bytes]:
        """All messages that are there, not decoded, waiting up to `timeout` seconds for the first."""
        if not self._socket.poll(int(timeout * 1000)):
            return []
        found: list[bytes] = []
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return found
            if len(frames) == 1:
                found.append(frames[0])

    def decode(self, frame: bytes) -> ipc.FrontendMessage | None:
        """A message of this epoch; None if it is none."""
        try:
            message = ipc.frontend_decoder.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if not self._told_of_garbage:
                log.warning(
                    "dropped a message of %d bytes that is none of ours; more of them will not be logged", len(frame)
                )
            self._told_of_garbage = True
            return None
        return message if message.epoch == self.epoch else None

    def close(self) -> None:
        """Gives queued messages a moment to go out."""
        self._socket.close()
        zmq.Context.instance().term()


class Inbox:
    """Messages that are there and not handled. Those that bring requests wait here, the others go before them.

    What aborts a request that waits here takes it out, so that a request given up costs no more than was done for it.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._frames: deque[bytes] = deque()  # that bring requests
        self._urgent: deque[ipc.Abort | ipc.Shutdown] = deque()
        self._requests: Iterator[ipc.AddRequest] = iter(())  # those left of the frame in hand
        self._in_hand = False
        self._aborted: set[str] = set()  # since requests have been waiting here

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not (self._frames or self._urgent or self._in_hand)

    def fill(self, timeout: float) -> bool:
        """Take over what is there, waiting up to `timeout` seconds for the first; whether there was anything."""
        frames = self._channel.receive(timeout)
        for frame in frames:
            if ipc.brings_requests(frame):
                self._frames.append(frame)
                continue
            message = self._channel.decode(frame)
            if isinstance(message, ipc.Abort | ipc.Shutdown):
                self._urgent.append(message)
        return bool(frames)

    def messages(self) -> Iterator[ipc.AddRequest | ipc.Abort | ipc.Shutdown]:
        """One after the other. Whoever stops in between finds the rest the next time."""
        while self._urgent:
            message = self._urgent.popleft()
            if isinstance(message, ipc.Abort) and not self.is_empty:
                self._aborted.update(message.request_ids)
            yield message
        while (request := self._next()) is not None:
            if request.request_id not in self._aborted:
                yield request
        self._aborted.clear()

    def _next(self) -> ipc.AddRequest | None:
        while True:
            if (request := next(self._requests, None)) is not None:
                return request
            self._in_hand = False
            if not self._frames:
                return None
            message = self._channel.decode(self._frames.popleft())
            if isinstance(message, ipc.AddRequest | ipc.AddChoices):
                self._requests, self._in_hand = ipc.requests_of(message), True
