"""The API process's view of the engine: requests go out, results come back, over one ZeroMQ pair.

The event loop decodes the engine's messages and turns tokens into text, for all that arrived together, and then wakes
those who wait for it. A stream that ends for any reason (disconnect, cancellation, an error) aborts what it left
unfinished.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
import zmq

from octavo_server import ipc
from octavo_server.errors import EngineError
from octavo_server.frontend.link import EngineLink
from octavo_server.frontend.output_stream import Choice, OutputStream

log = logging.getLogger(__name__)

HANG_SECONDS: Final = 25.0  # and at most two looks of the supervisor more: an engine that hangs is killed within 30 s
LAST_WORDS_SECONDS: Final = 0.3


class EngineClient:
    """Sends requests to the engine of the present epoch and hands out its results. Of the event loop alone."""

    def __init__(
        self,
        on_stats: Callable[[ipc.EngineStats | None], None] = lambda _: None,
        on_ready: Callable[[ipc.Ready], None] = lambda _: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_stats` gets the engine's state after its steps and when it is idle, and None when it is gone.

        `on_end` is called for each choice that ended by itself.
        """
        self._on_stats = on_stats
        self._on_ready = on_ready
        self._on_end = on_end
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._link: EngineLink | None = None
        self._streams: dict[str, OutputStream] = {}
        self._last_heard = 0.0
        self.epoch = 0
        self.ready: ipc.Ready | None = None
        self.stats: ipc.EngineStats | None = None
        self.phase = "starting"
        self.failure: str | None = None
        self._failed = asyncio.Event()

    @property
    def num_open(self) -> int:
        """Choices that the engine works on or that wait for it."""
        return len(self._streams)

    @property
    def some_ids(self) -> list[str]:
        """The first of them, for a report."""
        return list(islice(self._streams, 20))

    @property
    def silent_seconds(self) -> float:
        """Time since the engine's last word, or since its start."""
        return time.monotonic() - self._last_heard

    @property
    def hangs(self) -> bool:
        """Whether an engine that was ready has been silent for too long."""
        return self.ready is not None and self.silent_seconds > HANG_SECONDS

    def open(self, path: Path, epoch: int) -> None:
        """Bind the socket for a new engine and listen to it. `path` lies in a directory that only we may enter.

        Raises:
            EngineError: there can be no socket at `path`.
        """
        self.epoch, self.ready, self.stats, self.failure, self.phase = epoch, None, None, None, "starting"
        self._failed.clear()
        self._last_heard = time.monotonic()
        self._link = EngineLink(self._context, path, partial(self._receive, epoch))

    def end_streams(self, reason: str) -> None:
        """End every open request with an error; the engine, if it still is there, forgets them."""
        streams = self._streams.copy()
        self._give_up(streams)
        for stream in set(streams.values()):
            stream.fail(EngineError(reason))

    def close(self, reason: str) -> None:
        """The engine is gone: end every open request with `reason`."""
        if self.ready is not None:
            self.ready, self.phase = None, "restarting"
        self.end_streams(reason)
        self.epoch = 0
        self._close_link()
        self._on_stats(None)

    def terminate(self) -> None:
        """Free the sockets and their context; the client is of no use afterwards."""
        self._close_link()
        self._context.term()

    async def last_words(self) -> None:
        """Wait a moment for the message with which an engine that gave up said why; it may still be on its way."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._failed.wait(), LAST_WORDS_SECONDS)

    def submit(self, choices: Sequence[Choice], *, whole: bool = False) -> OutputStream:
        """Send requests to the engine. Use the stream as a context; with `whole` it tells nothing before the end.

        Raises:
            EngineError: the engine is not there, or not the one that the choices were made for.
        """
        if self.ready is None or self._link is None:
            raise EngineError(f"the engine is not ready: {self.phase}")
        if any(choice.epoch != self.epoch for choice in choices):
            raise EngineError("the engine was started again before it got this request")
        stream = OutputStream(choices, self._give_up, whole=whole)
        self._streams.update((choice.request_id, stream) for choice in choices)  # before the first can be answered
        for choice in choices:
            if choice.frame is not None:
                self._link.send(choice.frame)
        return stream

    def shut_down(self) -> None:
        """Ask the engine to end after the step in flight."""
        if self._link is not None:
            self._link.send(ipc.encoder.encode(ipc.Shutdown(self.epoch)))

    def _close_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _give_up(self, request_ids: Iterable[str]) -> None:
        """Tell the engine that nobody waits for these any more."""
        known = [request_id for request_id in request_ids if self._streams.pop(request_id, None) is not None]
        if known and self._link is not None:
            self._link.send(ipc.encoder.encode(ipc.Abort(self.epoch, known)))

    def _receive(self, epoch: int, frames: list[bytes]) -> list[bytes]:
        """Messages that arrived together; what is to be sent to the engine in return."""
        touched: set[OutputStream] = set()
        surplus: list[str] = []
        stats: list[ipc.EngineStats] = []
        others: list[ipc.EngineMessage] = []
        for frame in frames:
            message = _decode(frame)
            if message is None or message.epoch != epoch:
                continue
            self._last_heard = time.monotonic()
            if isinstance(message, ipc.Outputs):
                stats.append(message.stats)
                for output in message.outputs:
                    self._dispatch(output, touched, surplus)
            else:
                others.append(message)
        for stream in touched:
            stream.tell()
        for other in others:
            self._take(other)
        self._show(stats)
        return [ipc.encoder.encode(ipc.Abort(epoch, surplus))] if surplus else []

    def _show(self, entries: list[ipc.EngineStats]) -> None:
        try:
            for self.stats in entries:
                self._on_stats(self.stats)
        except Exception:
            log.exception("the engine's state could not be shown")  # nobody's answer depends on it

    def _dispatch(self, output: ipc.RequestOutput, touched: set[OutputStream], surplus: list[str]) -> None:
        stream = self._streams.get(output.request_id)
        if stream is None:
            return  # aborted: its last step was in flight
        touched.add(stream)
        if stream.take(output):
            if self._streams.pop(output.request_id, None) is not None:
                self._on_end()
            if output.finish_reason is None:
                surplus.append(output.request_id)  # ended by a stop string, of which the engine knows nothing

    def _take(self, message: ipc.EngineMessage) -> None:
        match message:
            case ipc.Starting():
                self.phase = message.phase
                log.info("engine: %s (after %.1f s)", message.phase, message.seconds)
            case ipc.Ready():
                self._become_ready(message)
            case ipc.Failed():
                self._fail(message.message)

    def _become_ready(self, message: ipc.Ready) -> None:
        if message.version != ipc.PROTOCOL_VERSION:
            self._fail(f"the engine speaks protocol {message.version}, this process {ipc.PROTOCOL_VERSION}")
            return
        self.ready, self.phase = message, "ready"
        phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in message.phases.items())
        if message.figures:
            log.info("engine: %s", _told(message.figures))
        log.info("engine: ready for contexts of %d tokens (%s)", message.max_model_len, phases)
        self._on_ready(message)

    def _fail(self, message: str) -> None:
        self.failure = message
        self._failed.set()


def _told(figures: dict[str, float]) -> str:
    """What was noted at the start, for people."""
    size, seconds = figures["weights_bytes"] / 1e9, figures["weights_seconds"]
    told = f"{size:.1f} GB of weights read in {seconds:.1f} s ({size / max(seconds, 1e-9):.1f} GB/s)"
    if "kernels" in figures:
        told += f", {figures['kernels']:.0f} kernels made ready in {figures['kernels_seconds']:.1f} s"
        told += f" ({figures['kernels_cached']:.0f} of them compiled before)"
    return told


def _decode(frame: bytes) -> ipc.EngineMessage | None:
    try:
        message: ipc.EngineMessage = ipc.engine_decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError):
        log.warning("dropped a message of %d bytes that is none of the engine's", len(frame))
        return None
    return message
