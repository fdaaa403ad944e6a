"""What is read off a body, and what is put into it: whatever else stands there is passed on as it came."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_common.errors import RequestError
from octavo_gateway.asked import ROUTES, Asked, parse

CHAT = "/v1/chat/completions"


def asked(path: str = CHAT, tenant: str | None = None, **fields: Any) -> Asked:
    return parse(path, json.dumps({"model": "m", **fields}).encode(), tenant=tenant)


def sent(found: Asked, **others: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(found.body(**others))
    return body


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2), ([], 1), (["a"], 1), (7, 1), ({"x": 1}, 1)],
)
def test_prompts_are_counted_as_a_replica_counts_them(prompt: Any, count: int) -> None:
    found = asked("/v1/completions", prompt=prompt, n=3, stream=True)
    assert found.choices == 3 * count
    assert asked("/v1/completions", prompt=prompt, stream=True).resumable == (count == 1)


def test_a_stream_is_asked_for_tokens_usage_and_a_seed_and_else_nothing() -> None:
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "temperature": 0.5,
        "new_field": {"x": [1]},
    }
    told = sent(asked(**body))
    added = {name: told.pop(name) for name in ("return_token_ids", "stream_options", "seed")}
    assert told == {"model": "m", **body}
    assert added["return_token_ids"] is True
    assert added["stream_options"] == {"include_usage": True}
    assert 0 <= added["seed"] < 2**62


def test_what_the_client_said_of_these_stays() -> None:
    options = {"include_usage": False, "continuous_usage_stats": True}
    told = sent(asked(stream=True, seed=0, stream_options=options))
    assert (told["seed"], told["stream_options"]) == (0, {**options, "include_usage": True})
    for wrong in ("yes", [1], {"include_usage": "maybe"}):  # the replica says what is wrong with it
        told = sent(asked(stream=True, stream_options=wrong))["stream_options"]
        assert told == (wrong if not isinstance(wrong, dict) else {"include_usage": True})


def test_what_is_not_streamed_is_asked_for_as_it_came_but_for_a_seed() -> None:
    told = sent(asked(messages=[], stream=False))
    assert set(told) == {"model", "messages", "stream", "seed"}
    assert set(sent(asked("/v1/embeddings", input="x"))) == {"model", "input"}
    assert set(sent(asked("/tokenize", tenant="t", prompt="x"))) == {"model", "prompt"}
    assert set(sent(asked("/v1/responses/input_tokens", tenant="t", input="x"))) == {"model", "input"}


def test_retries_and_resumed_requests_have_one_seed() -> None:
    found = asked(messages=[], stream=True)
    seeds = {sent(found)["seed"], sent(found, octavo_resume={"output_token_ids": [1]})["seed"]}
    assert len(seeds) == 1


@pytest.mark.parametrize(
    ("prompt", "tokens"), [([1, 2, 300000], 3), ([[1, 2], [3]], 3), (["x" * 400, "y" * 400], 202), ("[1, 2, 3]", 2)]
)
def test_tokens_are_counted_where_they_are_given_and_else_estimated(prompt: Any, tokens: int) -> None:
    assert asked("/v1/completions", prompt=prompt).prompt.total == tokens


def test_the_same_chat_in_another_spelling_has_the_same_prompt() -> None:
    messages = [{"role": "system", "content": "x" * 500}, {"role": "user", "content": "hello" * 100}]
    spelt = json.dumps({"messages": [dict(reversed(each.items())) for each in messages], "model": "m"}, indent=4)
    assert parse(CHAT, spelt.encode(), tenant=None).prompt == asked(messages=messages).prompt


def test_turns_of_a_conversation_share_their_home_and_their_beginning() -> None:
    messages = [{"role": "system", "content": "x" * 700}, {"role": "user", "content": "hello " * 200}]
    first = asked(messages=messages).prompt
    more = [*messages, {"role": "assistant", "content": "y" * 900}, {"role": "user", "content": "and?"}]
    second = asked(messages=more).prompt
    assert first.home == second.home
    assert second.chain[: len(first.chain)] == first.chain
    assert asked(messages=messages, tenant="t").prompt.home != first.home
    assert set(asked(messages=messages, cache_salt="s").prompt.chain).isdisjoint(first.chain)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = ["messages", "prompt", "stream", "n", "seed", "stream_options", "cache_salt", "max_tokens", "input", "tools"]


@given(st.sampled_from(sorted(ROUTES)), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6), st.booleans())
def test_whatever_stands_in_a_body_it_is_passed_on_or_refused(path: str, fields: dict[str, Any], keyed: bool) -> None:
    try:
        found = asked(path, "tenant" if keyed else None, **fields)
    except RequestError:
        return
    told = sent(found)
    ours = {"return_token_ids", "stream_options", "seed", "cache_salt"}
    assert {name: value for name, value in told.items() if name not in ours} == {
        "model": "m",
        **{name: value for name, value in fields.items() if name not in ours},
    }


@given(st.binary(max_size=60))
def test_whatever_bytes_come_they_are_read_or_refused(raw: bytes) -> None:
    for path in ROUTES:
        try:
            parse(path, raw, tenant=None)
        except RequestError as error:
            assert error.status == 400
