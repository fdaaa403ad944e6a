"""What stands before every route, behind the keys: the size of bodies, and the count of open requests. Plain ASGI.

Routes find in the request's `state`: `arrival` (seconds of CLOCK_MONOTONIC), and the `place` in the queue.
"""

import time
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo_common.body_share import Room
from octavo_server.frontend.refusal import ErrorObject, refuse
from octavo_server.frontend.state import ServerState

MAX_BODY_BYTES: Final = 16 * 2**20
MAX_HELD_BYTES: Final = 16 * MAX_BODY_BYTES  # of all requests that are open


class BodyLimit:
    """Refuses bodies that are too large, by their declared length or when they turn out to be, alone or together."""

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY_BYTES, most_held: int = MAX_HELD_BYTES) -> None:
        self._app = app
        self._limit = limit
        self._room = Room(most_held)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 or 503, or pass on, counting what is received."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._limit:
            answer = refuse(413, ErrorObject(self._message, code="body_too_large"), {"Connection": "close"})
            await answer(scope, receive, send)
            return
        received, share = 0, self._room.share()

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise HTTPException(413, self._message, {"Connection": "close"})
            share.hold(received)
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            share.release()

    @property
    def _message(self) -> str:
        return f"the body is larger than {self._limit} bytes"


class OpenRequests:
    """Counts the requests that a shutdown waits for, all but the probes, and gives each a place in the queue."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, counted."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        place = self._state.admission.place()
        scope.setdefault("state", {}).update(arrival=time.monotonic(), place=place)
        self._state.request_begins()
        try:
            await self._app(scope, receive, send)
        finally:
            place.leave()
            self._state.request_ends()
