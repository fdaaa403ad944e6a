"""Bodies: where they are parsed, and what two parsers have in common."""

import asyncio
import json
import re
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from octavo_common.body_share import SMALL_BODY_BYTES
from octavo_server.config import ServerConfig
from octavo_server.errors import RequestError
from octavo_server.frontend import body as body_module
from octavo_server.frontend import json_bounds
from octavo_server.frontend.app import create_app
from octavo_server.frontend.body import PARSE_HERE_BYTES, parse_body
from octavo_server.frontend.chat_prompt import call_arguments
from octavo_server.frontend.generation_fields import MAX_BIASES
from octavo_server.frontend.json_bounds import MAX_COMMAS, MAX_DIGITS, MAX_NESTED, JSONBounds
from octavo_server.frontend.limits import BodyLimit
from octavo_server.frontend.message_fields import MAX_MESSAGES
from octavo_server.frontend.openai import ChatCompletionRequest, CompletionRequest
from octavo_server.frontend.state import ServerState


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    state = ServerState(ServerConfig(model=tmp_path, served_model_name=("m",)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(state)), base_url="http://x") as connected:
        yield connected
    state.close()


@pytest.mark.parametrize("large", [False, True])
async def test_large_bodies_are_parsed_and_checked_beside_the_event_loop(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    threads: list[str] = []

    def spied(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return parse_body(*args)

    monkeypatch.setattr(body_module, "parse_body", spied)
    prompt = "x" * PARSE_HERE_BYTES if large else "x"
    answer = await client.post("/v1/completions", json={"model": "m", "prompt": prompt})
    assert answer.json()["error"]["code"] == "not_ready"  # it was understood
    refused = await client.post("/v1/completions", json={"model": "m", "prompt": prompt, "top_p": 2})
    assert refused.json()["error"]["param"] == "top_p"
    assert len(threads) == 2
    assert all(name.startswith("text") == large for name in threads)


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "application/a+json"])
def test_json_is_known_by_its_type(content_type: str) -> None:
    raw = b'{"model": "m", "prompt": "hello"}'
    assert parse_body(CompletionRequest, raw, content_type).prompt == "hello"
    with pytest.raises(RequestValidationError):
        parse_body(CompletionRequest, raw, "text/plain")


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 415), ("zstd, gzip", 415), ("identity", 503), ("", 503)])
async def test_a_compressed_body_is_refused_by_name(client: httpx.AsyncClient, encoding: str, status: int) -> None:
    body = {"model": "m", "prompt": "x"}
    answer = await client.post("/v1/completions", json=body, headers={"Content-Encoding": encoding})
    assert answer.status_code == status  # 503: it was read, and there is no engine here
    if status == 415:
        assert encoding in answer.json()["error"]["message"]


class Sender:
    """Asks an app that reads bodies and answers when it may."""

    def __init__(self, most_held: int) -> None:
        self.may_answer, self._bodies = asyncio.Event(), BodyLimit(self._app, most_held=most_held)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        await self.may_answer.wait()

    async def send(self, *sizes: int) -> "asyncio.Task[None]":
        parts = [{"type": "http.request", "body": bytes(size), "more_body": at > 0} for at, size in enumerate(sizes)]

        async def receive() -> Any:
            return parts.pop() if parts else await asyncio.get_running_loop().create_future()

        scope = {"type": "http", "headers": []}
        task = asyncio.create_task(self._bodies(scope, receive, receive))  # type: ignore[arg-type]
        for _ in range(5):
            await asyncio.sleep(0)
        return task


