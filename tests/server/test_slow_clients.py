"""Connections of clients that are slow, silent, too many or do not read, in virtual time; then one that is real."""

import asyncio
import contextlib
import gc
import json
import math
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from octavo_server.frontend import http_protocol
from octavo_server.frontend.access.doors import Door
from octavo_server.frontend.http import Listener, http_server
from octavo_server.frontend.http_protocol import (
    BODY_BYTES_PER_SECOND,
    BODY_MOST_SECONDS,
    BODY_SECONDS,
    FAREWELL_SECONDS,
    HASTE_SECONDS,
    HEAD_SECONDS,
    IDLE_SECONDS,
    MAX_HEAD_BYTES,
    SPARE_CONNECTIONS,
    UNREAD_SECONDS,
    BoundedHttpProtocol,
)
from octavo_server.frontend.limits import MAX_BODY_BYTES
from octavo_server.frontend.observed import ObservedRequests

GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


class Loop:
    """The running event loop, but for the time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._loop = asyncio.get_running_loop()

    def time(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


class Transport:
    """Takes what is written; `unread` is what the client has not taken yet."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = self.aborted = self.paused = False
        self.unread = 0

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.unread

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_extra_info(self, name: str) -> None:
        return None


class App:
    """Reads the body, then answers once it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.bodies: list[bytes] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.reads = True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers.append(dict(scope["headers"]))
        body, more = b"", self.reads
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        self.bodies.append(body)
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


class Client:
    """One connection, and its server's end."""

    def __init__(self, app: App, loop: Loop, door: Door) -> None:
        config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
        config.load()
        self.loop, self.transport, self.door = loop, Transport(), door
        self.protocol = BoundedHttpProtocol(config, ServerState(), {"door": door}, loop)  # type: ignore[arg-type]
        self.protocol.connection_made(self.transport)

    async def send(self, data: bytes) -> None:
        if not self.transport.closed:
            self.protocol.data_received(data)
        for _ in range(10):
            await asyncio.sleep(0)

    def after(self, seconds: float) -> None:
        """So much time passes; the server looks every second."""
        end = self.loop.now + seconds
        while self.loop.now < end:
            self.loop.now = min(end, self.loop.now + 1)
            self.protocol.look(self.loop.now)

    @property
    def statuses(self) -> list[int]:
        return [int(part.split(b" ", 1)[0]) for part in self.transport.written.split(b"HTTP/1.1 ")[1:]]


@pytest.fixture
async def app() -> App:
    return App()


@pytest.fixture
async def connect(app: App) -> AsyncIterator[Callable[..., Client]]:
    loop, made = Loop(), list[Client]()

    def connected(door: Door | None = None) -> Client:
        made.append(Client(app, loop, door or Door()))
        return made[-1]

    yield connected
    app.may_answer.set()
    for client in made:
        client.protocol.connection_lost(None)
        assert client.protocol not in client.door.connections
    await asyncio.sleep(0)


Connect = Callable[..., Client]


def just_before(seconds: float) -> float:
    return seconds - 1.5


async def test_who_says_nothing_is_let_go(connect: Connect) -> None:
    client = connect()
    client.after(just_before(HEAD_SECONDS))
    assert not client.transport.closed
    client.after(3)
    assert client.transport.closed
    assert client.statuses == []


@pytest.mark.parametrize("step", [1.0, 5.0, 19.0])
async def test_a_head_that_comes_byte_by_byte_is_answered_in_bounded_time(connect: Connect, step: float) -> None:
    client, begin = connect(), 1000.0
    for byte in GET:
        await client.send(bytes([byte]))
        client.after(step)
        if client.transport.closed:
            break
    assert client.loop.now - begin <= HEAD_SECONDS + step + 1
    assert client.statuses == [408]
    body = client.transport.written.partition(b"\r\n\r\n")[2]
    assert json.loads(body)["error"]["code"] == "request_timeout"


@pytest.mark.parametrize("drip", [b"\r\n", b"G"])
async def test_a_kept_connection_gains_no_time_by_bytes_that_are_no_request(connect: Connect, drip: bytes) -> None:
    client = connect()
    await client.send(GET)
    client.after(IDLE_SECONDS / 2)
    begin = client.loop.now
    for at in range(100):
        await client.send(drip if at == 0 or drip == b"\r\n" else b"E")
        client.after(2)
    assert client.transport.closed
    assert client.loop.now - begin >= HEAD_SECONDS
    assert client.statuses in ([200], [200, 408], [200, 400])


