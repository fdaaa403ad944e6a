"""Small real HTTP servers that tell metrics, well or badly: what a scraper meets in a cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from octavo_server.ipc import EngineStats, Ready
from octavo_server.metrics import ServerMetrics

Answer = Callable[["MetricServer", asyncio.StreamWriter], Awaitable[None]]


@dataclass
class MetricServer:
    """One that listens. `asked` counts requests, `heads` are their texts, `most_at_once` were answered together."""

    answer: Answer
    body: bytes = b""
    port: int = 0
    asked: int = 0
    at_once: int = 0
    most_at_once: int = 0
    heads: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/metrics"


@contextlib.asynccontextmanager
async def metric_server(
    answer: Answer, body: bytes = b"", address: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[MetricServer]:
    """A server for as long as the block, on a port of its own where none is given."""
    server = MetricServer(answer, body)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        # Not as the end of this task: the streams of 3.11 complain of a handler that was cancelled.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                server.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
                server.asked += 1
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
                try:
                    await server.answer(server, writer)
                finally:
                    server.at_once -= 1
        writer.transport.abort()

    handlers: set[asyncio.Task[None]] = set()
    listening = await asyncio.start_server(connected, address, port)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


def head(length: int | None, status: str = "200 OK", more: str = "") -> bytes:
    size = f"Content-Length: {length}\r\n" if length is not None else "Connection: close\r\n"
    return f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\n{size}{more}\r\n".encode()


async def tells(server: MetricServer, writer: asyncio.StreamWriter) -> None:
    writer.write(head(len(server.body)) + server.body)
    await writer.drain()


async def tells_slowly(server: MetricServer, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.05)
    await tells(server, writer)


async def hangs(_: MetricServer, __: asyncio.StreamWriter) -> None:
    """Takes the request and says nothing."""
    await asyncio.Event().wait()


async def hangs_in_the_middle(server: MetricServer, writer: asyncio.StreamWriter) -> None:
    writer.write(head(len(server.body)) + server.body[: len(server.body) // 2])
    await writer.drain()
    await asyncio.Event().wait()


async def drips(_: MetricServer, writer: asyncio.StreamWriter) -> None:
    """A byte now and then: no single read takes long, and there is no end."""
    writer.write(head(None))
    while not writer.is_closing():
        writer.write(b"#")
        await writer.drain()
        await asyncio.sleep(0.02)


async def floods(_: MetricServer, writer: asyncio.StreamWriter) -> None:
    """100 MB, well-formed, if somebody takes them."""
    line = b"octavo:kv_tokens_used 1\n"
    piece = line * (65536 // len(line))
    writer.write(head(100_000_000))
    for _ in range(100_000_000 // len(piece)):
        writer.write(piece)
        await writer.drain()


def server_exposition(**stats: float) -> bytes:
    """What a server of ours tells with such an engine, made by its own code."""
    metrics = ServerMetrics("demo")
    metrics.engine_ready(Ready(1, 1, 4096, 16, 1000, {}))
    told: dict[str, float] = {
        **dict.fromkeys(("running", "waiting", "waiting_prompt_tokens", "kv_blocks_used", "preemptions"), 0),
        **{"kv_blocks_total": 1000, "block_size": 16, "prompt_tokens": 0, "generation_tokens": 0},
        **{"steps": 1, "step_seconds": 0.01},
    }
    metrics.engine_stats(EngineStats(**(told | stats)))  # type: ignore[arg-type]
    body, _ = metrics.exposition("text/plain; version=0.0.4")
    return body