async def test_bodies_have_a_bound_together_until_they_are_answered_and_small_ones_always_pass() -> None:
    size = 3 * SMALL_BODY_BYTES
    sender = Sender(most_held=2 * size)
    first = [await sender.send(size // 2, size // 2), await sender.send(0, size)]
    refused = await sender.send(1, size)
    small = await sender.send(SMALL_BODY_BYTES)
    with pytest.raises(RequestError, match=f"{2 * size} are allowed") as caught:
        await refused
    assert (caught.value.status, caught.value.code) == (503, "too_many_bodies")
    first[0].cancel()
    await asyncio.wait(first[:1])  # its client has left
    second = await sender.send(size)
    assert not second.done()
    sender.may_answer.set()
    await asyncio.wait([small, second, first[1]])
    await asyncio.gather(*[await sender.send(size) for _ in range(10)])


@pytest.mark.parametrize(
    ("raw", "fits"),
    [
        (b'{"model": "m", "prompt": [%s]}' % b",".join([b"[%s]" % b",".join([b"128001"] * 4000)] * 256), True),
        (b'{"model": "m", "prompt": "%s"}' % (b"a, {b}: [c], " * 1_000_000), True),
        (b'{"model": "m", "prompt": [%s]}' % b",".join([b"1"] * (MAX_COMMAS + 1)), False),
        (b'{"model": "m", "prompt": [%s]}' % b",".join([b"[]"] * MAX_NESTED), False),
        (b'{"model": "m", %s}' % b",".join(b'"%d":1' % number for number in range(MAX_NESTED)), False),
    ],
    ids=["256 prompts of ids", "a text", "ids", "lists", "keys"],
)
async def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(
    client: httpx.AsyncClient, raw: bytes, fits: bool
) -> None:
    answer = await client.post("/v1/completions", content=raw, headers={"Content-Type": "application/json"})
    if fits:
        assert answer.json()["error"]["code"] == "not_ready"
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_values")
        assert str(MAX_COMMAS) in answer.json()["error"]["message"]


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.integers() | st.text('a\\",[]{}:\n', max_size=9),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a\\",:{', max_size=5), inner, max_size=4),
    ),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(1, 5),
)
def test_values_are_counted_outside_of_strings_wherever_pieces_end(
    value: Any, most_commas: int, most_nested: int, piece: int
) -> None:
    raw = json.dumps(value).encode()
    outside = re.sub(rb'"(\\.|[^"\\])*"', b"", raw)
    commas, nested = len(re.findall(b",", outside)), len(re.findall(rb"[:\[{]", outside))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_bounds, "MAX_COMMAS", most_commas)
        patched.setattr(json_bounds, "MAX_NESTED", most_nested)
        patched.setattr(json_bounds, "_PIECE", piece)
        if commas > most_commas or nested > most_nested:
            with pytest.raises(RequestError):
                JSONBounds().add(raw)
        else:
            JSONBounds().add(raw)


@pytest.mark.parametrize("digits", ["9" * (MAX_DIGITS + 1), "9" * 15 * 2**20, "0." + "9" * 2**17, "1e" + "9" * 200])
def test_a_number_of_many_digits_is_refused_before_it_is_parsed(digits: str) -> None:
    """What it takes grows with their square."""
    for raw in (f'{{"n": {digits}}}', f'[{"1," * 100_000}"\\"",-{digits}]'):
        with pytest.raises(RequestError, match=f"more than {MAX_DIGITS} digits") as caught:
            parse_body(CompletionRequest, raw.encode(), "application/json")
        assert (caught.value.status, caught.value.code) == (400, "number_too_long")
    JSONBounds().add(f'{{"n": "{digits}", "1": 0.{"1" * MAX_DIGITS}}}'.encode())


