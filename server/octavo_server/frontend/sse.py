"""Server-sent events, and answers that end when their client has gone."""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

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


class TextFrames:
    """Events that differ in nothing but a text, as nearly all of a stream do: what stays the same is encoded once."""

    def __init__(self, event_of: Callable[[str], msgspec.Struct]) -> None:
        """`event_of` makes such an event, in which the text stands once."""
        mark = uuid.uuid4().hex  # nobody could have put it anywhere else in the event
        before, found, after = frame(event_of(mark)).partition(encode(mark))
        if not found or encode(mark) in after:
            raise ValueError("the event has to hold its text once")
        self._before, self._after = before, after

    def __call__(self, text: str) -> bytes:
        """The event with this text."""
        return self._before + encode(text) + self._after


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
        sender = asyncio.ensure_future(self._send_all(scope, send))
        watcher = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(sender, watcher)
            await self._events.aclose()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        # The framework had to see the beginning; the rest, which comes token by token, takes the short way.
        send_body: Send = scope.get("state", {}).get("send", send)
        await send_body(_body(self._first))
        last = b""
        try:
            async for data in self._events:
                await send_body(_body(data))
        except EngineError as error:  # it becomes the last event: the status has long been sent
            last = frame(ErrorBody(engine_error(error)))
        except Exception:
            log.exception("a stream broke off")
            last = frame(ErrorBody(ErrorObject("the server failed; its log says why", type="server_error")))
        await send_body(_body(last, more=False))


def _body(data: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
