"""One HTTP connection: uvicorn's protocol on httptools, with bounds on bytes and on time.

uvicorn takes headers of any length into memory, and waits for the rest of a request forever. Here the bytes of a head
are counted as they arrive, and their number too, before anything is made of them; the end of a chunked body likewise.
A client has some time for a head, and some for a body, which grows with what arrives of it: who sends byte by byte is
answered with 408. What is late is looked for every second, as that costs a request least.
"""

import logging
import math
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from octavo_common import logs
from octavo_server.frontend.access.doors import Door
from octavo_server.frontend.ids import new_id
from octavo_server.frontend.limits import MAX_BODY_BYTES
from octavo_server.frontend.outlet import Outlet
from octavo_server.frontend.refusal import ErrorBody, ErrorObject
from octavo_server.frontend.request_record import REQUEST_ID

log = logging.getLogger("octavo.access")

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 100
HEAD_SECONDS: Final = 20.0  # from a connection's beginning, or a request's first byte, to the end of its head
BODY_SECONDS: Final = 30.0
BODY_BYTES_PER_SECOND: Final = 16 * 1024  # at which a body may go on for longer
BODY_MOST_SECONDS: Final = 120.0  # however much comes: the largest takes that long at 1.1 Mbit/s
IDLE_SECONDS: Final = 60.0  # between two requests
UNREAD_SECONDS: Final = 600.0  # that a client may not read what it asked for
HASTE_SECONDS: Final = 1.0  # in which a head is complete of whoever is not slow
FAREWELL_SECONDS: Final = 2.0  # for a client to read why it was refused
SPARE_CONNECTIONS: Final = 64  # beyond the most, which only probes use where no connection is idle


class _Refusal(NamedTuple):
    status: HTTPStatus
    message: str
    code: str
    type: str = "invalid_request_error"


_TOO_LARGE: Final = _Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers of the request are too large", "headers_too_large"
)
_MALFORMED: Final = _Refusal(HTTPStatus.BAD_REQUEST, "the request is not valid HTTP", "invalid_http")
_TOO_SLOW: Final = _Refusal(HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time", "request_timeout")
_CROWDED: Final = _Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "there are too many connections", "too_many_connections", "server_error"
)
_IDLE_LOOKED_AT: Final = 8  # by each connection that comes
_PROBES: Final = frozenset({b"/health", b"/ready"})


