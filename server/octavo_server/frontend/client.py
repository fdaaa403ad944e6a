"""The API process's view of the engine: requests go out, results come back, over one ZeroMQ pair.

One asyncio queue serves all prompts of an HTTP request. A stream that ends for any reason (stop string, disconnect,
cancellation, an error) aborts what it left unfinished. All of it runs in the event loop's thread.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
import zmq
import zmq.asyncio

from octavo_server import ipc
from octavo_server.errors import EngineError

log = logging.getLogger(__name__)

HANG_SECONDS: Final = 30.0
LAST_WORDS_SECONDS: Final = 0.3


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt with its sampling parameters; `request_id` is unique among all open requests."""

    request_id: str
    token_ids: list[int]
    sampling: ipc.SamplingParams


class OutputStream:
    """Results of the prompts of one HTTP request, as they come. Leaving it as a context aborts what is unfinished."""

    def __init__(self, client: "EngineClient", request_ids: Iterable[str]) -> None:
        self._client = client
        self._queue: asyncio.Queue[ipc.RequestOutput | EngineError] = asyncio.Queue()
        self.open_ids = set(request_ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort(tuple(self.open_ids))

    def put(self, item: ipc.RequestOutput | EngineError) -> None:
        """Called by the client: a result, or the end of the engine."""
        self._queue.put_nowait(item)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Give up some of the prompts: nothing more of them will come."""
        given_up = self.open_ids.intersection(request_ids)
        self.open_ids -= given_up
        self._client.abort(given_up)

    async def batches(self) -> AsyncGenerator[list[ipc.RequestOutput], None]:
        """Results until every prompt has ended; all that is there already comes together.

        Raises:
            EngineError: the engine died, or could not finish one of the prompts.
        """
        while self.open_ids:
            items = [await self._queue.get()]
            while not self._queue.empty():
                items.append(self._queue.get_nowait())
            batch = []
            for item in items:
                if isinstance(item, EngineError):
                    self.open_ids.clear()
                    raise item
                if item.request_id not in self.open_ids:
                    continue
                if item.finish_reason is not None:
                    self.open_ids.discard(item.request_id)
                if item.finish_reason == "error":
                    raise EngineError(item.error or "the engine could not finish this request")
                batch.append(item)
            if batch:
                yield batch


class EngineClient:
    """Sends requests to the engine of the present epoch and hands out its results."""

    def __init__(
        self,
        on_stats: Callable[[ipc.EngineStats | None], None] = lambda _: None,
        on_ready: Callable[[ipc.Ready], None] = lambda _: None,
    ) -> None:
        """`on_stats` gets the engine's state after its steps and when it is idle, and None when it is gone."""
        self._on_stats = on_stats
        self._on_ready = on_ready
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._streams: dict[str, OutputStream] = {}
        self._epoch = 0
        self._last_heard = 0.0
        self.ready: ipc.Ready | None = None
        self.phase = "starting"
        self.failure: str | None = None
        self._failed = asyncio.Event()

    @property
    def num_open(self) -> int:
        """Prompts that the engine works on or that wait for it."""
        return len(self._streams)

    @property
    def silent_seconds(self) -> float:
        """Time since the engine's last word."""
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
        self._epoch = epoch
        self.ready, self.failure, self.phase = None, None, "starting"
        self._failed.clear()
        socket = self._context.socket(zmq.PAIR)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)  # what is queued is bounded by the requests that are open
        socket.setsockopt(zmq.RCVHWM, 0)
        try:
            socket.bind(f"ipc://{path}")
        except zmq.ZMQError as error:
            socket.close()
            raise EngineError(f"no socket at {path}: {error.strerror}; set TMPDIR to a short, writable path") from error
        self._socket = socket
        self._reader = asyncio.create_task(self._read(socket), name="engine messages")

    def end_streams(self, reason: str) -> None:
        """End every open request with an error; the engine, if it still is there, forgets them."""
        streams = {id(stream): stream for stream in self._streams.values()}
        self.abort(list(self._streams))
        for stream in streams.values():
            stream.put(EngineError(reason))

    async def close(self, reason: str) -> None:
        """The engine is gone: end every open request with `reason`."""
        self.ready = None
        self.end_streams(reason)
        self._on_stats(None)
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def terminate(self) -> None:
        """Free the sockets' context; the client is of no use afterwards."""
        self._context.destroy(linger=0)

    async def last_words(self) -> None:
        """Wait a moment for the message with which an engine that gave up said why; it may still be on its way."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._failed.wait(), LAST_WORDS_SECONDS)

    def submit(self, prompts: Sequence[Prompt]) -> OutputStream:
        """Send prompts to the engine. Use the stream as a context.

        Raises:
            EngineError: the engine is not there.
        """
        if self.ready is None:
            raise EngineError(f"the engine is not ready: {self.phase}")
        stream = OutputStream(self, (prompt.request_id for prompt in prompts))
        arrival = time.time()
        for prompt in prompts:
            self._streams[prompt.request_id] = stream
            self._send(ipc.AddRequest(self._epoch, prompt.request_id, prompt.token_ids, prompt.sampling, arrival))
        return stream

    def abort(self, request_ids: Iterable[str]) -> None:
        """Tell the engine that nobody waits for these any more."""
        known = [request_id for request_id in request_ids if self._streams.pop(request_id, None) is not None]
        if known:
            self._send(ipc.Abort(self._epoch, known))

    def shut_down(self) -> None:
        """Ask the engine to end after the step in flight."""
        self._send(ipc.Shutdown(self._epoch))

    def _send(self, message: ipc.FrontendMessage) -> None:
        if self._socket is None:
            return
        # Sends at once, since there is no limit on what may be queued; the future only carries an error.
        sent = asyncio.ensure_future(self._socket.send(ipc.encoder.encode(message), zmq.NOBLOCK))
        if sent.done() and (error := sent.exception()) is not None:
            log.debug("the engine takes no messages: %s", error)

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frame = await socket.recv()
            try:
                message = ipc.engine_decoder.decode(frame)
            except (msgspec.DecodeError, UnicodeDecodeError):
                log.warning("dropped a message of %d bytes that is none of the engine's", len(frame))
                continue
            if message.epoch == self._epoch:
                self._last_heard = time.monotonic()
                self._take(message)

    def _take(self, message: ipc.EngineMessage) -> None:
        match message:
            case ipc.Outputs():
                self._on_stats(message.stats)
                for output in message.outputs:
                    self._dispatch(output)
            case ipc.Starting():
                self.phase = message.phase
                log.info("engine: %s (after %.1f s)", message.phase, message.seconds)
            case ipc.Ready():
                self._become_ready(message)
            case ipc.Failed():
                self._fail(message.message)

    def _dispatch(self, output: ipc.RequestOutput) -> None:
        stream = self._streams.get(output.request_id)
        if stream is None:
            return  # aborted: its last step was in flight
        if output.finish_reason is not None:
            del self._streams[output.request_id]
        stream.put(output)

    def _become_ready(self, message: ipc.Ready) -> None:
        if message.version != ipc.PROTOCOL_VERSION:
            self._fail(f"the engine speaks protocol {message.version}, this process {ipc.PROTOCOL_VERSION}")
            return
        self.ready, self.phase = message, "ready"
        phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in message.phases.items())
        log.info("engine: ready for contexts of %d tokens (%s)", message.max_model_len, phases)
        self._on_ready(message)

    def _fail(self, message: str) -> None:
        self.failure = message
        self._failed.set()
