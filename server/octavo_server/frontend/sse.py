"""Server-sent events, and answers that end when their client has gone."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo_server.errors import EngineError
from octavo_server.frontend.refusal import ErrorBody, ErrorObject, engine_error
from octavo_server.frontend.responses import encode

log = logging.getLogger(__name__)

T = TypeVar("T")
DONE: Final = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def frame(event: msgspec.Struct) -> bytes:
    """One event. JSON has no line breaks of its own, so one `data:` line holds it."""
    return b"data: " + encode(event) + b"\n\n"


async def until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _cancel(task, watcher)


async def stream(request: Request, events: AsyncGenerator[bytes, None]) -> Response:
    """An event stream that begins with its first event: what goes wrong before has a status of its own.

    Raises:
        ClientGone: the client left before the first event.
    """
    first = await until_disconnect(request, anext(events))
    return EventStream(first, events)


class EventStream(Response):
    """Sends events as they come, and closes their source when they end or the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        sender = asyncio.ensure_future(self._send_all(send))
        watcher = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(sender, watcher)
            await self._events.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for data in self._with_errors():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _with_errors(self) -> AsyncIterator[bytes]:
        """The events; an error becomes the last one, since the status has long been sent."""
        yield self._first
        try:
            async for data in self._events:
                yield data
        except EngineError as error:
            yield frame(ErrorBody(engine_error(error)))
        except Exception:
            log.exception("a stream broke off")
            yield frame(ErrorBody(ErrorObject("the server failed; its log says why", type="server_error")))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
