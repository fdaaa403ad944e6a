"""The API process's end of the socket: epochs, garbage, aborts, silence, with a peer that the test plays itself."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from octavo_server import ipc
from octavo_server.errors import EngineError
from octavo_server.frontend import client as client_module
from octavo_server.frontend.client import EngineClient, Prompt

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

    async def output(self, request_id: str, *tokens: int, epoch: int = EPOCH, end: str | None = None) -> None:
        result = ipc.RequestOutput(request_id, list(tokens), finish_reason=end)
        await self.say(ipc.Outputs(epoch, [result], IDLE))

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
    await client.close("the test is over")
    client.terminate()
    peer.context.destroy(linger=0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (what is looked at has no event)
            await asyncio.sleep(0.01)


def prompt(request_id: str) -> Prompt:
    return Prompt(request_id, [1, 2], ipc.SamplingParams())


async def test_requests_go_out_and_results_of_several_prompts_come_in(ends: tuple[EngineClient, Peer]) -> None:
    client, peer = ends
    with client.submit([prompt("a"), prompt("b")]) as stream:
        assert [getattr(await peer.hear(), "request_id", None) for _ in "ab"] == ["a", "b"]
        await peer.output("a", 5)
        await peer.output("b", 6, end="stop")
        await peer.output("a", 7, end="length")
        batches = [batch async for batch in stream.batches()]
    results = [(output.request_id, output.token_ids) for output in itertools.chain.from_iterable(batches)]
    assert results == [("a", [5]), ("b", [6]), ("a", [7])]
    assert client.num_open == 0


async def test_leaving_a_stream_aborts_what_is_unfinished_and_only_that(ends: tuple[EngineClient, Peer]) -> None:
    client, peer = ends
    with client.submit([prompt("a"), prompt("b"), prompt("c")]) as stream:
        for _ in "abc":
            await peer.hear()
        await peer.output("a", 5, end="stop")
        await anext(stream.batches())
        stream.abort(["b"])
        assert await peer.hear() == ipc.Abort(EPOCH, ["b"])
    assert await peer.hear() == ipc.Abort(EPOCH, ["c"])
    assert client.num_open == 0


async def test_results_that_were_on_their_way_when_a_request_was_aborted_are_ignored(
    ends: tuple[EngineClient, Peer],
) -> None:
    client, peer = ends
    with client.submit([prompt("a"), prompt("b")]) as stream:
        stream.abort(["a"])
        await peer.output("a", 5)
        await peer.output("b", 6, end="stop")
        batches = [batch async for batch in stream.batches()]
    assert [output.request_id for batch in batches for output in batch] == ["b"]


async def test_messages_of_another_epoch_and_garbage_are_dropped(ends: tuple[EngineClient, Peer]) -> None:
    client, peer = ends
    with client.submit([prompt("a")]) as stream:
        await peer.output("a", 99, epoch=EPOCH - 1, end="stop")
        for garbage in (b"", b"\xc1", b"\x80\x04K\x01.", ipc.encoder.encode({"type": "Nothing"})):
            await peer.socket.send(garbage)
        await peer.say(ipc.Failed(EPOCH + 1, "not ours"))
        await peer.output("a", 5, end="stop")
        (batch,) = [batch async for batch in stream.batches()]
    assert [output.token_ids for output in batch] == [[5]]
    assert client.failure is None


async def test_the_end_of_the_engine_ends_every_stream(ends: tuple[EngineClient, Peer]) -> None:
    client, _ = ends
    streams = [client.submit([prompt("a"), prompt("b")]), client.submit([prompt("c")])]
    await client.close("the engine died")
    for stream in streams:
        with pytest.raises(EngineError, match="the engine died"):
            await anext(stream.batches())
    with pytest.raises(EngineError, match="not ready"):
        client.submit([prompt("d")])


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


async def test_an_engine_of_another_version_is_no_engine(tmp_path: Path) -> None:
    client = EngineClient()
    client.open(tmp_path / "s", EPOCH)
    peer = Peer(tmp_path / "s")
    await peer.say(ipc.Ready(EPOCH, ipc.PROTOCOL_VERSION + 1, 256, 16, 64, {}))
    await until(lambda: client.failure is not None)
    assert client.ready is None
    peer.context.destroy(linger=0)
    await client.close("the test is over")
    client.terminate()


async def test_a_path_that_is_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    client = EngineClient()
    with pytest.raises(EngineError, match="set TMPDIR"):
        client.open(tmp_path / ("x" * 120), EPOCH)
    client.terminate()
