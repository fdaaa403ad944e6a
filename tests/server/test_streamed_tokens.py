"""What is done for every token of a stream has a short way; it gives, to the byte, what the long one gives."""

import asyncio
import codecs
from collections.abc import Callable
from typing import Any

import msgspec
import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

import tiny_tokenizers
from octavo_server.frontend.answer import Delta
from octavo_server.frontend.responses import (
    ChatChunk,
    ChatChunkChoice,
    Completion,
    CompletionChoice,
)
from octavo_server.frontend.responses import Delta as ChunkDelta
from octavo_server.frontend.sse import ClientGone, TextFrames, frame, until_disconnect
from octavo_server.frontend.text.detokenizer import Detokenizer
from octavo_server.frontend.text.tokenizer import TextTokenizer
from octavo_server.metric_families import LABELS, Families


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextTokenizer]:
    base = tmp_path_factory.mktemp("tokenizers")
    return {name: TextTokenizer(path) for name, path in tiny_tokenizers.families(base)}


@pytest.mark.parametrize("family", tiny_tokenizers.FAMILIES)
@pytest.mark.parametrize("skip_special", [True, False])
@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(0, 700), max_size=40), at_start=st.booleans())
def test_each_token_of_any_sequence_gives_what_a_decoder_of_its_bytes_gives(
    tokenizers: dict[str, TextTokenizer], family: str, skip_special: bool, ids: list[int], at_start: bool
) -> None:
    """Parts of characters, bytes that belong to none, special tokens and ids without a token, in any order."""
    tokenizer = tokenizers[family]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    detokenizer = Detokenizer(tokenizer, at_start=at_start, skip_special=skip_special)
    first = at_start
    for token_id in ids:
        data = b"" if skip_special and token_id in tokenizer.special_ids else tokenizer.token_bytes(token_id)
        if data and first:
            data, first = tokenizer.first_bytes(token_id), False
        assert detokenizer.add(token_id) == decoder.decode(data)


def test_parts_of_characters_wait_and_the_next_token_does_not_overtake_them(
    tokenizers: dict[str, TextTokenizer],
) -> None:
    tokenizer = tokenizers["byte-level BPE"]
    parts = {tokenizer.token_bytes(token_id): token_id for token_id in range(512)}
    letter = parts[b"a"]
    first, second = (parts[bytes([byte])] for byte in "é".encode())
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(token_id) for token_id in (letter, first, second, letter, first, letter)]
    assert pieces == ["a", "", "é", "a", "", "�a"]


@settings(max_examples=200, deadline=None)
@given(entries=st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.text(max_size=4))))
def test_a_delta_holds_all_tokens_and_texts_in_their_order(entries: list[tuple[int, int, str]]) -> None:
    delta = Delta()
    for token_id, offset, text in entries:
        delta.add_token(token_id, offset)
        delta.add_text(text)
    assert delta.token_ids == [token_id for token_id, _, _ in entries]
    assert delta.offsets == [offset for _, offset, _ in entries]
    assert delta.text == "".join(text for _, _, text in entries)


def completion(text: str) -> Completion:
    return Completion("cmpl-1", 2, 'a "name"', [CompletionChoice(3, text)], usage=None)


def chunk(text: str) -> ChatChunk:
    return ChatChunk("chatcmpl-1", 2, "ü", [ChatChunkChoice(0, ChunkDelta(content=text))])


def thought(text: str) -> ChatChunk:
    delta = ChunkDelta(reasoning=text, reasoning_content=text)
    return ChatChunk("chatcmpl-1", 2, "m", [ChatChunkChoice(0, delta)])


@pytest.mark.parametrize("event_of", [completion, chunk, thought])
@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8"))
    | st.sampled_from(['"', "\\", "\n\n", "\x00", "</script>", "🏴‍☠️", "\u2028"])
)
def test_an_event_from_a_frame_is_the_encoded_event(event_of: Callable[[str], msgspec.Struct], text: str) -> None:
    assert TextFrames(event_of)(text) == frame(event_of(text))


def test_a_frame_in_which_its_text_does_not_stand_is_refused() -> None:
    with pytest.raises(ValueError, match="hold its text"):
        TextFrames(lambda text: Completion("", 1, "", []))


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.sampled_from([0.01, 0.025, 0.1, 1.0, 2.5]) | st.floats(0.0, 100.0)))
def test_a_histogram_is_told_as_the_librarys_is(values: list[float]) -> None:
    bounds = (0.01, 0.025, 0.1, 1.0, 2.5)
    ours = Families("m")
    histogram = ours.histogram("test:seconds", "Of a test.", bounds)
    registry = CollectorRegistry()
    theirs = prometheus_client.Histogram("test:seconds", "Of a test.", LABELS, registry=registry, buckets=bounds)
    theirs = theirs.labels("m", "0")
    for value in values:
        histogram.observe(value)
        theirs.observe(value)
    assert prometheus_client.generate_latest(ours.registry) == prometheus_client.generate_latest(registry)


@settings(max_examples=50, deadline=None)
@given(amounts=st.lists(st.integers(0, 2**40)))
def test_a_count_is_told_as_the_librarys_is(amounts: list[int]) -> None:
    ours, theirs = Families("m"), Families("m")
    count, counter = ours.count("test:tokens", "Of a test."), theirs.counter("test:tokens", "Of a test.")
    for amount in amounts:
        count.inc(amount)
        counter.inc(amount)
    assert prometheus_client.generate_latest(ours.registry) == prometheus_client.generate_latest(theirs.registry)


# --- a client that leaves


class Client:
    """An ASGI `receive` that says `http.disconnect` once `leave` was called."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()

    def leave(self) -> None:
        self._gone.set()

    async def receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}


async def test_work_whose_client_stays_gives_its_result_and_nothing_is_left_over() -> None:
    before = asyncio.all_tasks()

    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    assert await until_disconnect(Client().receive, work()) == "done"
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_work_ends_with_its_client() -> None:
    client, ended = Client(), []

    async def work() -> None:
        asyncio.get_running_loop().call_soon(client.leave)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(ClientGone):
        await until_disconnect(client.receive, work())
    assert ended
    await asyncio.sleep(0)  # no cancellation is left behind


async def test_a_client_that_leaves_when_the_work_is_done_cancels_nothing_else() -> None:
    client = Client()

    async def work() -> str:
        client.leave()
        await asyncio.sleep(0)  # the watcher hears of it …
        return "done"  # … and its task ends now

    assert await until_disconnect(client.receive, work()) == "done"
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("leaves", [False, True])
async def test_who_cancels_from_outside_gets_the_cancellation(leaves: bool) -> None:
    client, begun = Client(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(until_disconnect(client.receive, work()))
    await begun.wait()
    if leaves:
        client.leave()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises((asyncio.CancelledError, ClientGone)) as caught:
        await task
    if not leaves:
        assert caught.type is asyncio.CancelledError


async def test_a_failure_of_the_work_is_its_own() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await until_disconnect(Client().receive, work())
