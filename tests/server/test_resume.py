"""An answer that is cut off after any number of its tokens, and goes on elsewhere by `octavo_resume`, reads as if not.

As the gateway does it: it passes on the events of a stream until it breaks, counts the token ids in them, and sends the
client's request again with these.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import jsonschema
import pytest
from tokenizers import Tokenizer

import serving
import tiny_tokenizers
from tiny_models import config_json, write_checkpoint

DEMO: Final = Path(__file__).resolve().parents[2] / "server" / "octavo_server" / "demo_model"
GATEWAY: Final = {"authorization": "Bearer the-gateways"}
CLIENT: Final = {"authorization": "Bearer a client's"}
HTTP: Final = httpx.Client(timeout=60, verify=False)  # one for all: each makes a context for TLS, for 20 ms
MESSAGES: Final = [{"role": "user", "content": "Grüße, what is a page? 🙂"}]


@pytest.fixture(scope="module", autouse=True)
def connections() -> Iterator[None]:
    yield
    HTTP.close()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "gateway"
    path.write_text("the-gateways\n\nits-next-one\n")
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[str]:
    """A model of noise: its answers are bytes of all kinds, whole characters and parts of them."""
    tokenizer: Tokenizer = tiny_tokenizers.byte_level_bpe()
    model = tmp_path_factory.mktemp("resume") / "model"
    eos = tokenizer.token_to_id("<|im_end|>")
    config = config_json("LlamaForCausalLM", vocab_size=tokenizer.get_vocab_size(), eos_token_id=eos)
    write_checkpoint(model, config)
    calls = "{% if false %}{{ tools }}<tool_call></tool_call>{% endif %}"
    tiny_tokenizers.save(tokenizer, model, chat_template=f"{calls}{tiny_tokenizers.CHATML}")
    yield from served(model, keys)


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[str]:
    """The fake engine, which says what the prompt says."""
    model = serving.text_model(tmp_path_factory.mktemp("echo"))
    yield from served(model, keys, fake=True)


@pytest.fixture(scope="module")
def demo(keys: Path) -> Iterator[str]:
    yield from served(DEMO, keys)


def served(model: Path, keys: Path, *, fake: bool = False) -> Iterator[str]:
    with serving.serve(
        model,
        fake=fake,
        env={"OMP_NUM_THREADS": "1"},
        api_key=["a client's"],
        gateway_api_key_file=str(keys),
        max_num_seqs=32,
    ) as process:
        process.wait_until_ready()
        yield process.url


def post(url: str, body: dict[str, Any], headers: dict[str, str] = GATEWAY) -> httpx.Response:
    return HTTP.post(url, json=body, headers=headers)


class Stream:
    """The events of a stream, and what a client makes of them."""

    def __init__(self, url: str, route: str, body: dict[str, Any]) -> None:
        body = {"model": "tiny", "stream": True, "return_token_ids": True, **body}
        body["stream_options"] = {"include_usage": True}
        answer = post(f"{url}/v1/{route}", body)
        assert answer.status_code == 200, answer.text
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        self.events = [json.loads(line) for line in lines]

    def until(self, tokens: int) -> list[Any]:
        """The events up to the one with the token of this number: what the gateway has passed on."""
        count = 0
        for at, event in enumerate(self.events):
            count += len(token_ids([event]))
            if count >= tokens:
                return self.events[: at + 1]
        raise ValueError(tokens)


def token_ids(events: list[Any]) -> list[int]:
    return [token for event in events for choice in event["choices"] for token in choice.get("token_ids") or []]


def read(events: list[Any]) -> dict[str, Any]:
    """What a client knows in the end: the text, how it ended, and the usage but for what a cache saved."""
    choices = [choice for event in events for choice in event["choices"]]
    deltas = [choice.get("delta", {}) for choice in choices]
    usage = [event["usage"] for event in events if event.get("usage")]
    return {
        "text": "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices),
        "reasoning": "".join(delta.get("reasoning") or "" for delta in deltas),
        "calls": put_together([call for delta in deltas for call in delta.get("tool_calls") or []]),
        "roles": [delta["role"] for delta in deltas if "role" in delta],
        "ends": [(c["finish_reason"], c.get("stop_reason")) for c in choices if c["finish_reason"] is not None],
        "logprobs": [
            entry
            for c in choices
            if c.get("logprobs")
            for entry in c["logprobs"].get("content", c["logprobs"].get("tokens"))
        ],
        "token_ids": token_ids(events),
        "usage": [(each["prompt_tokens"], each["completion_tokens"]) for each in usage],
        "named": {(event["id"], event["created"], event["model"]) for event in events},
    }


def put_together(pieces: list[Any]) -> dict[int, list[str]]:
    """Name and arguments of each call; a name that comes twice is there twice."""
    calls: dict[int, list[str]] = {}
    for piece in pieces:
        call, function = calls.setdefault(piece["index"], ["", ""]), piece["function"]
        call[0] += function.get("name") or ""
        call[1] += function.get("arguments") or ""
    return calls


def assert_it_can_be_cut_anywhere(url: str, route: str, body: dict[str, Any], every: int = 1) -> dict[str, Any]:
    whole = Stream(url, route, body)
    wanted, tokens = read(whole.events), token_ids(whole.events)
    first = whole.events[0]
    counts = {len(token_ids(whole.events[: at + 1])) for at in range(len(whole.events))}
    # Once the gateway has passed on how the answer ended, there is nothing to resume.
    cuts = sorted(count for count in counts | {0} if not count or not read(whole.until(count))["ends"])[::every]

    def resumed(cut: int) -> dict[str, Any]:
        named = {"response_id": first["id"], "created": first["created"]}
        rest = Stream(url, route, {**body, "octavo_resume": {"output_token_ids": tokens[:cut], **named}})
        return read((whole.until(cut) if cut else []) + rest.events)

    with ThreadPoolExecutor(8) as pool:
        for cut, found in zip(cuts, pool.map(resumed, cuts), strict=True):
            assert found == wanted, f"cut after {cut}"
    assert len(cuts) > 2
    return wanted


CASES: Final[dict[str, dict[str, Any]]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 1.0, "seed": 3},
    "penalties": {"temperature": 1.0, "seed": 4, "presence_penalty": 1.0, "repetition_penalty": 1.3, "min_tokens": 10},
    "logprobs": {"temperature": 1.0, "seed": 5, "logprobs": True, "top_logprobs": 1},
}


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_a_chat_may_be_cut_after_any_token(tiny: str, fields: dict[str, Any]) -> None:
    found = assert_it_can_be_cut_anywhere(tiny, "chat/completions", {"messages": MESSAGES, "max_tokens": 20, **fields})
    assert found["usage"][0][1] <= 20
    assert found["roles"] == ["assistant"]


@pytest.mark.parametrize("tools", [[], [{"type": "function", "function": {"name": "f"}}]], ids=["plain", "parsed"])
@pytest.mark.parametrize("stop", [[], ["<never", "\N{INFINITY} never"]], ids=["", "stops"])
def test_no_log_probability_is_lost_where_a_character_is_cut(tiny: str, tools: list[Any], stop: list[str]) -> None:
    fields = {"tools": tools, "stop": stop, "temperature": 1.0, "seed": 6, "logprobs": True, "max_tokens": 40}
    found = assert_it_can_be_cut_anywhere(tiny, "chat/completions", {"messages": MESSAGES, **fields})
    parts = [entry for entry in found["logprobs"] if entry["token"].startswith("\\x")]
    assert len(parts) > 10 and len(found["logprobs"]) > 30


def test_what_a_token_says_of_those_before_it_comes_out_once(tiny: str) -> None:
    # The second "a" alone tells that the first one began no stop string, and may itself begin one.
    schema = {"name": "x", "schema": {"type": "string", "pattern": "^(aaac){8}$"}}
    body = {"messages": MESSAGES, "stop": ["ab"], "response_format": {"type": "json_schema", "json_schema": schema}}
    fields = {"logprobs": True, "temperature": 1.0, "seed": 7, "max_tokens": 60}
    found = assert_it_can_be_cut_anywhere(tiny, "chat/completions", {**body, **fields})
    assert found["text"] == f'"{"aaac" * 8}"'


def test_a_grammar_s_end_is_one_though_ends_are_to_be_ignored(tiny: str) -> None:
    schema = {"name": "x", "schema": {"enum": ["one", "two"]}}
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 20, "ignore_eos": True}
    body["response_format"] = {"type": "json_schema", "json_schema": schema}
    whole = Stream(tiny, "chat/completions", body)
    rest = Stream(tiny, "chat/completions", {**body, "octavo_resume": resume(token_ids(whole.events))})
    assert token_ids(rest.events) == []
    assert read(rest.events)["usage"] == read(whole.events)["usage"]


def test_characters_of_several_tokens_come_out_once(echo: str) -> None:
    body = {"prompt": "Grüße 🙂 日本語 ñ", "max_tokens": 64, "temperature": 0}
    assert assert_it_can_be_cut_anywhere(echo, "completions", body)["text"].endswith("Grüße 🙂 日本語 ñ")
    for stop in ("🙂 日", "ß", "語 ñ"):
        found = assert_it_can_be_cut_anywhere(echo, "completions", {**body, "stop": ["🙂 X", stop]})
        assert found["ends"] == [("stop", stop)]


@pytest.mark.parametrize("included", [False, True])
def test_a_stop_string_across_the_cut_is_found(tiny: str, included: bool) -> None:
    body = {"messages": MESSAGES, "max_tokens": 24, "temperature": 0, "include_stop_str_in_output": included}
    text = read(Stream(tiny, "chat/completions", body).events)["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 6]
    # One that is found, and one of which only the beginning comes, which is held back until the answer ends.
    for stops, reason in (([stop], "stop"), ([text[-3:] + "never"], "length")):
        found = assert_it_can_be_cut_anywhere(tiny, "chat/completions", {**body, "stop": stops})
        assert found["ends"][0][0] == reason


def test_a_stop_token_and_the_models_own_end_are_found_in_what_is_replayed(tiny: str) -> None:
    tokens = token_ids(Stream(tiny, "completions", {"prompt": "hello", "max_tokens": 12, "temperature": 0}).events)
    body = {"prompt": "hello", "max_tokens": 12, "temperature": 0, "stop_token_ids": [tokens[6]]}
    assert assert_it_can_be_cut_anywhere(tiny, "completions", body)["ends"] == [("stop", tokens[6])]
    eos = tiny_tokenizers.byte_level_bpe().token_to_id("<|im_end|>")
    ended = {**body, "octavo_resume": resume([*tokens[:3], eos])}
    assert read(Stream(tiny, "completions", ended).events)["ends"] == [("stop", None)]


def test_an_echo_and_its_log_probabilities_are_not_repeated(tiny: str) -> None:
    body = {"prompt": "hello world", "max_tokens": 8, "temperature": 0, "echo": True, "logprobs": 1}
    assert assert_it_can_be_cut_anywhere(tiny, "completions", body)["text"].startswith("hello world")


@pytest.mark.parametrize("fields", [CASES["greedy"], CASES["seeded"]], ids=["greedy", "seeded"])
def test_the_demo_model_goes_on_as_it_would_have(demo: str, fields: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "What is paged attention?"}], "max_tokens": 24, **fields}
    assert_it_can_be_cut_anywhere(demo, "chat/completions", body)


FORMAT: Final = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "size": {"enum": ["small", "large"]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
FUNCTION: Final = {"name": "look_up", "description": "Look something up.", "parameters": FORMAT}
CONSTRAINED: Final[dict[str, dict[str, Any]]] = {
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": FORMAT}}},
    "call": {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"},
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_a_grammar_goes_on_where_it_was(demo: str, name: str) -> None:
    body = {"messages": [{"role": "user", "content": "What is a page?"}], "temperature": 1.0, "seed": 11}
    found = assert_it_can_be_cut_anywhere(demo, "chat/completions", {**body, **CONSTRAINED[name], "max_tokens": 120}, 4)
    answers = [found["text"]] if name == "schema" else [arguments for _, arguments in found["calls"].values()]
    assert answers
    for answer in answers:
        jsonschema.validate(json.loads(answer), FORMAT)


def test_an_answer_that_had_ended_brings_its_end_and_nothing_else(tiny: str) -> None:
    body = {"messages": MESSAGES, "max_tokens": 6, "temperature": 0}
    whole = Stream(tiny, "chat/completions", body)
    rest = Stream(tiny, "chat/completions", {**body, "octavo_resume": resume(token_ids(whole.events))})
    assert read(rest.events) == {
        **read([]),
        "ends": [("length", None)],
        "usage": read(whole.events)["usage"],
        "named": {("chatcmpl-there", 17, "tiny")},
    }


def resume(tokens: list[int]) -> dict[str, Any]:
    return {"output_token_ids": tokens, "response_id": "chatcmpl-there", "created": 17}


BAD: Final[dict[str, tuple[dict[str, Any], str, str]]] = {
    "not streamed": ({"stream": False}, "octavo_resume", "stream: true"),
    "several": ({"n": 2}, "octavo_resume", "one answer to one prompt"),
    "too long": ({"max_tokens": 2}, "octavo_resume.output_token_ids", "3 tokens are more than the answer may have"),
    "unknown token": ({"octavo_resume": resume([10**6])}, "octavo_resume.output_token_ids", "1000000 does not exist"),
    "negative token": ({"octavo_resume": resume([-1])}, "octavo_resume.output_token_ids[0]", "greater than or equal"),
    "no seed": ({"temperature": 1}, "seed", "the seed that it began with"),
    "a name that is none": ({"octavo_resume": {**resume([1]), "response_id": "a\nb"}}, "octavo_resume.response_id", ""),
    "more fields": ({"octavo_resume": {**resume([1]), "x": 1}}, "octavo_resume.x", "not known"),
}


@pytest.mark.parametrize(("fields", "param", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_resumed_is_refused_by_name(tiny: str, fields: dict[str, Any], param: str, words: str) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "stream": True, "temperature": 0, "octavo_resume": resume([1, 2, 3])}
    answer = post(f"{tiny}/v1/chat/completions", {**body, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert words in error["message"]


def test_several_prompts_are_refused(tiny: str) -> None:
    body = {"model": "tiny", "prompt": ["a", "b"], "stream": True, "temperature": 0, "octavo_resume": resume([1])}
    answer = post(f"{tiny}/v1/completions", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "octavo_resume")


def test_a_client_may_not_write_the_beginning_of_its_answer(tiny: str) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "stream": True, "temperature": 0, "octavo_resume": resume([1])}
    answer = post(f"{tiny}/v1/chat/completions", body, CLIENT)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (403, "octavo_resume")
    assert "--gateway-api-key-file" in error["message"]
    assert httpx.get(f"{tiny}/v1/models", headers={"authorization": "Bearer its-next-one"}).status_code == 200
