"""The API process's end of the socket: epochs, garbage, aborts, silence, with a peer that the test plays itself."""

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
import zmq.asyncio

import tiny_tokenizers
from octavo_common import logs
from octavo_server import ipc
from octavo_server.config import ServerConfig
from octavo_server.errors import EngineError
from octavo_server.frontend import client as client_module
from octavo_server.frontend.answer import Answer, Delta
from octavo_server.frontend.client import EngineClient
from octavo_server.frontend.output_stream import Choice, OutputStream
from octavo_server.frontend.supervisor import Supervisor
from octavo_server.frontend.text.text_options import TextOptions
from octavo_server.frontend.text.tokenizer import TextTokenizer
from octavo_server.metrics import RequestMetrics, ServerMetrics

EPOCH = 7
IDLE = ipc.EngineStats(0, 0, 0, 0, 64, 16, 0, 0, 0, 0, 0.0)
READY = ipc.Ready(EPOCH, ipc.PROTOCOL_VERSION, 256, 16, 64, {})


class Peer:
    """The engine's end."""

    def __init__(self, path: Path) -> None:
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.PAIR)
        self.socket.connect(f"ipc://{path}")

    async def say(self, message: ipc.EngineMessage) -> None:
        await self.socket.send(ipc.encoder.encode(message))

    async def output(self, request_id: str, *tokens: int, epoch: int = EPOCH, **fields: Any) -> None:
        await self.outputs(ipc.RequestOutput(request_id, list(tokens), **fields), epoch=epoch)

    async def outputs(self, *results: ipc.RequestOutput, epoch: int = EPOCH) -> None:
        await self.say(ipc.Outputs(epoch, list(results), IDLE))

    async def hear(self) -> ipc.FrontendMessage:
        async with asyncio.timeout(30):
            return ipc.frontend_decoder.decode(await self.socket.recv())


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[tuple[EngineClient, Peer]]:
    client = EngineClient()
    client.open(tmp_path / "s", EPOCH)
    peer = Peer(tmp_path / "s")
    await peer.say(READY)
    await until(lambda: client.ready is not None)
    yield client, peer
    client.close("the test is over")
    client.terminate()
    peer.context.destroy(linger=0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizers.save(tiny_tokenizers.byte_level_bpe(), directory)
    return TextTokenizer(directory)


@pytest.fixture
def choice(tokenizer: TextTokenizer) -> Callable[..., Choice]:
    def make(request_id: str, *stops: str, epoch: int = EPOCH) -> Choice:
        metrics = RequestMetrics(ServerMetrics("m"), 0.0, 2)
        answer = Answer(0, [1, 2], tokenizer, TextOptions(stops), metrics)
        message = ipc.AddRequest(epoch, request_id, [1, 2], ipc.SamplingParams(), 0.0)
        return Choice(request_id, epoch, ipc.encoder.encode(message), answer)

    return make


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (what is looked at has no event)
            await asyncio.sleep(0.01)


async def tokens_of(stream: OutputStream) -> list[list[int]]:
    """The tokens of each choice, by the order in which they came first."""
    found: dict[int, list[int]] = {}
    async for changes in stream.deltas():
        for answer, delta in changes:
            found.setdefault(id(answer), []).extend(delta.token_ids)
    return list(found.values())


async def test_requests_go_out_and_results_of_several_choices_come_in(
    ends: tuple[EngineClient, Peer], choice: Callable[..., Choice]
) -> None:
    client, peer = ends
    with client.submit([choice("a"), choice("b")]) as stream:
        assert [getattr(await peer.hear(), "request_id", None) for _ in "ab"] == ["a", "b"]
        await peer.output("a", 5)
        await peer.output("b", 6, finish_reason="stop")
        await peer.output("a", 7, finish_reason="length")
        assert await tokens_of(stream) == [[5, 7], [6]]
    assert client.num_open == 0


async def test_leaving_a_stream_aborts_what_is_unfinished_and_only_that(
    ends: tuple[EngineClient, Peer], choice: Callable[..., Choice]
) -> None:
    client, peer = ends
    with client.submit([choice("a"), choice("b")]) as stream:
        for _ in "ab":
            await peer.hear()
        await peer.output("a", 5, finish_reason="stop")
        await anext(stream.deltas())
    assert await peer.hear() == ipc.Abort(EPOCH, ["b"])
    assert client.num_open == 0


async def test_a_stop_string_ends_a_choice_here_and_in_the_engine(
    ends: tuple[EngineClient, Peer], choice: Callable[..., Choice], tokenizer: TextTokenizer
) -> None:
    client, peer = ends
    ids = tokenizer.encode("hello STOP world", add_special_tokens=False)
    with client.submit([choice("a", "STOP"), choice("b")], whole=True) as stream:
        for _ in "ab":
            await peer.hear()
        for token in ids:
            await peer.output("a", token)
        await peer.output("b", 6, finish_reason="length")
        (changes,) = [changes async for changes in stream.deltas()]
        assert await peer.hear() == ipc.Abort(EPOCH, ["a"])
    (_, stopped), _ = sorted(changes, key=lambda change: len(change[1].token_ids), reverse=True)
    assert (stopped.text, stopped.finish_reason, stopped.stop_reason) == ("hello ", "stop", "STOP")
    assert len(stopped.token_ids) < len(ids)


async def test_results_that_were_on_their_way_when_a_request_was_aborted_are_ignored(
    ends: tuple[EngineClient, Peer], choice: Callable[..., Choice]
) -> None:
    client, peer = ends
    with client.submit([choice("a")]):
        await peer.hear()
    with client.submit([choice("b")]) as stream:
        await peer.output("a", 5)
        await peer.output("b", 6, finish_reason="stop")
        assert await tokens_of(stream) == [[6]]


async def test_messages_of_another_epoch_and_garbage_are_dropped(
    ends: tuple[EngineClient, Peer], choice: Callable[..., Choice]
) -> None:
    client, peer = ends
    with client.submit([choice("a")]) as stream:
        await peer.output("a", 99, epoch=EPOCH - 1, finish_reason="stop")
        for garbage in (b"", b"\xc1", b"\x80\x04K\x01.", ipc.encoder.encode({"type": "Nothing"})):
            await peer.socket.send(garbage)
        await peer.say(ipc.Failed(EPOCH + 1, "not ours"))
        await peer.output("a", 5, finish_reason="stop")
        assert await tokens_of(stream) == [[5]]
    assert client.failure is None


async def test_a_request_for_an_engine_that_is_gone_is_not_sent_to_the_next(
    ends: tuple[EngineClient, Peer], choice: Callable[..., Choice]
) -> None:
    client, _ = ends
    with pytest.raises(EngineError, match="started again"):
        client.submit([choice("a", epoch=EPOCH - 1)])
    assert client.num_open == 0


async def test_the_end_of_the_engine_ends_every_stream(
    ends: tuple[EngineClient, Peer], choice: Callable[..., Choice]
) -> None:
    client, peer = ends
    streams = [client.submit([choice("a"), choice("b")]), client.submit([choice("c")], whole=True)]
    await peer.output("a", 5)
    assert [delta.token_ids for _, delta in await anext(streams[0].deltas())] == [[5]]
    client.close("the engine died")
    assert client.phase == "restarting"  # and no more "ready", which it was
    for stream in streams:
        with pytest.raises(EngineError, match="the engine died") as caught:
            await anext(stream.deltas())
        assert caught.value.kind == "unavailable"
    with pytest.raises(EngineError, match="not ready"):
        client.submit([choice("d")])


@pytest.mark.parametrize("kind", ["out_of_memory", "timeout", "invalid", "internal"])
async def test_an_error_of_the_engine_keeps_its_kind_and_ends_only_its_own_request(
    ends: tuple[EngineClient, Peer], choice: Callable[..., Choice], kind: ipc.ErrorKind
) -> None:
    client, peer = ends
    with client.submit([choice("a"), choice("b")]) as broken, client.submit([choice("c")]) as other:
        await peer.output("b", finish_reason="error", error="it broke", error_kind=kind)
        await peer.output("c", 5, finish_reason="length")
        with pytest.raises(EngineError, match="it broke") as caught:
            await anext(broken.deltas())
        assert caught.value.kind == kind
        assert await tokens_of(other) == [[5]]


async def test_a_message_wakes_those_who_stream_at_once_and_those_who_want_the_whole_at_its_end_alone(
    ends: tuple[EngineClient, Peer], choice: Callable[..., Choice]
) -> None:
    client, peer = ends
    streams = [client.submit([choice(f"stream {index}")]) for index in range(50)]
    whole = client.submit([choice("whole a"), choice("whole b")], whole=True)
    waiting = asyncio.ensure_future(anext(whole.deltas()))
    for token in (5, 6):
        results = [ipc.RequestOutput(f"{kind}", [token]) for kind in ("whole a", "whole b")]
        await peer.outputs(*results, *(ipc.RequestOutput(f"stream {index}", [token]) for index in range(50)))
        for stream in streams:
            assert [delta.token_ids for _, delta in await anext(stream.deltas())] == [[token]]
        assert not waiting.done()
    await peer.outputs(ipc.RequestOutput("whole a", [7], finish_reason="length"))
    await peer.outputs(ipc.RequestOutput("stream 0", [7]))
    await anext(streams[0].deltas())
    assert not waiting.done()
    await peer.outputs(ipc.RequestOutput("whole b", [8], finish_reason="length"))
    assert [delta.token_ids for _, delta in await waiting] == [[5, 6, 7], [5, 6, 8]]


async def test_what_arrives_while_requests_are_sent_is_read_however_little_comes_after(
    ends: tuple[EngineClient, Peer], choice: Callable[..., Choice]
) -> None:
    client, peer = ends
    for number in range(300):  # sending takes note of what has arrived, so that the descriptor does not tell of it
        name = f"{number}"
        with client.submit([choice(name)]) as stream:
            await peer.hear()
            await peer.output(name, 5, finish_reason="length")
            client.submit([choice(f"beside {name}")])
            await peer.hear()
            assert await tokens_of(stream) == [[5]]


async def test_a_reader_that_does_not_come_finds_all_in_one_piece(
    ends: tuple[EngineClient, Peer], choice: Callable[..., Choice], tokenizer: TextTokenizer
) -> None:
    client, peer = ends
    ids = tokenizer.encode("Grüße 🙂, again and again", add_special_tokens=False)
    with client.submit([choice("slow")]) as slow, client.submit([choice("quick")]) as quick:
        for token in ids:
            await peer.outputs(ipc.RequestOutput("slow", [token]), ipc.RequestOutput("quick", [token]))
            assert [delta.token_ids for _, delta in await anext(quick.deltas())] == [[token]]
        await peer.output("slow", 5, finish_reason="length")
        await until(lambda: client.num_open == 1)
        (((_, delta),),) = [changes async for changes in slow.deltas()]
    assert delta.token_ids == [*ids, 5]
    assert delta.text.startswith("Grüße 🙂, again and again")
    assert delta.offsets[0] == 0 and len(delta.offsets) == len(ids) + 1


async def test_who_takes_what_comes_at_once_is_passed_it_and_the_end_is_the_readers(
    ends: tuple[EngineClient, Peer], choice: Callable[..., Choice]
) -> None:
    client, peer = ends
    taken: list[list[int]] = []
    seen: list[list[int]] = []
    takes = True

    def at_once(changes: list[tuple[Answer, Delta]]) -> bool:
        if takes:
            taken.append([token for _, delta in changes for token in delta.token_ids])
        return takes

    async def read(stream: OutputStream) -> None:
        async for changes in stream.deltas():
            seen.extend(delta.token_ids for _, delta in changes)

    with client.submit([choice("a")]) as stream:
        stream.at_once = at_once
        await peer.output("a", 4)  # nobody has read yet: it waits
        await until(lambda: bool(stream._pending))
        assert taken == []
        reader = asyncio.create_task(read(stream))
        await until(lambda: seen == [[4]])
        await peer.output("a", 5)
        await until(lambda: taken == [[5]])
        takes = False
        await peer.output("a", 6)
        await until(lambda: seen == [[4], [6]])
        takes = True
        await peer.output("a", 7)
        await until(lambda: taken == [[5], [7]])
        await peer.output("a", 8, finish_reason="length")
        await reader
    assert (taken, seen) == ([[5], [7]], [[4], [6], [8]])
    assert client.num_open == 0


async def test_what_cannot_be_given_out_at_once_ends_its_own_stream_alone(
    ends: tuple[EngineClient, Peer], choice: Callable[..., Choice]
) -> None:
    client, peer = ends

    def at_once(changes: list[tuple[Answer, Delta]]) -> bool:
        raise RuntimeError("broken")

    async def read(stream: OutputStream) -> list[list[int]]:
        with stream:
            return await tokens_of(stream)

    broken, other = client.submit([choice("a")]), client.submit([choice("b")])
    broken.at_once = at_once
    readers = [asyncio.create_task(read(stream)) for stream in (broken, other)]
    assert [getattr(await peer.hear(), "request_id", None) for _ in "ab"] == ["a", "b"]
    await peer.outputs(ipc.RequestOutput("a", [5]), ipc.RequestOutput("b", [6]))
    with pytest.raises(EngineError, match="its log says why"):
        await readers[0]
    assert await peer.hear() == ipc.Abort(EPOCH, ["a"])
    await peer.output("b", 7, finish_reason="length")
    assert await readers[1] == [[6, 7]]


async def test_silence_is_noticed_and_forgotten_when_it_ends(
    ends: tuple[EngineClient, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, peer = ends
    assert not client.hangs
    monkeypatch.setattr(client_module, "HANG_SECONDS", 0.05)
    await until(lambda: client.hangs)
    monkeypatch.setattr(client_module, "HANG_SECONDS", 30.0)
    await peer.say(ipc.Outputs(EPOCH, [], IDLE))
    assert not client.hangs


async def test_a_silent_engine_is_killed_within_thirty_seconds(
    ends: tuple[EngineClient, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch itself, with its own numbers; only the time between two looks does not pass."""
    client, _ = ends

    class Process:
        pid, now, killed_at = os.getpid(), 0.0, None

        async def wait(self) -> int:
            await asyncio.Event().wait()
            return 0

        def kill(self) -> None:
            self.killed_at = self.now

    process = Process()

    async def look(tasks: set[Any], timeout: float) -> tuple[set[Any], set[Any]]:
        process.now += timeout
        return set(), tasks

    supervisor = Supervisor(client, ServerConfig(model=Path("/nowhere")))
    client._last_heard = 0.0
    with monkeypatch.context() as patched:
        patched.setattr(client_module, "time", SimpleNamespace(monotonic=lambda: process.now))
        patched.setattr(asyncio, "wait", look)
        ended = await supervisor._watch(process)  # type: ignore[arg-type]
    assert "was killed" in ended
    assert process.killed_at is not None and 20 < process.killed_at <= 29  # the look may have begun a second before


async def test_an_engine_of_another_version_is_no_engine(tmp_path: Path) -> None:
    client = EngineClient()
    client.open(tmp_path / "s", EPOCH)
    peer = Peer(tmp_path / "s")
    await peer.say(ipc.Ready(EPOCH, ipc.PROTOCOL_VERSION + 1, 256, 16, 64, {}))
    await until(lambda: client.failure is not None)
    assert client.ready is None
    peer.context.destroy(linger=0)
    client.close("the test is over")
    client.terminate()


async def test_a_path_that_is_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    client = EngineClient()
    with pytest.raises(EngineError, match="set TMPDIR"):
        client.open(tmp_path / ("x" * 120), EPOCH)
    client.terminate()


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """What the log's lines hold, as they are written."""
    found: list[Any] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(self.format(record)))

    handler, logger = Lines(), logging.getLogger("octavo_server.frontend")
    handler.setFormatter(logs.JsonLines())
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


async def test_what_goes_wrong_with_a_result_is_logged_under_its_request_without_its_words(
    ends: tuple[EngineClient, Peer],
    choice: Callable[..., Choice],
    lines: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (client, peer), whose = ends, "own"

    def broken(*_: object) -> None:
        raise ValueError(f"a client's {whose} words")

    async def ask(name: str, at_once: bool) -> None:
        logs.request_id.set(f"request-{name}")
        made = choice(name)
        if not at_once:
            monkeypatch.setattr(made.answer, "take", broken)
        with client.submit([made]) as stream:
            stream.at_once = broken if at_once else None  # type: ignore[assignment]
            with pytest.raises(EngineError, match="its log says why"):
                await tokens_of(stream)

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for name in "ab":
            tasks.create_task(ask(name, at_once=name == "b"))
            await peer.hear()
        for name in "ab":
            await peer.output(name, 5)
    assert [line["request_id"] for line in lines] == ["request-a", "request-b"]
    assert all("ValueError" in line["exception"] and "own words" not in str(line) for line in lines)


async def test_what_the_engine_says_is_not_logged_under_a_request_that_speaks_to_it(
    ends: tuple[EngineClient, Peer], choice: Callable[..., Choice], lines: list[Any]
) -> None:
    client, peer = ends
    link: Any = client._link
    zmq.Socket.shadow(peer.socket).send(b"garbage")
    deadline = time.monotonic() + 30
    while not link._engine.poll(10):  # it is there, and the event loop has had no turn
        assert time.monotonic() < deadline
    token = logs.request_id.set("r-1")
    with client.submit([choice("a")]):
        logs.request_id.reset(token)
        await until(lambda: bool(lines))
    assert "dropped a message" in lines[0]["message"]
    assert "request_id" not in lines[0]
