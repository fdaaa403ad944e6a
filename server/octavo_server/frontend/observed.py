"""Around the whole app: every request has an id, which its answer carries, and is told of when it ends.

Routes find in the request's `state`: its `record`, and `send`, which sends past all that is wrapped around a message:
a stream's pieces take it, token by token.
"""

import logging
import time
from typing import Final, Protocol
from urllib.parse import quote

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo_common import logs
from octavo_server.config import LoggedRequests
from octavo_server.frontend.refusal import ErrorBody
from octavo_server.frontend.request_record import REQUEST_ID, RequestRecord, access_fields, begin

log = logging.getLogger("octavo.access")

_QUIET: Final = frozenset({"/", "/health", "/ready", "/metrics", "/version"})  # asked for every few seconds
_ERROR_BYTES: Final = 64 * 1024


class Tracing(Protocol):
    """Where spans go, see `tracing.py`."""

    def record(self, record: RequestRecord, route: str) -> None:
        """A request has ended."""


class ObservedRequests:
    """The app, with ids, a line in the log and a span for each request."""

    def __init__(self, app: ASGIApp, logged: LoggedRequests, tracing: Tracing | None = None) -> None:
        self._app = app
        self._logged = logged
        log.setLevel(logging.CRITICAL if logged == "none" else logging.NOTSET)
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = begin(scope["method"], scope["headers"])
        logs.request_id.set(record.request_id)  # the server has a task for each request
        header = (REQUEST_ID.encode(), record.request_id.encode())
        state = scope.setdefault("state", {})
        state.update(record=record, send=send)

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), header]}
            elif record.status >= 400 and record.error is None:
                _read_error(record, message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:
            record.error = record.error or "server_error"
            raise
        finally:
            self._end(record, scope)
            # They lead back to the connection's state and so to this: a body must not wait for the collector of cycles.
            for name in ("send", "outlet"):
                state.pop(name, None)

    def _end(self, record: RequestRecord, scope: Scope) -> None:
        record.seconds = time.monotonic() - record.arrival
        route = getattr(scope.get("route"), "path", None) or scope["path"][:128]
        if self._tracing is not None and record.model is not None:
            self._tracing.record(record, route)
        failed = record.status >= 500 or record.status == 0 or (record.error is not None and record.status < 400)
        if self._logged == "errors" and not failed and record.status < 400:
            return
        quiet = route in _QUIET and record.error is None  # "not ready" is an answer like any other
        level = logging.DEBUG if quiet else logging.WARNING if failed else logging.INFO
        if log.isEnabledFor(level):
            told = access_fields(record, route, scope["state"].get("key"))
            log.log(level, "%s %s %d", record.method, _shown(route), record.status, extra=logs.fields(**told))


def _read_error(record: RequestRecord, body: bytes) -> None:
    """Every refusal has the same form, whoever it comes from."""
    if not 0 < len(body) <= _ERROR_BYTES:
        return
    try:
        error = msgspec.json.decode(body, type=ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    record.refused(error.code or error.type, error.param)


def _shown(path: str) -> str:
    """As one word: what a client made up should not look like what we say."""
    return quote(path, safe="/{}:.,~@+-_%")