@pytest.mark.parametrize("one", ["1e400", "NaN", '"\\ud800"'])
def test_only_small_bodies_may_hold_what_the_slow_parser_takes(one: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes ten times as long, and nothing else goes on meanwhile."""
    raw = f'{{"model": "m", "prompt": "a", "seed": {one}}}'.encode()
    with pytest.raises(RequestValidationError):
        parse_body(CompletionRequest, raw, "application/json")
    monkeypatch.delattr(json, "loads")
    large = raw.replace(b'"a"', b'"' + b"a" * PARSE_HERE_BYTES + b'"')
    with pytest.raises(RequestError, match="not valid JSON") as caught:
        parse_body(CompletionRequest, large, "application/json")
    assert caught.value.status == 400


def test_the_calls_of_a_chat_are_bounded_together() -> None:
    arguments = '{"a": [' + "1," * (MAX_COMMAS // 4) + "1]}"
    bounds = JSONBounds("messages")
    for _ in range(3):
        call_arguments(arguments, bounds)
    with pytest.raises(RequestError, match="it holds too many values"):
        call_arguments('{"a": [' + "1," * (MAX_COMMAS // 4 + 1) + "1]}", bounds)
    for text in ('{"a": ' + "9" * 5000 + "}", "9" * 200, '{"a": 1e400}', '{"a": NaN}', '{"a": "\\ud83d"}', "[1]", "{"):
        assert call_arguments(text) == text


def test_the_arguments_of_a_call_are_bounded_too() -> None:
    with pytest.raises(RequestError, match="it holds too many values") as caught:
        call_arguments('{"a": [' + "{}," * MAX_NESTED + "1]}")
    assert (caught.value.status, caught.value.param) == (413, "messages")
    halves = "\ud800" * MAX_NESTED
    assert call_arguments(halves) == halves


NUMBERS = st.integers() | st.floats() | st.integers(-(10**30), 10**30)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_the_quick_parser_says_what_pythons_says(value: Any) -> None:
    """What it refuses goes to Python's, so all that matters is what it takes."""
    raw = json.dumps({"x": value}).encode()
    found, expected = body_module._parse(raw), json.loads(raw)
    assert json.dumps(found) == json.dumps(expected)  # types too, and NaN


@pytest.mark.parametrize("raw", [b"{", b"{} {}", b'{"a": 01}', b"\xff", b'{"a":' * 50_000, b"{'a': 1}"])
def test_what_is_no_json_is_refused_by_both(raw: bytes) -> None:
    with pytest.raises(RequestError, match="not valid JSON"):
        parse_body(CompletionRequest, raw, "application/json")


MANY = 50_000


def some(number: int, key: str = "x{}", value: Any = 0) -> dict[str, Any]:
    return {key.format(index): value for index in range(number)}


HOSTILE = {
    "unknown fields": ({"prompt": "a", **some(MANY)}, "x0", "not known"),
    "of stream_options": ({"prompt": "a", "stream": True, "stream_options": some(MANY)}, "stream_options.x0", "not kn"),
    "metadata": ({"prompt": "a", "metadata": some(MANY)}, "metadata", f"at most 16 .* not {MANY}"),
    "metadata within its size": ({"prompt": "a", "metadata": some(16)}, "metadata.x0", "valid string"),
    "logit_bias": (
        {"prompt": "a", "logit_bias": some(MANY, "{}")},
        "logit_bias",
        f"at most {MAX_BIASES} .* not {MANY}",
    ),
    "keys of logit_bias": (
        {"prompt": "a", "logit_bias": some(MAX_BIASES)},
        "logit_bias.x0",
        "its names must be token ids",
    ),
    "values of logit_bias": (
        {"prompt": "a", "logit_bias": some(MAX_BIASES, "{}", "a")},
        "logit_bias.0",
        "valid number",
    ),
    "token ids": ({"prompt": [0] + ["a"] * MANY}, "prompt[1]", "valid integer"),
    "messages": ({"messages": [{"role": "no"}] * MAX_MESSAGES}, "messages[0].role", "must be one of"),
    "of a message": ({"messages": [{"role": "user", "content": "a", **some(MANY)}] * 2}, "messages[0].x0", "not known"),
    "of a part": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", **some(MANY)}] * 2}]},
        "messages[0].content[0].x0",
        "not known",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_of_many_mistakes_the_first_is_told_and_no_others_are_collected(
    client: httpx.AsyncClient, case: str
) -> None:
    body, param, message = HOSTILE[case]
    model, path = (
        (ChatCompletionRequest, "chat/completions") if "messages" in body else (CompletionRequest, "completions")
    )
    body = {"model": "m", **body}
    with pytest.raises(RequestValidationError) as caught:
        parse_body(model, json.dumps(body).encode(), "application/json")
    assert isinstance(caught.value.__cause__, ValidationError)
    assert caught.value.__cause__.error_count() == len(caught.value.errors()) == 1
    error = (await client.post(f"/v1/{path}", json=body)).json()["error"]
    assert error["param"] == param
    assert re.search(message, error["message"])


def test_a_body_that_is_refused_takes_hardly_more_memory_than_its_json() -> None:
    raw = json.dumps({"model": "m", "prompt": "a", **some(MANY)}).encode()

    def peak(use: Callable[[], object]) -> int:
        tracemalloc.start()
        use()
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    def refused() -> None:
        with pytest.raises(RequestValidationError):
            parse_body(CompletionRequest, raw, "application/json")

    assert peak(refused) < 1.5 * peak(lambda: body_module._parse(raw))


def test_the_largest_objects_are_taken_as_they_are() -> None:
    biases = {str(index * 100): index % 200 - 100 for index in range(MAX_BIASES)}
    metadata = some(16, "{}", "v" * 512)
    prompt = list(range(300_000))
    raw = json.dumps({"model": "m", "prompt": prompt, "logit_bias": biases, "metadata": metadata}).encode()
    taken = parse_body(CompletionRequest, raw, "application/json")
    assert (taken.prompt, taken.logit_bias, taken.metadata) == (prompt, biases, metadata)


def test_every_field_there_is_may_be_given_at_once() -> None:
    whole = dict.fromkeys(CompletionRequest.model_fields) | {"model": "m", "prompt": "a"}
    assert parse_body(CompletionRequest, json.dumps(whole).encode(), "application/json").prompt == "a"


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "embeddings", "../tokenize"])
async def test_a_name_with_half_of_a_surrogate_pair_is_refused(client: httpx.AsyncClient, path: str) -> None:
    """Nothing can be said of such a field by its name, nor of such a kind of item."""
    for body in (
        r'{"model": "m", "\ud800": 1}',
        r'{"model": "m", "input": [{"type": "\ud800"}], "messages": [{"role": "user", "a\udfff": []}]}',
        r'{"model": "m", "input": "x", "messages": [], "prompt": "x", "tools": [{"type": "\ud800"}]}',
    ):
        answer = await client.post(f"/v1/{path}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, answer.text
        if r'"\ud800": 1' in body:
            assert "half of a surrogate pair" in answer.json()["error"]["message"]