async def test_an_idle_connection_is_closed_and_one_that_asks_again_is_not(connect: Connect) -> None:
    client = connect()
    for _ in range(5):
        await client.send(GET)
        client.after(just_before(IDLE_SECONDS))
    assert client.statuses == [200] * 5
    assert not client.transport.closed
    client.after(3)
    assert client.transport.closed


@pytest.mark.parametrize("head", [POST % 1000, CHUNKED], ids=["declared", "in chunks"])
async def test_a_body_that_comes_byte_by_byte_is_answered_in_bounded_time(connect: Connect, head: bytes) -> None:
    client, begin = connect(), 1000.0
    await client.send(head)
    while not client.transport.closed:
        await client.send(b"1\r\na\r\n" if b"chunked" in head else b"a")
        client.after(1)
        assert client.loop.now - begin < BODY_SECONDS + 5
    assert client.statuses == [408]


async def test_a_large_body_at_a_fair_pace_has_the_time_it_takes(connect: Connect, app: App) -> None:
    client, size = connect(), MAX_BODY_BYTES // 16
    await client.send(POST % size)
    for _ in range(0, size, 2 * BODY_BYTES_PER_SECOND):
        await client.send(b"a" * (2 * BODY_BYTES_PER_SECOND))
        client.after(2)
    assert client.loop.now - 1000 > 2 * BODY_SECONDS
    assert client.statuses == [200]
    assert app.bodies == [b"a" * size]


async def test_a_body_has_a_bounded_time_however_much_of_it_comes(connect: Connect) -> None:
    client = connect()
    await client.send(POST % MAX_BODY_BYTES)
    while not client.transport.closed:
        await client.send(b"a" * (2 * BODY_BYTES_PER_SECOND))
        client.after(1)
        assert client.loop.now - 1000 < BODY_MOST_SECONDS + 5
    assert client.loop.now - 1000 >= BODY_MOST_SECONDS
    assert client.statuses == [408]


async def test_an_answer_that_takes_long_is_nobodys_fault(connect: Connect, app: App) -> None:
    app.may_answer.clear()
    client = connect()
    await client.send(POST % 2 + b"ab")
    client.after(10_000)
    assert not client.transport.closed
    app.may_answer.set()
    await client.send(b"")
    assert client.statuses == [200]


async def test_a_request_that_waits_behind_another_is_given_its_time_afterwards(connect: Connect, app: App) -> None:
    app.may_answer.clear()
    client = connect()
    await client.send(GET + POST % 5 + b"ab")
    client.after(10_000)
    assert not client.transport.closed
    app.may_answer.set()
    await client.send(b"")
    client.after(just_before(BODY_SECONDS))
    assert not client.transport.closed
    await client.send(b"cde")
    assert client.statuses == [200, 200]
    assert app.bodies == [b"", b"abcde"]


async def test_half_a_head_behind_a_request_has_its_time_from_the_answer_on(connect: Connect, app: App) -> None:
    app.may_answer.clear()
    client = connect()
    await client.send(GET + GET[:10])
    client.after(10_000)
    assert not client.transport.closed
    app.may_answer.set()
    await client.send(b"")
    client.after(just_before(HEAD_SECONDS))
    assert not client.transport.closed
    client.after(3)
    assert client.statuses == [200, 408]


