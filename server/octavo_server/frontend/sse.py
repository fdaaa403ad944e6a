"""Server-sent events, and answers that end when their client has gone."""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Protocol, TypeVar

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
_MARK: Final = uuid.uuid4().hex  # stands for a text; nobody could have put it anywhere else in an event


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def frame(event: msgspec.Struct) -> bytes:
    """One event. JSON has no line breaks of its own, so one `data:` line holds it."""
    return b"data: " + encode(event) + b"\n\n"


class TextFrames:
    """Events that differ in nothing but a text, as nearly all of a stream do: what stays the same is encoded once."""

    def __init__(self, event_of: Callable[[str], msgspec.Struct]) -> None:
        """`event_of` makes such an event, in which the text stands, maybe several times."""
        self._around = frame(event_of(_MARK)).split(encode(_MARK))
        if len(self._around) == 1:
            raise ValueError("the event has to hold its text")

    def __call__(self, text: str) -> bytes:
        """The event with this text."""
        return encode(text).join(self._around)


async def until_disconnect(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away.

    It runs in the task that calls, as with `asyncio.timeout`: a task of its own would cost as much as what it does.

    Raises:
        ClientGone: it did.
    """
    task, working, gone = asyncio.current_task(), True, False
    if task is None:
        raise RuntimeError("it needs a task to cancel")

    def leave(watcher: "asyncio.Task[None]") -> None:
        nonlocal gone
        if working and not watcher.cancelled():
            watcher.exception()  # whatever it was, the connection is of no use
            gone = task.cancel()

    watcher = asyncio.create_task(_disconnected(receive))
    watcher.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientGone from None
        raise  # somebody else wants it to end, too
    finally:
        working = False
        watcher.cancel()


async def stream(request: Request, job: Awaitable["Streamed"]) -> Response:
    """An event stream that begins with its first event: what goes wrong before has a status of its own.

    Raises:
        ClientGone: the client left before the first event.
    """

    async def begin() -> Response:
        events = (await job).events()
        return EventStream(await anext(events), events)

    return await until_disconnect(request.receive, begin())


class Streamed(Protocol):
    """A request whose answer is streamed."""

    def events(self) -> AsyncGenerator[bytes, None]:
        """Its events."""


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
        try:
            await until_disconnect(receive, self._send_all(scope, send))
        except ClientGone:
            log.debug("a client left its stream")
        finally:
            await self._events.aclose()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        # The framework had to see the beginning; the rest, which comes token by token, takes the short way.
        send_body: Send = scope.get("state", {}).get("send", send)
        last, data = b"", self._first
        try:
            while data and not data.endswith(DONE):
                await send_body(_body(data))
                data = await anext(self._events, b"")  # responses end without that word
            last = data  # with the answer's end, as one write
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
