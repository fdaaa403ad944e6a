"""The HTTP surface, on a real server process with an engine that answers with the prompt's own tokens."""

import itertools
import json
import math
import socket
from collections.abc import Iterable, Iterator
from http.client import HTTPResponse
from typing import IO, Any
from urllib.parse import urlsplit

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import serving
import tiny_tokenizers
from octavo_server.frontend.http_protocol import MAX_HEAD_BYTES
from octavo_server.frontend.limits import MAX_BODY_BYTES

HELLO = {"role": "user", "content": "hello"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.ServerProcess]:
    model = serving.text_model(tmp_path_factory.mktemp("api") / "model")
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "repetition_penalty": 0}))
    # What is cached depends on what other tests asked before.
    with serving.serve(model, served_model_name=["tiny", "alias"], enable_prefix_caching=False) as process:
        process.wait_until_ready()
        yield process


@pytest.fixture(scope="module")
def http(server: serving.ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=serving.PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizers.byte_level_bpe()


def complete(http: httpx.Client, prompt: Any, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/completions", json={"model": "tiny", "prompt": prompt, **fields})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def events(text: str) -> list[Any]:
    """The events of a stream, parsed as the specification of server-sent events says."""
    blocks = [block for block in text.split("\n\n") if block]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    datas = [block.removeprefix("data: ") for block in blocks]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def joined(lists: Iterable[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))


def refusal(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


# --- what is answered


def test_a_completion_has_text_usage_and_reason(http: httpx.Client) -> None:
    body = complete(http, "hello world", max_tokens=50)
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    (choice,) = body["choices"]
    assert (choice["index"], choice["text"], choice["finish_reason"]) == (0, "hello world", "stop")
    usage = body["usage"]
    assert usage["completion_tokens"] == usage["prompt_tokens"] + 1  # and the end of sequence
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_first_served_name_is_in_the_answer_whichever_was_asked_for(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"model": "alias", "prompt": "hello"})
    assert answer.json()["model"] == "tiny"
    listed = http.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["tiny", "alias"]
    assert http.get("/v1/models/alias").json()["max_model_len"] == 256


def test_an_answer_has_sixteen_tokens_unless_asked_for_more(http: httpx.Client) -> None:
    choice = complete(http, "hello", ignore_eos=True, return_token_ids=True)["choices"][0]
    assert (choice["finish_reason"], len(choice["token_ids"])) == ("length", 16)


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_of_all_kinds_give_the_same_choices(http: httpx.Client, tokenizer: Tokenizer, stream: bool) -> None:
    texts = ["hello world", "Grüße 🙂"]
    ids = [tokenizer.encode(text).ids for text in texts]
    results = []
    for prompt in (texts, ids):
        fields = {"model": "tiny", "prompt": prompt, "max_tokens": 40, "stream": stream}
        answer = http.post("/v1/completions", json=fields)
        results.append(choices_of(answer))
    assert results == [texts, texts]
    assert complete(http, ids[0], max_tokens=40)["choices"][0]["text"] == texts[0]


def choices_of(answer: httpx.Response) -> list[str]:
    """The text of each choice, of a whole answer or a stream."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return [choice["text"] for choice in answer.json()["choices"]]
    parts: dict[int, str] = {}
    for event in events(answer.text)[:-1]:
        for choice in event["choices"]:
            parts[choice["index"]] = parts.get(choice["index"], "") + choice["text"]
    return [parts[index] for index in sorted(parts)]


def test_token_ids_come_back_when_asked_for(http: httpx.Client, tokenizer: Tokenizer) -> None:
    ids, eos = tokenizer.encode("hello world").ids, tokenizer.token_to_id("<|im_end|>")
    (choice,) = complete(http, "hello world", return_token_ids=True)["choices"]
    assert choice["prompt_token_ids"] == ids
    assert choice["token_ids"] == [*ids, eos]
    fields = {"model": "tiny", "prompt": "hello world", "return_token_ids": True, "stream": True}
    streamed = events(http.post("/v1/completions", json=fields).text)[:-1]
    assert [token for event in streamed for token in event["choices"][0]["token_ids"]] == [*ids, eos]
    assert streamed[0]["choices"][0]["prompt_token_ids"] == ids
    assert "token_ids" not in complete(http, "hello world")["choices"][0]


def test_a_stop_string_ends_the_answer_before_it(http: httpx.Client) -> None:
    text = "hello world, again and again"
    (choice,) = complete(http, text, max_tokens=60, stop=["gai", "zzz"])["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("hello world, a", "stop", "gai")
    fields = {"model": "tiny", "prompt": text, "max_tokens": 60, "stop": "gai", "stream": True}
    assert choices_of(http.post("/v1/completions", json=fields)) == ["hello world, a"]


def test_tokens_after_a_stop_string_count_nowhere(server: serving.ServerProcess, http: httpx.Client) -> None:
    before = server.metric("vllm:generation_tokens_total")
    body = complete(http, "abcdef", ignore_eos=True, max_tokens=200, stop="c", return_token_ids=True)
    tokens = len(body["choices"][0]["token_ids"])
    assert body["usage"]["completion_tokens"] == tokens < 8
    assert server.metric("vllm:generation_tokens_total") == before + tokens
    serving.until(lambda: server.metric("vllm:num_requests_running") == 0)


def test_a_stop_token_ends_the_answer_and_is_not_in_its_text(http: httpx.Client, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello world").ids
    (choice,) = complete(http, ids, stop_token_ids=[ids[-1]])["choices"]
    assert choice["text"] == tokenizer.decode(ids[:-1])
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[-1])


def test_echo_puts_the_prompt_before_the_answer_with_its_logprobs(http: httpx.Client, tokenizer: Tokenizer) -> None:
    text = "hello brown fox"
    ids = tokenizer.encode(text).ids
    (choice,) = complete(http, text, echo=True, logprobs=2, max_tokens=2)["choices"]
    assert choice["text"] == text + tokenizer.decode(ids[:2])
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(ids) + 2
    assert logprobs["token_logprobs"] == [None, *[-0.5] * (len(ids) + 1)]
    assert logprobs["top_logprobs"][0] is None
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == [0, *itertools.accumulate(len(token) for token in logprobs["tokens"][:-1])]
    fields = {"model": "tiny", "prompt": text, "echo": True, "logprobs": 2, "max_tokens": 2, "stream": True}
    streamed = events(http.post("/v1/completions", json=fields).text)[:-1]
    parts = [event["choices"][0]["logprobs"] for event in streamed]
    assert joined(part["tokens"] for part in parts) == logprobs["tokens"]
    assert joined(part["text_offset"] for part in parts) == logprobs["text_offset"]


def test_tokens_that_are_parts_of_a_character_are_spelt_as_bytes(http: httpx.Client) -> None:
    (choice,) = complete(http, "ö🙂", echo=True, logprobs=0, max_tokens=0)["choices"]
    tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
    assert all(token.startswith("bytes:\\x") for token in tokens)
    data = b"".join(bytes.fromhex(token.removeprefix("bytes:").replace("\\x", "")) for token in tokens)
    assert data.decode() == choice["text"] == "ö🙂"
    assert offsets == [len(data[:at].decode(errors="ignore")) for at in range(len(tokens))]


def test_echo_without_an_answer_scores_the_prompt(http: httpx.Client) -> None:
    body = complete(http, "hello", echo=True, logprobs=0, max_tokens=0)
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hello", "length")
    assert len(choice["logprobs"]["tokens"]) == body["usage"]["prompt_tokens"]
    assert body["usage"]["completion_tokens"] == 0


def chat(http: httpx.Client, *messages: dict[str, Any], **fields: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json={"model": "tiny", "messages": list(messages), **fields})


def test_a_chat_prompt_is_the_rendered_template(http: httpx.Client, tokenizer: Tokenizer) -> None:
    body = chat(http, {"role": "system", "content": "Be brief."}, HELLO, return_token_ids=True).json()
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert body["prompt_token_ids"] == tokenizer.encode(text, add_special_tokens=False).ids
    assert body["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("message", "rendered"),
    [
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "user\na\nb"),
        ({"role": "developer", "content": "x"}, "system\nx"),  # the template does not know developers
        ({"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None}, "assistant\n"),
        ({"role": "tool", "content": "42", "tool_call_id": "a", "name": "f"}, "tool\n42"),
    ],
    ids=["parts", "developer", "an answer sent back", "tool"],
)
def test_messages_of_every_role(
    http: httpx.Client, tokenizer: Tokenizer, message: dict[str, Any], rendered: str
) -> None:
    body = chat(http, message, HELLO, return_token_ids=True).json()
    prompt = tokenizer.decode(body["prompt_token_ids"], skip_special_tokens=False)
    assert prompt.startswith(f"<|im_start|>{rendered}<|im_end|>\n<|im_start|>user\nhello")


def test_a_streamed_chat_put_together_is_the_whole_one(http: httpx.Client) -> None:
    fields = {"max_tokens": 60, "logprobs": True, "top_logprobs": 3, "return_token_ids": True}
    whole = chat(http, {"role": "user", "content": "Grüße 🙂 你好"}, **fields).json()
    answer = chat(
        http,
        {"role": "user", "content": "Grüße 🙂 你好"},
        **fields,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, done = events(answer.text)
    assert done == "[DONE]"
    first, *middle, last, usage = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["prompt_token_ids"] == whole["prompt_token_ids"]
    choices = [chunk["choices"][0] for chunk in middle]
    assert "".join(choice["delta"]["content"] for choice in choices) == whole["choices"][0]["message"]["content"]
    assert joined(choice["token_ids"] for choice in choices) == whole["choices"][0]["token_ids"]
    logprobs = joined(choice["logprobs"]["content"] for choice in choices)
    assert logprobs == whole["choices"][0]["logprobs"]["content"]
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert "�" not in answer.text


def test_logprobs_of_a_chat_have_tokens_and_bytes(http: httpx.Client) -> None:
    body = chat(http, {"role": "user", "content": "ö🙂"}, logprobs=True, top_logprobs=2, max_tokens=60).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert body["choices"][0]["finish_reason"] == "stop"
    assert len(content) == body["usage"]["completion_tokens"] - 1  # the token that ends it says nothing
    joined = b"".join(bytes(entry["bytes"]) for entry in content)
    assert "ö🙂" in joined.decode()
    for entry in content:
        assert [top["logprob"] for top in entry["top_logprobs"]] == [-0.5, -1.0]
        assert entry["top_logprobs"][0]["token"] == entry["token"]


def test_without_logprobs_there_are_none(http: httpx.Client) -> None:
    assert chat(http, HELLO).json()["choices"][0]["logprobs"] is None
    assert complete(http, "hello")["choices"][0]["logprobs"] is None


def test_harmless_fields_are_taken(http: httpx.Client) -> None:
    neutral = {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "seed": -1, "top_k": -1}
    fields = {"user": "me", "metadata": {"a": "b"}, "store": False, "response_format": {"type": "text"}, "tools": None}
    assert chat(http, HELLO, **neutral, **fields, top_p=0.0, stop=None).status_code == 200


# --- what is refused


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "xml"}),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("web_search_options", {}),
        ("service_tier", "flex"),
        ("verbosity", "high"),
        ("documents", [{"text": "x"}]),
        ("chat_template_kwargs", {"no_such_variable": 1}),
        ("guided_json", {}),
        ("guided_choice", ["a"]),
        ("best_of", 2),
        ("thinking_token_budget", 5),
        ("kv_transfer_params", {}),
        ("logits_processors", ["x"]),
        ("n", True),
        ("length_penalty", 0.5),
        ("use_beam_search", True),
        ("structured_outputs", {}),
        ("chat_template", "{{ messages }}"),
        ("reasoning_effort", "low"),
        ("no_such_field", 0),
    ],
)
def test_what_is_not_supported_is_refused_by_name(http: httpx.Client, field: str, value: Any) -> None:
    error = refusal(chat(http, HELLO, **{field: value}))
    assert error["param"].partition(".")[0] == field
    assert field in error["message"]


NAME: dict[str, Any] = {"type": "function", "name": "f"}  # as /v1/responses has it


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"temprature": 1}, "temprature", "did you mean temperature?"),
        ({"max_token": 4}, "max_token", "did you mean max_tokens?"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "did you mean reasoning_effort?"),
        ({"extra_body": {"top_k": 1}}, "extra_body", "into the body itself"),
        ({"prompt": "a"}, "prompt", "/v1/completions takes it"),
        ({"input": "a"}, "input", "/v1/responses takes it"),
        ({"max_output_tokens": 5}, "max_output_tokens", "chats have max_completion_tokens"),
        ({"text": {"verbosity": "low"}}, "text", "response_format"),
        ({"enable_thinking": False}, "enable_thinking", "chat_template_kwargs"),
        ({"xyz": 1}, "xyz", "xyz: this field is not known (given: 1)"),
        ({"xyz": True}, "xyz", "(given: true)"),
        ({"tools": [NAME]}, "tools[0].name", '"function": {"name": …}'),
        ({"tools": [{"type": "function"}], "tool_choice": NAME}, "tools[0].function", "required"),
        ({"tools": [{"function": NAME}], "tool_choice": NAME}, "tools[0].function.type", "not known"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "should be 'function'"),
        ({"response_format": "json"}, "response_format", 'must be an object (given: "json")'),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]", "must be an object"),
        ({"messages": []}, "messages", "must not be empty"),
        ({"stop": ["a"] * 5}, "stop", "4 entries are allowed at most"),
        ({"guided_regex": "a"}, "guided_regex", "older name of structured_outputs.regex"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag", "formatted parts"),
        ({"detokenize": False}, "detokenize", "return_token_ids"),
        ({"watermarking": True}, "watermarking", "not marked"),
        ({"logit_bias": {"hello": 1}}, "logit_bias.hello", 'its names must be token ids, as in {"42": -100}'),
        ({"tool_choice": "auto"}, "tool_choice", "only allowed together with tools"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "together with stream"),
        ({"x" * 5000: 1}, "x" * 100, "not known"),
    ],
)
def test_a_slip_is_told_with_what_was_probably_meant(
    http: httpx.Client, fields: dict[str, Any], param: str, said: str
) -> None:
    error = refusal(http.post("/v1/chat/completions", json={"model": "tiny", "messages": [HELLO]} | fields))
    assert error["param"] == param
    assert said in error["message"] and len(error["message"]) < 400


def test_a_completion_asks_for_log_probabilities_by_a_number(http: httpx.Client) -> None:
    error = refusal(http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "logprobs": True}))
    assert (error["param"], "a number of alternatives, 0 to 20; chats take true" in error["message"]) == (
        "logprobs",
        True,
    )


@pytest.mark.parametrize("field", ["suffix", "best_of"])
def test_completions_refuse_what_only_completions_had(http: httpx.Client, field: str) -> None:
    answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "a", field: 3})
    assert refusal(answer)["param"] == field


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([HELLO, {"role": "user", "content": 5}], "messages[1].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "messages[0].tool_calls"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
    ],
)
def test_a_wrong_message_is_refused_with_its_path(http: httpx.Client, messages: Any, param: str) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert refusal(answer)["param"] == param


def test_an_image_is_refused_by_its_kind(http: httpx.Client) -> None:
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    assert "image_url" in refusal(chat(http, message))["message"]


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        ([1, "a"], "prompt[1]"),
        (["a", 1], "prompt[1]"),
        ([-1], "prompt[0]"),
        ([512], "prompt"),
        (5, "prompt"),
        (["a"] * 257, "prompt"),
        (None, "prompt"),
    ],
)
def test_a_wrong_prompt_is_refused(http: httpx.Client, prompt: Any, param: str) -> None:
    assert refusal(http.post("/v1/completions", json={"model": "tiny", "prompt": prompt}))["param"] == param


@pytest.mark.parametrize(
    "fields",
    [
        {"top_logprobs": 2},
        {"logprobs": True, "top_logprobs": 21},
        {"stream_options": {"include_usage": True}},
        {"stop": [""]},
        {"stop": ["a"] * 5},
        {"stop": "x" * 1025},
        {"max_tokens": 0},
        {"temperature": "0.5"},
        {"stream": "yes"},
        {"user": "x" * 513},
        {"stop_token_ids": [512]},
    ],
    ids=str,
)
def test_a_field_out_of_bounds_is_refused_by_name(http: httpx.Client, fields: dict[str, Any]) -> None:
    assert refusal(chat(http, HELLO, **fields))["param"].partition("[")[0] in fields


NUMBERS = ["temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "max_completion_tokens", "top_logprobs"]
HUGE = [2**63, -(2**63) - 1, 10**400, "NaN", "Infinity", "-Infinity", "1e400", 2**31 + 0.5]


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", HUGE, ids=lambda value: str(value)[:20])
def test_a_number_beyond_all_bounds_is_refused(http: httpx.Client, field: str, value: Any) -> None:
    body = f'{{"model": "tiny", "logprobs": true, "messages": [{json.dumps(HELLO)}], "{field}": {value}}}'
    answer = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    refusal(answer)


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return inner | st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)


JSON = containers(containers(LEAVES))
OTHERS = ["model", "prompt", "messages", "stop", "stream", "stream_options", "logprobs", "n", "x"]
BODIES = st.dictionaries(st.sampled_from([*OTHERS, *NUMBERS]), JSON, max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["/v1/completions", "/v1/chat/completions"]), fields=BODIES)
def test_no_body_makes_the_server_fail(http: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    body = {"model": "tiny", "prompt": "a", "messages": [HELLO], "max_tokens": 4} | fields
    body.pop("messages" if path == "/v1/completions" and "messages" not in fields else "", None)
    body.pop("prompt" if path != "/v1/completions" and "prompt" not in fields else "", None)
    answer = http.post(path, json=body)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        refusal(answer, answer.status_code)


def test_a_prompt_that_is_too_long_is_refused_with_both_lengths(http: httpx.Client) -> None:
    error = refusal(http.post("/v1/completions", json={"model": "tiny", "prompt": [5] * 300}))
    assert error["code"] == "context_length_exceeded"
    assert "256" in error["message"]
    assert "300" in error["message"]
    assert error["message"].endswith("; shorten the prompt")  # nobody asked for so many tokens of answer
    asking = {"model": "tiny", "prompt": [5] * 200, "max_tokens": 60}
    assert refusal(http.post("/v1/completions", json=asking))["message"].endswith("shorten the prompt or ask for fewer")


def test_a_prompt_may_fill_the_context_but_for_one_token(http: httpx.Client) -> None:
    body = complete(http, [5] * 255, max_tokens=1)
    assert body["usage"]["completion_tokens"] == 1
    refusal(http.post("/v1/completions", json={"model": "tiny", "prompt": [5] * 256, "max_tokens": 1}))
    error = refusal(http.post("/v1/completions", json={"model": "tiny", "prompt": [5] * 250, "max_tokens": 7}))
    assert "7" in error["message"]
    assert complete(http, [5] * 250, ignore_eos=True)["usage"]["completion_tokens"] == 6  # the default gives way


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_another_model_does_not_exist(http: httpx.Client, path: str) -> None:
    body = {"model": "gpt-4", "prompt": "a"} if path == "/v1/completions" else {"model": "gpt-4", "messages": [HELLO]}
    error = refusal(http.post(path, json=body), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert refusal(http.get("/v1/models/gpt-4"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"{", "application/json"),
        (b"[1]", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b'{"a":' * 50_000, "application/json"),
        (b'{"model": "tiny", "prompt": "a", "seed": 1' + b"0" * 5000 + b"}", "application/json"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "application/json"),
        (b'{"model": "tiny", "prompt": "a"}', "text/plain"),
        (b"", "application/json"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(http: httpx.Client, content: bytes, content_type: str) -> None:
    error = refusal(http.post("/v1/completions", content=content, headers={"Content-Type": content_type}))
    assert "Traceback" not in error["message"]


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        (b"{", "invalid_json", "Expecting property name"),
        (b'{"model": "\xff"}', "invalid_json", "not UTF-8 (byte 11)"),
        (b'{"a":' * 50_000, "invalid_json", "nested too deeply"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "number_too_long", "a number of more than 128 digits"),
    ],
    ids=["incomplete", "not UTF-8", "nested", "a long number"],
)
def test_a_body_that_cannot_be_read_is_refused_with_the_reason(
    http: httpx.Client, content: bytes, code: str, reason: str
) -> None:
    error = refusal(http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"}))
    assert error["code"] == code
    assert reason in error["message"]


def test_what_is_no_http_is_answered_with_an_error_object(server: serving.ServerProcess) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=serving.PATIENCE_SECONDS) as connection:
        connection.sendall(b"HELLO THERE\r\n\r\n")
        answer = HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.getheader("content-type")) == (400, "application/json")
        assert json.load(answer)["error"]["code"] == "invalid_http"
        assert connection.recv(1) == b""


def test_an_unknown_route_and_a_wrong_method_are_told_apart(http: httpx.Client) -> None:
    assert refusal(http.get("/v1/nothing"), 404)["code"] == "unknown_url"
    assert refusal(http.get("/v1/completions"), 405)["code"] == "method_not_allowed"
    assert refusal(http.post("/health"), 405)["code"] == "method_not_allowed"
    for slip in ("/chat/completions", "/v1/v1/chat/completions", "/v1/chat/completion"):
        assert "did you mean /v1/chat/completions?" in refusal(http.post(slip), 404)["message"]


def test_a_large_body_is_refused_whether_it_says_so_or_not(http: httpx.Client) -> None:
    too_large = b" " * (MAX_BODY_BYTES + 1)
    headers = {"Content-Type": "application/json"}
    assert refusal(http.post("/v1/completions", content=too_large, headers=headers), 413)["code"] == "body_too_large"
    chunks = (too_large[at : at + 2**20] for at in range(0, len(too_large), 2**20))
    assert refusal(http.post("/v1/completions", content=chunks, headers=headers), 413)["code"] == "body_too_large"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 1000) for n in range(99)) + b"\r\n",
        b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n",
        b"GET /health HTTP/1.1\r\nX: " + b"y" * (4 * MAX_HEAD_BYTES),
        b"GET /" + b"y" * (4 * MAX_HEAD_BYTES),
    ],
    ids=["many bytes", "many headers", "an endless header", "an endless target"],
)
def test_a_head_beyond_bounds_is_refused_and_the_connection_closed(server: serving.ServerProcess, head: bytes) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=serving.PATIENCE_SECONDS) as connection:
        try:
            connection.sendall(head)
            received = b""
            while part := connection.recv(65536):
                received += part
        except ConnectionError:
            return  # closed while we were still sending: refused as well
    assert received.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))


def test_streams_asked_for_behind_each_other_come_whole_and_in_order(server: serving.ServerProcess) -> None:
    address, texts = urlsplit(server.url), ["hello world", "Grüße"]
    with socket.create_connection((address.hostname, address.port), timeout=serving.PATIENCE_SECONDS) as connection:
        for text in texts:
            body = json.dumps({"model": "tiny", "prompt": text, "stream": True, "max_tokens": 100}).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        with connection.makefile("rb") as received:  # one for both: it reads ahead
            for text in texts:
                assert received.readline().startswith(b"HTTP/1.1 200")
                while received.readline().strip():
                    pass
                *events, done, end = chunked(received).decode().split("\n\n")
                assert (done, end) == ("data: [DONE]", "")
                pieces = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events]
                assert "".join(pieces) == text
                assert len(pieces) > 1


def chunked(received: IO[bytes]) -> bytes:
    """A body that comes in chunks."""
    body = b""
    while size := int(received.readline(), 16):
        body += received.read(size + 2)[:-2]
    received.readline()
    return body


def test_heads_of_usual_size_are_taken_one_after_the_other(server: serving.ServerProcess) -> None:
    with httpx.Client(base_url=server.url) as client:
        for _ in range(20):  # on one connection: the count begins anew with each request
            assert client.get("/health", headers={"X-Padding": "y" * 8000}).status_code == 200


def test_warnings_of_the_models_defaults_are_logged_once(server: serving.ServerProcess) -> None:
    assert server.log.count("repetition_penalty") == 1


def test_the_described_fields_are_bounded(http: httpx.Client) -> None:
    """Every number has a least and a greatest value, every list and string a greatest length."""
    document = http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert {"ChatCompletionRequest", "CompletionRequest"} <= set(schemas)
    unbounded = [path for name, schema in schemas.items() for path in unbounded_parts(schema, name)]
    assert unbounded == []
    assert "tools" in schemas["ChatCompletionRequest"]["properties"]
    assert "functions" not in schemas["ChatCompletionRequest"]["properties"]


def test_the_described_refusals_are_those_that_are_sent(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    described = [operation["responses"] for path in document["paths"].values() for operation in path.values()]
    assert all({"4XX", "5XX"} <= set(responses) for responses in described)
    schema = described[0]["4XX"]["content"]["application/json"]["schema"]
    assert schema == described[0]["5XX"]["content"]["application/json"]["schema"]
    jsonschema.validate(http.post("/v1/completions", json={"model": "tiny", "prompt": 3}).json(), schema)
    assert not any(name.startswith(("HTTP", "Validation")) for name in document["components"]["schemas"])


def test_answers_and_events_are_what_is_described(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    bodies = {
        "/v1/chat/completions": {"messages": [HELLO], "logprobs": True},
        "/v1/completions": {"prompt": "a", "logprobs": 1},
    }
    for path, body in bodies.items():
        described = document["paths"][path]["post"]["responses"]["200"]["content"]
        for extra in ({}, {"n": 2, "return_token_ids": True, "prompt_logprobs": 1}):
            answer = http.post(path, json={"model": "tiny"} | body | extra).json()
            jsonschema.validate(answer, described["application/json"]["schema"])
        answer = http.post(
            path, json={"model": "tiny", "stream": True, "stream_options": {"include_usage": True}} | body
        )
        validator = serving.event_validator(described["text/event-stream"])
        for event in events(answer.text)[:-1]:
            validator.validate(event)
    listed = document["paths"]["/v1/models"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(http.get("/v1/models").json(), listed)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"object": "list"}, listed)


def _takes_any_name(schema: dict[str, Any]) -> bool:
    return bool(schema.get("additionalProperties") or schema.get("patternProperties"))


def unbounded_parts(schema: Any, path: str) -> Iterator[str]:
    """Paths of the schema's parts that lack a bound."""
    if isinstance(schema, list):
        for index, part in enumerate(schema):
            yield from unbounded_parts(part, f"{path}[{index}]")
    if not isinstance(schema, dict):
        return
    needed = {
        "integer": {"minimum", "maximum"},
        "number": {"minimum", "maximum"},
        "string": set() if "enum" in schema or "const" in schema else {"maxLength"},
        "array": {"maxItems"},
        "object": {"maxProperties"} if _takes_any_name(schema) else set(),
    }
    kind = schema.get("type")
    if isinstance(kind, str) and not needed.get(kind, set()) <= set(schema):
        yield path
    for name, part in schema.items():
        yield from unbounded_parts(part, f"{path}.{name}")


def test_metrics_have_vllms_names_labels_and_buckets(server: serving.ServerProcess, http: httpx.Client) -> None:
    complete(http, "hello")
    labels = {"model_name": "tiny", "engine": "0"}
    for name in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:num_preemptions_total",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "octavo:kv_tokens_used",
        "octavo:waiting_prompt_tokens",
    ):
        assert math.isfinite(server.metric(name, **labels))
    assert server.metric("octavo:kv_tokens_total", **labels) == 64 * 16
    for histogram in (
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
    ):
        assert server.metric(f"vllm:{histogram}_count", **labels) > 0
        assert server.metric(f"vllm:{histogram}_bucket", **labels, le="+Inf") > 0
    assert server.metric("vllm:time_to_first_token_seconds_bucket", le="0.001") >= 0
    assert server.metric("vllm:request_prompt_tokens_bucket", le="200.0") >= 0  # up to the context, 256
    for reason in ("stop", "length", "abort", "error"):
        assert server.metric("vllm:request_success_total", **labels, finished_reason=reason) >= 0
    assert server.metric("octavo:startup_phase_seconds", phase="load weights") == 0.25