async def test_a_body_whose_answer_is_there_already_is_bounded_in_time_and_length(connect: Connect, app: App) -> None:
    app.reads = False
    client = connect()
    await client.send(POST % 10**9)
    assert client.statuses == [200]
    client.after(BODY_SECONDS + 2)
    assert client.transport.closed
    client = connect()
    await client.send(POST % 10**9)
    sent = 0
    while not client.transport.closed:
        await client.send(b"a" * 2**20)
        sent += 2**20
        assert sent <= MAX_BODY_BYTES + 2**20
    assert client.statuses == [200]  # nothing is written behind a whole answer
    client = connect()
    await client.send(POST % 10)
    await client.send(b"0123456789" + GET)
    assert client.statuses == [200, 200]  # what fits is passed over


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"h2c, websocket"])
@pytest.mark.parametrize("cut", [1, 7, 10_000])
async def test_who_asks_for_another_protocol_is_answered_in_this_one(
    connect: Connect, app: App, protocol: bytes, cut: int
) -> None:
    """As Java's client does by default: with a body, which is to be read."""
    asking = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + protocol + b"\r\nHTTP2-Settings: AA\r\n\r\n"
    requests = [POST % 3, CHUNKED, GET, POST % 0, POST % 2]
    bodies = [b"abc", b"2\r\nde\r\n0\r\n\r\n", b"", b"", b"fg"]
    client = connect()
    for head, body in zip(requests, bodies, strict=True):
        sent = head.removesuffix(b"\r\n") + asking + body
        for at in range(0, len(sent), cut):
            await client.send(sent[at : at + cut])
    assert (client.statuses, app.bodies) == ([200] * 5, [b"abc", b"de", b"", b"", b"fg"])
    await client.send(POST % 2 + b"hi")
    assert app.bodies[-1] == b"hi"
    assert not client.transport.closed


async def test_what_ends_a_chunked_body_is_bounded_and_is_no_header(connect: Connect, app: App) -> None:
    client = connect()
    await client.send(CHUNKED + b"1\r\na\r\n0\r\nX-Late: yes\r\nAuthorization: Bearer x\r\n\r\n")
    assert (client.statuses, app.bodies) == ([200], [b"a"])
    assert set(app.headers[0]) == {b"host", b"transfer-encoding"}
    for endless in (b"X: " + b"y" * 5000, b"X: y\r\n" * 800, b""):
        client = connect()
        await client.send(CHUNKED + b"1\r\na\r\n" + (b"0\r\n" if endless else b""))
        sent = 0
        while not client.transport.closed:
            piece = (endless if sent == 0 or b"\n" in endless else b"y" * 5000) or b"1;" + b"e" * 5000
            await client.send(piece if endless or sent == 0 else b"e" * 5000)
            sent += 5000
            assert sent <= 2 * MAX_HEAD_BYTES, endless[:10]
        assert client.statuses in ([431], [400])


