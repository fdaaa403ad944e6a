"""A stream read by its bytes: however it is cut, and wherever it breaks, nothing is lost or comes twice."""

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateways import Stream, answer_tokens, events, text_of
from octavo_gateway.answer_so_far import AnswerSoFar
from octavo_gateway.plain_stream import PlainStream, read_usage

BODY: dict[str, Any] = {"messages": "x", "seed": 3, "return_token_ids": True, "stream_options": {"include_usage": True}}
NOTHING: dict[str, Any] = {"output_token_ids": []}


def stream_of(resume: dict[str, Any] | None = None) -> bytes:
    return b"".join(event for event, _ in events(BODY, 9, resume or NOTHING, "a"))


def fed(so_far: AnswerSoFar, data: bytes, cuts: list[int]) -> bytes:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return b"".join(so_far.feed(data[begin:end]) for begin, end in itertools.pairwise(places))


@given(st.lists(st.integers(0, 10**6), max_size=20))
def test_a_stream_cut_anywhere_is_read_the_same(cuts: list[int]) -> None:
    so_far = AnswerSoFar(strips=True)
    stream = Stream.of(fed(so_far, stream_of(), cuts).decode())
    assert (stream.text, stream.done, len(stream.usages)) == (text_of(answer_tokens(BODY, 9)), True, 1)
    assert so_far.tokens == answer_tokens(BODY, 9)
    assert (so_far.usage, so_far.ended, so_far.finished, so_far.opening) == ((3, 9, None), True, True, 1)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=4), st.lists(st.integers(0, 10**6), max_size=5))
def test_broken_anywhere_any_number_of_times_it_goes_on_as_one_stream(breaks: list[int], cuts: list[int]) -> None:
    so_far = AnswerSoFar(strips=True)
    text, resume = b"", None
    for cut in breaks:
        data = stream_of(resume)
        text += fed(so_far, data[: cut % len(data)], cuts)
        if so_far.ended:
            break
        resume = so_far.resume()
    else:
        text += fed(so_far, stream_of(resume), cuts)
    stream = Stream.of(text.decode())
    assert (stream.text, stream.roles, stream.finishes) == (text_of(answer_tokens(BODY, 9)), 1, ["stop"])
    assert (stream.done, len(stream.usages), len(stream.ids)) == (True, 1, 1)


STRINGS = st.sampled_from(
    [
        '","token_ids":[1,2',
        ',"prompt_token_ids":[',
        '"finish_reason":"stop"',
        '"usage":{',
        "[DONE]",
        "\n\ndata: [DONE]",
        "]}",
    ]
)


@given(st.lists(STRINGS | st.text(max_size=8), max_size=6))
def test_nothing_that_a_model_writes_is_taken_for_a_field(texts: list[str]) -> None:
    so_far, sent = AnswerSoFar(strips=True), b""
    for number, text in enumerate(texts):
        choice = {
            "index": 0,
            "delta": {"content": text},
            "finish_reason": None,
            "logprobs": None,
            "token_ids": [number],
        }
        event = {"id": "x", "created": 1, "choices": [choice]}
        sent += so_far.feed(b"data: " + json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n")
    assert so_far.tokens == list(range(len(texts)))
    assert not so_far.finished
    assert not so_far.ended
    assert Stream.of(sent.decode()).text == "".join(texts)


def test_errors_that_are_the_requests_own_end_it_and_those_of_the_replica_do_not() -> None:
    for code, kind, ends in (
        ("timeout", "server_error", True),
        ("invalid_request", "invalid_request_error", True),
        ("engine_error", "server_error", False),
        ("out_of_memory", "server_error", False),
    ):
        so_far = AnswerSoFar(strips=True)
        event = b'data: {"error":{"message":"x","type":"%b","param":null,"code":"%b"}}\n\n' % (
            kind.encode(),
            code.encode(),
        )
        assert bool(so_far.feed(event)) == so_far.ended == ends
        assert (so_far.broken is None) == ends


@given(st.lists(st.integers(0, 10**6), max_size=20))
def test_a_responses_events_are_passed_on_whole_and_its_end_is_seen(cuts: list[int]) -> None:
    end = b'event: response.completed\ndata: {"response":{"usage":{"input_tokens":3,"output_tokens":4}}}\n\n'
    data = b'event: response.created\ndata: {"x":1}\n\nevent: response.output_text.delta\ndata: {"y":"z"}\n\n' + end
    plain = PlainStream()
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    passed = [plain.feed(data[begin:after]) for begin, after in itertools.pairwise(places)]
    assert b"".join(passed) == data
    assert all(not piece or piece.endswith(b"\n\n") for piece in passed)
    assert (plain.ended, plain.passed, plain.usage) == (True, 3, (3, 4, None))


def test_usage_that_was_not_asked_for_is_read_and_not_passed_on() -> None:
    so_far = AnswerSoFar(strips=True, strips_usage=True)
    named = b'data: {"id":"x","created":1,"choices":'
    chunk = named + b'[{"index":0,"delta":{"content":"a \\",\\"usage\\":null"},"token_ids":[1]}],"usage":null}\n\n'
    assert b'"usage":null}' not in (passed := so_far.feed(chunk))
    assert passed.count(b"usage") == 1
    details = b'"prompt_tokens_details":{"cached_tokens":16}'
    assert so_far.feed(named + b'[],"usage":{"prompt_tokens":20,"completion_tokens":1,' + details + b"}}\n\n") == b""
    assert so_far.usage == (20, 1, 16)


def test_the_usage_of_a_whole_answer_is_read_in_both_forms() -> None:
    assert read_usage(b'{"usage":{"prompt_tokens":5,"completion_tokens":6}}') == (5, 6, None)
    assert read_usage(b'{"usage":{"input_tokens":5,"output_tokens":6}}') == (5, 6, None)
    assert read_usage(b'{"usage":{"prompt_tokens":5}}') == (5, 0, None)
    assert read_usage(b"nonsense") == (0, 0, None)
