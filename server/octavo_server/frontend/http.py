"""uvicorn, embedded: its signals are ours, and the head of a request is bounded.

uvicorn with httptools takes headers of any length into memory. Here the bytes of a request's head are counted as they
arrive, and their number too, before anything is made of them.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Generator
from http import HTTPStatus
from typing import Any, Final

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from octavo_server import logs
from octavo_server.frontend.refusal import ErrorBody, ErrorObject
from octavo_server.frontend.request_record import REQUEST_ID, new_id

log = logging.getLogger("octavo.access")

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 100


_Refusal = tuple[HTTPStatus, str, str]  # message, code
_TOO_LARGE: Final = (
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "the headers of the request are too large",
    "headers_too_large",
)
_MALFORMED: Final = (HTTPStatus.BAD_REQUEST, "the request is not valid HTTP", "invalid_http")


def _answer(refusal: _Refusal) -> bytes:
    """A whole answer with an OpenAI error object, for requests that never reach the app."""
    (status, message, code), request_id = refusal, new_id()
    log.info("refused", extra=logs.fields(request_id=request_id, status=status.value, error=code))
    body = msgspec.json.encode(ErrorBody(ErrorObject(message, code=code)))
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return f"{head}{REQUEST_ID}: {request_id}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


class Outlet:
    """Writes pieces of a streamed answer to its connection at once, past the task that sends it."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def is_open(self) -> bool:
        """Whether a piece can be written now: the answer has begun, and the client reads as fast as it is written."""
        cycle = self._cycle
        return (
            cycle.response_started
            and not (cycle.response_complete or cycle.disconnected or cycle.flow.write_paused)
            and cycle.chunked_encoding is True
        )

    def write(self, piece: bytes) -> None:
        """Write a piece, which is not empty; only while it `is_open`."""
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection whose request head exceeds its bounds, with status 431."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = self._begun_here = False
        self._unfinished = 0  # bytes received of a head that is not complete, but for those it began with
        self._head = 0  # bytes of the target and the complete headers
        self._refused = False

    def data_received(self, data: bytes) -> None:
        """Count what arrives while a head is incomplete: an endless header never reaches `on_header`."""
        if self._refused:
            return
        self._begun_here = False
        super().data_received(data)
        # Data in which a head begins may hold an earlier request's body too; it is one read from the socket at most.
        if self._in_head and not self._begun_here:
            self._unfinished += len(data)
            if self._unfinished > MAX_HEAD_BYTES:
                self._refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = self._begun_here = True
        self._head = self._unfinished = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._head += len(url)
        if self._head <= MAX_HEAD_BYTES:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A complete header; beyond the bounds it is not kept."""
        self._head += len(name) + len(value)
        if self._head <= MAX_HEAD_BYTES and len(self.headers) <= MAX_HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete: the request is started if it is within the bounds."""
        self._in_head = False
        if self._head > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._refuse(_TOO_LARGE)
        else:
            super().on_headers_complete()
            if self.cycle is not None:
                self.scope["state"]["outlet"] = Outlet(self.cycle)  # its task has not begun yet

    def on_body(self, body: bytes) -> None:
        """A part of the body, of no interest once refused."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete; another may follow on the connection."""
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """The parser does not understand the request; uvicorn's `msg` says no more than that."""
        self._refuse(_MALFORMED)

    def _refuse(self, refusal: _Refusal) -> None:
        if not self._refused and self.transport is not None:
            self._refused = True
            self.transport.write(_answer(refusal))
            self.transport.close()


class HttpServer(uvicorn.Server):
    """uvicorn that leaves the signals to the process it runs in."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so by the event."""
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take none."""
        yield


def http_server(app: Any, *, log_level: str, graceful_seconds: int) -> HttpServer:
    """A server for an ASGI app; what it does not answer within `graceful_seconds` of its end is cut off."""
    config = uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning" if log_level == "info" else log_level,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=graceful_seconds,
    )
    return HttpServer(config)