@pytest.mark.parametrize("refused", [b"\0\0\0\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"y" * (3 * MAX_HEAD_BYTES)])
async def test_no_refusal_is_written_into_another_answer(connect: Connect, app: App, refused: bytes) -> None:
    app.may_answer.clear()
    client = connect()
    await client.send(GET)
    for at in range(0, len(refused), MAX_HEAD_BYTES):
        await client.send(refused[at : at + MAX_HEAD_BYTES])
    assert client.transport.closed
    assert client.transport.written == b""


async def test_who_does_not_read_is_given_up_after_long_and_who_reads_slowly_is_not(connect: Connect) -> None:
    client = connect()
    client.protocol.pause_writing()
    client.transport.unread = 100_000
    client.protocol._deadline = math.inf  # an answer is on its way
    for _ in range(10):
        client.after(UNREAD_SECONDS - 2)
        client.transport.unread -= 1
    assert not client.transport.aborted
    client.after(UNREAD_SECONDS + 2)
    assert client.transport.aborted


async def test_a_closed_connection_whose_rest_is_not_read_is_given_up(connect: Connect) -> None:
    client = connect()
    await client.send(GET)
    client.transport.unread = 10
    client.after(IDLE_SECONDS + 2)
    assert (client.transport.closed, client.transport.aborted) == (True, False)
    client.after(UNREAD_SECONDS + 2)
    assert client.transport.aborted


async def test_past_the_most_busy_connections_probes_alone_are_answered_and_past_those_nobody(
    connect: Connect, app: App
) -> None:
    async def asking(sent: bytes) -> Client:
        client = connect(door)
        await client.send(sent)
        return client

    door = Door(max_connections=2)
    app.may_answer.clear()
    first, second = await asking(GET), await asking(GET)
    probe = GET.replace(b"/v1/models", b"/ready")
    crowd = [await asking(probe) for _ in range(SPARE_CONNECTIONS - 1)]
    refused = await asking(GET)
    assert (refused.statuses, refused.transport.closed) == ([503], True)
    refused.protocol.connection_lost(None)
    crowd.append(await asking(probe))
    last = connect(door)
    assert (last.statuses, last.transport.closed) == ([503], True)
    assert json.loads(last.transport.written.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
    app.may_answer.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert all(client.statuses == [200] for client in (first, second, *crowd))
    other_door = connect(Door("admin", max_connections=2))
    await other_door.send(GET)
    assert other_door.statuses == [200]
    for client in [*crowd[2:], last]:
        client.protocol.connection_lost(None)
    first.protocol.connection_lost(None)
    second.protocol.connection_lost(None)
    await crowd[0].send(GET)  # there is room again
    assert crowd[0].statuses == [200, 200]


async def test_what_a_request_held_is_gone_with_it_and_waits_for_no_collector() -> None:
    class Body:
        pass

    held: list[weakref.ref[Body]] = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["body"] = body = Body()
        held.append(weakref.ref(body))
        await App()(scope, receive, send)

    gc.disable()
    try:
        client = Client(ObservedRequests(answer, "all"), Loop(), Door())  # type: ignore[arg-type]
        for number in range(1, 4):
            await client.send(GET)
            assert client.statuses == [200] * number
        assert [body() for body in held[:-1]] == [None, None]  # the connection knows its last one
        client.protocol.connection_lost(None)
        del client
        await asyncio.sleep(0)
        assert held[-1]() is None
    finally:
        gc.enable()


async def test_halves_of_requests_keep_no_probe_away_however_many_they_are(connect: Connect) -> None:
    door = Door(max_connections=2)
    halves = list[Client]()
    for _ in range(2 + SPARE_CONNECTIONS):
        halves.append(connect(door))
        await halves[-1].send(b"GET /health HTTP/1.1\r\nX")
    for _ in range(3):
        probe = connect(door)
        await probe.send(GET.replace(b"/v1/models", b"/ready"))
        assert probe.statuses == [200]
        assert sum(client.transport.aborted for client in halves) == 1  # the next one takes the place of this, idle now
        assert halves[0].transport.aborted and not probe.transport.aborted
    halves[0].loop.now += HASTE_SECONDS
    other = connect(door)
    await other.send(GET)
    assert other.statuses == [200]
    assert probe.transport.aborted is False, "who is not slow stays"


async def test_a_farewell_does_not_wait_long_for_its_client(connect: Connect) -> None:
    """As one of TLS would."""
    client = connect()
    await client.send(b"\0\0\r\n\r\n")
    assert (client.statuses, client.transport.closed, client.transport.aborted) == ([400], True, False)
    client.after(FAREWELL_SECONDS + 1)
    assert client.transport.aborted


async def test_past_the_most_connections_the_one_idle_for_longest_makes_room(connect: Connect, app: App) -> None:
    def closed() -> list[bool]:
        return [client.transport.aborted for client in (first, second, third, fourth)]

    door = Door(max_connections=3)
    first, second, third, fourth = (connect(door) for _ in range(4))
    assert closed() == [True, False, False, False]  # it had asked nothing yet
    for client in (fourth, second, third):
        await client.send(GET + GET)
        assert client.statuses == [200, 200]
    fourth.transport.unread = 1  # it has its answer, and still reads it
    fifth = connect(door)
    assert closed() == [True, True, False, False]
    app.may_answer.clear()
    await third.send(GET)
    await fifth.send(GET)
    fourth.transport.unread = 0
    sixth = connect(door)
    assert closed() == [True, True, False, True]
    await sixth.send(POST % 2 + b"a")
    seventh = connect(door)  # nobody is idle: a probe may come in, and nobody else
    await seventh.send(GET)
    assert (seventh.statuses, seventh.transport.closed) == ([503], True)
    assert not any(client.transport.closed for client in (third, fifth, sixth))


async def test_a_server_looks_after_its_connections(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """On real sockets; only that it happens is of interest here, not when."""
    import socket

    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.1)
    listener = socket.create_server(("127.0.0.1", 0))
    server = http_server(app, [Listener(listener, Door())], log_level="info", graceful_seconds=1)
    serving = asyncio.create_task(server.serve())
    await server.listening.wait()
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET /")
    async with asyncio.timeout(60):
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    server.should_exit = True
    await serving
