"""A bare Starlette handler that streams, by the same uvicorn as ours: what `api_overhead.py` compares with.

    python benchmarks/bare_stream.py [--tls FILE]

A route that reads the request's JSON, and a `StreamingResponse` that gives out an event for every token. One timer in
the same process stands for the engine: every so many seconds (in the file that ECHO_STEP_SECONDS names) each open
stream gets its next event. Nothing is checked, tokenized, counted or made into JSON: the event is always the same, of
about the size of ours.
"""

import argparse
import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "operator", "benchmarks")]

import uvicorn  # noqa: E402
import uvloop  # noqa: E402
from echo_engine import STEP_SECONDS  # noqa: E402
from http_load import CHAT_EVENT, EVENT_WITH_TEXT  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import StreamingResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

_END: Final = b"data: [DONE]\n\n"


class Timer:
    """The source of tokens: every stream that is open gets one at each step."""

    def __init__(self, seconds_file: Path) -> None:
        self._seconds_file = seconds_file
        self._streams: dict[asyncio.Queue[bytes], tuple[int, bytes]] = {}

    def add(self, tokens: int, event: bytes) -> "asyncio.Queue[bytes]":
        """A stream of so many tokens, each an event; the last comes with the end, as one."""
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._streams[queue] = tokens, event
        return queue

    async def run(self) -> None:
        """For ever."""
        due, seconds = time.monotonic(), 0.0
        while True:
            if not self._streams:  # it is not this process's work in truth, so it does none of it while it is measured
                seconds = float(self._seconds_file.read_text())
            due = max(due + seconds, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            for queue, (left, event) in list(self._streams.items()):
                if left > 1:
                    self._streams[queue] = left - 1, event
                    queue.put_nowait(event)
                else:
                    del self._streams[queue]
                    queue.put_nowait(event + _END)


def app_of(timer: Timer) -> Starlette:
    """The one route."""

    async def events(tokens: int, event: bytes) -> AsyncIterator[bytes]:
        queue = timer.add(tokens, event)
        for _ in range(tokens):
            yield await queue.get()

    async def completions(request: Request) -> StreamingResponse:
        asked = await request.json()
        return StreamingResponse(events(asked["max_tokens"], EVENT_WITH_TEXT), media_type="text/event-stream")

    async def chat(request: Request) -> StreamingResponse:
        asked = await request.json()
        return StreamingResponse(events(asked["max_tokens"], CHAT_EVENT), media_type="text/event-stream")

    routes = {"/v1/completions": completions, "/v1/chat/completions": chat}
    return Starlette(routes=[Route(path, handler, methods=["POST"]) for path, handler in routes.items()])


async def serve(tls: str | None) -> None:
    """Until a signal; the first line on stdout ends with the address."""
    timer = Timer(Path(os.environ[STEP_SECONDS]))
    config = uvicorn.Config(
        app_of(timer),
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=60,
        ssl_certfile=tls,
        ssl_keyfile=tls,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    scheme = "http" if tls is None else "https"
    print(f"listening on {scheme}://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    parts = [asyncio.create_task(timer.run()), asyncio.create_task(uvicorn.Server(config).serve(sockets=[listener]))]
    ended, running = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
    for part in running:
        part.cancel()
    ended.pop().result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tls", help="certificate and key, in one file")
    uvloop.run(serve(parser.parse_args().tls))