def _answer(refusal: _Refusal, request_id: str) -> bytes:
    """A whole answer with an OpenAI error object, for requests that the app does not answer; the log tells of it."""
    status, message, code, kind = refusal
    log.info("refused", extra=logs.fields(request_id=request_id, status=status.value, error=code))
    body = msgspec.json.encode(ErrorBody(ErrorObject(message, type=kind, code=code)))
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        head += "retry-after: 1\r\n"
    return f"{head}{REQUEST_ID}: {request_id}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def _framing(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The headers that say where a body ends, if there is one."""
    kept = [(name, value) for name, value in headers if name in (b"content-length", b"transfer-encoding")]
    return b"".join(b"%s: %s\r\n" % header for header in kept if header[1].strip(b"0"))


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection whose request exceeds its bounds: with 431, 408, 400, or 503 where there are too many."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._door: Door = self.app_state["door"]
        self._in_head = self._in_body = self._begun_here = self._body_here = False
        self._head = 0  # bytes of the target and the complete headers
        self._unfinished = 0  # bytes in a row that made neither a head nor a body complete, or longer
        self._unwanted = 0  # bytes of a body that came after its answer
        self._refused = self._surplus = self._resuming = False
        self._framing = b""  # the headers that say where the body ends, of a request that asks for another protocol
        self._deadline = math.inf  # of what is expected of the client, if anything is
        self._body_latest = math.inf  # that a body's deadline may become
        self._unread, self._unread_since = 0, math.inf

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
        self._deadline = self.loop.time() + HEAD_SECONDS
        excess = len(self._door.connections) - self._door.max_connections
        self._door.connections.add(self)
        self._surplus = excess >= 0
        made_room = self._surplus and self._make_room(urgent=excess >= SPARE_CONNECTIONS)
        if excess >= SPARE_CONNECTIONS and not made_room:
            self._refuse(_CROWDED)
        else:
            self._door.idle[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._door.connections.discard(self)
        self._door.idle.pop(self, None)
        self._door.heads.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives while something is incomplete: an endless header never reaches `on_header`."""
        if self._refused:
            return
        if not self._in_head and not self._in_body and self._deadline != math.inf:  # a request may begin
            self._deadline = min(self._deadline, self.loop.time() + HEAD_SECONDS)
        self._door.idle.pop(self, None)
        self._begun_here = self._body_here = False
        self._unset_keepalive_if_required()
        self._feed(data)
        # Data in which a head begins may hold an earlier request's body too; it is one read from the socket at most.
        if (self._in_head and not self._begun_here) or (self._in_body and not self._body_here):
            self._unfinished += len(data)
            if self._unfinished > MAX_HEAD_BYTES:
                self._refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._resuming:
            return
        self._door.idle.pop(self, None)
        self._in_head = self._begun_here = True
        self._door.heads[self] = self.loop.time()
        self._head = self._unfinished = self._unwanted = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        if self._resuming:
            return
        self._head += len(url)
        if self._head <= MAX_HEAD_BYTES:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A complete header. Beyond the bounds it is not kept, nor behind a body: it would pass for one before it."""
        if self._resuming:
            return
        self._head += len(name) + len(value)
        if not self._in_head:
            if self._head > MAX_HEAD_BYTES:
                self._refuse(_TOO_LARGE)
        elif self._head <= MAX_HEAD_BYTES and len(self.headers) <= MAX_HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete: the request is started if it is within the bounds."""
        if self._resuming:
            return
        self._door.heads.pop(self, None)
        if self._head > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._refuse(_TOO_LARGE)
        elif self._surplus and len(self._door.connections) > self._door.max_connections and self.url not in _PROBES:
            self._refuse(_CROWDED)
        else:
            self._in_head, self._in_body, self._unfinished = False, True, 0
            self._expect_body()
            self._framing = _framing(self.headers) if self.parser.should_upgrade() else b""
            super().on_headers_complete()
            if self.cycle is not None:
                self.scope["state"]["outlet"] = Outlet(self.cycle)  # its task has not begun yet

    def on_body(self, body: bytes) -> None:
        """A part of the body, of no interest once refused or answered."""
        if self._refused:
            return
        self._body_here, self._unfinished = True, 0
        self._deadline = min(self._deadline + len(body) / BODY_BYTES_PER_SECOND, self._body_latest)
        if self.cycle.response_complete:
            self._unwanted += len(body)
            if self._unwanted > MAX_BODY_BYTES:
                self._refuse(None)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete; another may follow on the connection."""
        if not self._refused and not self._framing:
            self._in_body = False
            self._deadline = math.inf
            if self.cycle.response_complete:
                self._wait_for_the_next()
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is complete: it is the client's turn, or that of the next request that it has sent already."""
        super().on_response_complete()
        if not self.cycle.response_complete:
            self._deadline = math.inf
            if self._in_body:
                self._expect_body()
        elif not self._in_body:  # the rest of a body that is answered has the time that it had
            self._wait_for_the_next()

    def _wait_for_the_next(self) -> None:
        self._deadline = self.loop.time() + (HEAD_SECONDS if self._in_head else IDLE_SECONDS)
        if not self._in_head and not self._refused:
            self._door.idle[self] = None

    def _close_an_idle_one(self) -> bool:
        """Whether there was one. At once: it has nothing to send, and a farewell of TLS would wait for its client."""
        for _ in range(min(len(self._door.idle), _IDLE_LOOKED_AT)):
            other = next(iter(self._door.idle))
            if other.transport.get_write_buffer_size() == 0:
                del self._door.idle[other]
                self._door.connections.discard(other)
                other.transport.abort()
                return True
            self._door.idle.move_to_end(other)  # it still reads its answer
        return False

    def _make_room(self, *, urgent: bool) -> bool:
        """Whether there was any to be made. Halves of requests go first: whoever sends them keeps nobody from here."""
        made = False
        while len(self._door.connections) > self._door.max_connections and self._close_a_head(HASTE_SECONDS):
            made = True
        return made or self._close_an_idle_one() or (urgent and self._close_a_head(0.0))

    def _close_a_head(self, seconds: float) -> bool:
        """Whether there was one that has been incomplete for so long; the oldest is closed."""
        for other, begun in self._door.heads.items():
            if begun > self.loop.time() - seconds:
                return False
            if not other.pipeline and (other.cycle is None or other.cycle.response_complete):  # none is being answered
                del self._door.heads[other]
                self._door.connections.discard(other)
                other.transport.abort()
                return True
        return False

    def _expect_body(self) -> None:
        now = self.loop.time()
        self._deadline, self._body_latest = now + BODY_SECONDS, now + BODY_MOST_SECONDS

    def look(self, now: float) -> None:
        """Close the connection if its client is late or does not read; called about every second of the loop's time."""
        if self.transport.is_closing() or self.flow.write_paused:  # nothing is added to what is to be sent
            unread = self.transport.get_write_buffer_size()
            if unread != self._unread or self._unread_since == math.inf:
                self._unread, self._unread_since = unread, now
            elif now - self._unread_since >= UNREAD_SECONDS:
                self.transport.abort()
        else:
            self._unread_since = math.inf
        if now < self._deadline:
            return
        if self._refused:  # a farewell of TLS waits for its client
            if self.transport.get_write_buffer_size() == 0:
                self.transport.abort()
            return
        if self.pipeline or self.flow.read_paused:  # its turn has not come, or it is we who do not take more of it
            self._deadline = now + BODY_SECONDS
        else:
            self._refuse(_TOO_SLOW if self._in_head or self._in_body else None)

    def _feed(self, data: bytes) -> None:
        """To the parser. Who asks for HTTP/2 or a WebSocket is answered in HTTP/1.1."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(_MALFORMED)
        except httptools.HttpParserUpgrade as upgrade:  # it takes what follows for another protocol, and is of no use
            if not self._framing or self._refused:
                return
            self.parser, self._resuming = httptools.HttpRequestParser(self), True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + self._framing + b"\r\n")
            self._resuming, self._framing = False, b""
            self._feed(data[upgrade.args[0] :])

    def _refuse(self, refusal: _Refusal | None) -> None:
        """Close the connection, after an answer if there is one to give and none has begun that it would break into."""
        if self._refused or self.transport is None:
            return
        self._refused, self._deadline = True, self.loop.time() + FAREWELL_SECONDS
        self._door.idle.pop(self, None)
        self._door.heads.pop(self, None)
        cycle = self.cycle
        unanswered = self._in_body and cycle is not None and not cycle.response_started
        free = not self.pipeline and (cycle is None or cycle.response_complete or unanswered)
        if refusal is not None and free:
            record = self.scope["state"].get("record") if unanswered else None
            self.transport.write(_answer(refusal, new_id() if record is None else record.request_id))
        self.transport.close()
