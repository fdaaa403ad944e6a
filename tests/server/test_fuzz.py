"""Requests that nobody wrote: made from the server's own description of itself, and streams that are cut anywhere."""

import asyncio
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any, Final

import httpx
import jsonschema
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import serving
import tiny_tokenizers
from octavo_cli.chat_client import stream_chat
from tiny_models import config_json, write_checkpoint

BASE = {
    "CompletionRequest": ("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2}),
    "ChatCompletionRequest": (
        "/v1/chat/completions",
        {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "logprobs": True, "max_tokens": 2},
    ),
    "EmbeddingRequest": ("/v1/embeddings", {"model": "tiny", "input": "a"}),
    "DetokenizeRequest": ("/detokenize", {"model": "tiny", "tokens": [5]}),
    "ResponsesRequest": ("/v1/responses", {"model": "tiny", "input": "a", "max_output_tokens": 2}),
    "InputTokensRequest": ("/v1/responses/input_tokens", {"model": "tiny", "input": "a"}),
}
RESUME = {"output_token_ids": [5], "response_id": "cmpl-1", "created": 1}


EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))  # of each operation and kind; `make fuzz` takes 200
CONFORMANCE = (
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
REFUSED = ("/cancel", "/compact")  # whatever is asked
TOKEN_IDS = ("prompt", "input", "tokens", "stop_token_ids", "allowed_token_ids")
CHAT = {"messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"}
KNOWN_BY = "{% if false %}{{ tools }}<tool_call></tool_call><think></think>{{ enable_thinking }}{% endif %}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.ServerProcess]:
    """The real engine, so that pages are pages; its model calls tools and thinks, so that their fields get far."""
    directory = tmp_path_factory.mktemp("fuzz") / "model"
    tokenizer = tiny_tokenizers.byte_level_bpe()
    eos = tokenizer.token_to_id("<|im_end|>")
    size = tokenizer.get_vocab_size()
    write_checkpoint(directory, config_json("LlamaForCausalLM", vocab_size=size, eos_token_id=eos))
    tiny_tokenizers.save(tokenizer, directory, chat_template=f"{KNOWN_BY}{tiny_tokenizers.CHATML}")
    env = {"OMP_NUM_THREADS": "1"}
    sizes = {"max_model_len": 96, "max_num_seqs": 64, "num_gpu_blocks_override": 256}
    with serving.serve(directory, fake=False, env=env, **sizes) as process:
        process.wait_until_ready()
        engine = process.engine_pid()
        yield process
        # Whatever was asked for: the engine is the one that was started, and holds nothing.
        serving.until(lambda: process.metric("vllm:num_requests_running") == 0)
        serving.until(lambda: process.metric("vllm:num_requests_waiting") == 0)
        serving.until(lambda: process.metric("octavo:kv_tokens_used") == 0)
        assert process.engine_pid() == engine
        assert "Traceback" not in process.log


@pytest.fixture(scope="module")
def http(server: serving.ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=serving.PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server that answers with what it was asked."""
    with serving.serve(serving.text_model(tmp_path_factory.mktemp("echo") / "model")) as process:
        process.wait_until_ready()
        with httpx.Client(base_url=process.url, timeout=serving.PATIENCE_SECONDS) as client:
            yield client


# --- from the description


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> Any:
    return http.get("/openapi.json").json()


@pytest.fixture(scope="module")
def operations(server: serving.ServerProcess, document: Any) -> list[Any]:
    schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig())
    # Streams are read to their end: else only the first events are, as one may have none.
    schema.config.update(base_url=server.url)
    schema.config.max_stream_events = 10**6
    found = [operation.ok() for operation in schema.get_all_operations()]
    assert len(found) == sum(map(len, document["paths"].values()))
    return found


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: str(mode.value))
@pytest.mark.timeout(7200)
def test_no_request_made_from_the_description_makes_the_server_fail(
    server: serving.ServerProcess, http: httpx.Client, operations: list[Any], mode: GenerationMode
) -> None:
    engine = server.engine_pid()
    for operation in operations:
        # In a path nothing is invalid: any text may be a name. Without parameters, one request is all that there are.
        could_be_wrong = bool(operation.body or operation.query)
        if could_be_wrong or mode is GenerationMode.POSITIVE:
            varies = could_be_wrong or operation.path_parameters
            statuses = explore(operation, mode, EXAMPLES if varies else 1, http)
            if mode is GenerationMode.POSITIVE and not operation.path.endswith(REFUSED):
                assert statuses[200], f"{operation.label} took none of what should be valid: {statuses}"
        assert server.engine_pid() == engine, operation.label
        answer = http.get("/health", timeout=serving.PATIENCE_SECONDS)
        assert answer.json() == {"status": "alive"}, operation.label


def fitting(body: Any, field: str = "") -> Any:
    """What the description allows, so that this server can take it: it serves one model, which is small."""
    if isinstance(body, dict):
        return {name: fitting(value, name) for name, value in body.items()}
    if isinstance(body, list):
        return [fitting(value, field) for value in body[:10]]
    if field == "model":
        return "tiny"
    if isinstance(body, str):
        return body if field == "include" else body[:20] or "a"
    if isinstance(body, float) and body == int(body):
        body = int(body)  # JSON Schema calls 1.0 an integer
    if isinstance(body, int) and not isinstance(body, bool) and field in TOKEN_IDS:
        return body % 300
    return body


def fit(case: Any, http: httpx.Client) -> None:
    """Make what should be valid something that this server has: its model, and a response that it keeps."""
    if isinstance(case.body, dict):
        case.body = fitting(case.body)
        if case.path == "/v1/responses/input_tokens":
            case.body["input"] = case.body.get("input") or "a"
            case.body.pop("previous_response_id", None)
        if (text := {"/v1/embeddings": "input", "/tokenize": "prompt"}.get(case.path)) is not None:
            # Either a text or a chat: the description cannot say that.
            is_chat = case.body.get("messages") is not None
            left_out = {text} if is_chat else CHAT
            case.body = {name: value for name, value in case.body.items() if name not in left_out}
            if not is_chat and case.body.get(text) is None:
                case.body[text] = "a"
    if "name" in (case.path_parameters or {}):
        case.path_parameters["name"] = "tiny"
    if "response_id" in (case.path_parameters or {}):
        body = {"model": "tiny", "input": "a", "max_output_tokens": 1}
        case.path_parameters["response_id"] = http.post("/v1/responses", json=body).json()["id"]
    for name in ("after", "stream"):  # of few values one is there, or can be done
        if isinstance(case.query, dict) and len(str(case.query.get(name))) % 2:
            case.query.pop(name, None)


def explore(operation: Any, mode: GenerationMode, examples: int, http: httpx.Client) -> Counter[int]:
    """Requests of one operation; how often each status came back."""
    statuses: Counter[int] = Counter()
    fields: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def try_one(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            fit(case, http)
        answer = case.call(timeout=serving.PATIENCE_SECONDS)
        assert not answer.stream_cut_short, "it did not end"
        statuses[answer.status_code] += 1
        if answer.status_code == 400:
            fields[answer.json()["error"]["param"] or ""] += 1
        assert "Traceback" not in answer.text
        late = answer.status_code == 504 and isinstance(case.body, dict) and case.body.get("timeout")  # as asked for
        streamed = answer.headers["content-type"][0].startswith("text/event-stream")
        conformance = tuple(check for check in CONFORMANCE if not (streamed and check is response_schema_conformance))
        case.validate_response(answer, checks=conformance if late else (not_a_server_error, *conformance))
        if streamed:  # which schemathesis would compare with the description event by event, in a form of its own
            check_events(answer.text, operation)

    try_one()
    print(f"{mode.value} {operation.label}: {dict(statuses)}, refused most often: {fields.most_common(4)}", flush=True)
    return statuses


def check_events(text: str, operation: Any) -> None:
    """Each event is what the description says (schemathesis looks, too), and they end as it says."""
    stream = operation.definition.raw["responses"]["200"]["content"]["text/event-stream"]
    validator = validator_of(json.dumps(serving.event_schema(stream)))
    *events, end = text.split("\n\n")
    assert end == ""
    has_mark = {"const": "[DONE]"} in stream["itemSchema"]["properties"]["data"].get("anyOf", ())
    if has_mark and '"code":"timeout"' not in events[-1]:
        assert events.pop() == "data: [DONE]"
    for event in events:
        data = json.loads(event.rpartition("data: ")[2])
        if "error" not in data or "object" in data:
            validator.validate(data)
        else:  # it was late: that is how a stream that has begun ends then
            assert (event, data["error"]["code"]) == (events[-1], "timeout")


@cache
def validator_of(schema: str) -> Any:
    return jsonschema.Draft202012Validator(json.loads(schema))


# --- numbers


def resolve(schema: Any, document: Any) -> Any:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def numbers(schema: Any, document: Any) -> Iterator[tuple[Any, Any]]:
    """(a function that puts a number in its place, the number's schema) for every number in a field's schema."""
    schema = resolve(schema, document)
    for member in schema.get("anyOf", schema.get("oneOf", ())):
        yield from numbers(member, document)
    if schema.get("type") in ("integer", "number"):
        yield (lambda number: number), schema
    if "items" in schema:
        for place, found in numbers(schema["items"], document):
            yield (lambda number, place=place: [place(number)]), found
    for entries in (schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()):
        for place, found in numbers(entries, document) if isinstance(entries, dict) else ():
            yield (lambda number, place=place: {"5": place(number)}), found
    if schema.get("title") == "Resume":
        for name, part in schema["properties"].items():
            for place, found in numbers(part, document):
                yield (lambda number, name=name, place=place: RESUME | {name: place(number)}), found


def numeric_fields(document: Any) -> list[tuple[str, str, Any, Any]]:
    """(body, field, place, schema)."""
    found = []
    for body in BASE:
        for field, schema in document["components"]["schemas"][body]["properties"].items():
            found += [(body, field, place, number) for place, number in numbers(schema, document)]
    return found


def beyond(schema: Any) -> st.SearchStrategy[Any]:
    """Numbers that the schema does not allow; `json.dumps` writes NaN and infinities as Python's parser reads them."""
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    below = st.integers(max_value=math.ceil(low) - 1)
    above = st.integers(min_value=math.floor(high) + 1)
    edges = st.sampled_from([2**63, -(2**63) - 1, 2**64, 10**30, 10**400, math.nan, math.inf, -math.inf, 1e300, -1e300])
    fractions = st.floats(-1e6, 1e6).filter(lambda number: number != int(number))
    return below | above | edges | (fractions if schema["type"] == "integer" else st.nothing())


def every_number(part: Any) -> Iterator[Any]:
    """The numbers in a part of the description, wherever they stand."""
    if isinstance(part, dict) and part.get("type") in ("integer", "number"):
        yield part
    for below in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from every_number(below)


def test_every_number_in_a_body_is_known_to_this_test(document: Any) -> None:
    known = numeric_fields(document)
    fields = {field for _, field, _, _ in known}
    assert {"temperature", "logit_bias", "seed", "max_output_tokens", "stop_token_ids", "prompt", "input"} <= fields
    described = {id(number) for number in every_number(document["components"]["schemas"])}
    assert {id(number) for _, _, _, number in known} == described


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_number_beyond_its_bounds_is_refused_by_name(http: httpx.Client, document: Any, data: st.DataObject) -> None:
    body, field, place, schema = data.draw(st.sampled_from(numeric_fields(document)))
    path, base = BASE[body]
    number = data.draw(beyond(schema))
    content = json.dumps(base | {field: place(number)})
    answer = http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, (field, number)
    param = answer.json()["error"]["param"]
    assert param is None or param.partition("[")[0].partition(".")[0] == field


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_number_within_its_bounds_never_makes_the_server_fail(
    http: httpx.Client, document: Any, data: st.DataObject
) -> None:
    body, field, place, schema = data.draw(st.sampled_from(numeric_fields(document)))
    path, base = BASE[body]
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    number = data.draw(st.integers(math.ceil(low), math.floor(high)) | st.sampled_from([low, high]))
    answer = http.post(path, json=base | {field: place(number)})
    # Who asks for a millisecond may be late, and only the gateway resumes.
    allowed = {"timeout": (200, 400, 504), "octavo_resume": (400, 403)}.get(field, (200, 400))
    assert answer.status_code in allowed, answer.text


# --- tools and formats

SCHEMAS: Final = st.recursive(
    st.sampled_from(
        [
            {},
            {"type": "string"},
            {"type": "integer", "minimum": 3},
            {"enum": ["a", 1]},
            {"$ref": "#"},
            {"type": "x"},
            True,
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda below: {"type": "array", "items": below}, inner),
        st.builds(lambda below: {"type": "object", "properties": {"a": below}, "required": ["a"]}, inner),
        st.builds(lambda *below: {"anyOf": list(below)}, inner, inner),
    ),
    max_leaves=4,
)
FUNCTIONS: Final = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "g", "h-1"])},
    optional={"description": st.text(max_size=4), "parameters": SCHEMAS, "strict": st.booleans()},
)
TOOLS: Final = st.lists(
    st.builds(lambda function: {"type": "function", "function": function}, FUNCTIONS),
    max_size=3,
    unique_by=lambda tool: tool["function"]["name"],
)
NAMED: Final = st.sampled_from([{"type": "function", "function": {"name": name}} for name in "fg"])
CHOICES: Final = st.one_of(
    st.sampled_from(["none", "auto", "required"]),
    NAMED,
    st.builds(
        lambda mode, tools: {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}},
        st.sampled_from(["auto", "required"]),
        st.lists(NAMED, min_size=1, max_size=2),
    ),
)
FORMATS: Final = st.one_of(
    st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
    st.builds(lambda schema: {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}, SCHEMAS),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    fields=st.fixed_dictionaries(
        {"tools": TOOLS},
        optional={
            "tool_choice": CHOICES,
            "response_format": FORMATS,
            "parallel_tool_calls": st.booleans(),
            "reasoning_effort": st.sampled_from(["none", "low", "max"]),
            "stream": st.booleans(),
            "logprobs": st.booleans(),
            "n": st.integers(1, 3),
        },
    )
)
def test_whatever_tools_and_formats_are_given_an_answer_or_a_refusal_comes(
    http: httpx.Client, fields: dict[str, Any]
) -> None:
    path, base = BASE["ChatCompletionRequest"]
    said = '<think>a</think>b<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    messages = [{"role": "user", "content": said}]
    answer = http.post(path, json=base | {"messages": messages, "max_tokens": 120} | fields)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 200 and fields.get("stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
        assert '"error"' not in answer.text


# --- streams


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """The data in pieces, cut at these positions."""
    edges = [0, *sorted({position % (len(data) + 1) for position in at}), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


# Line ends of other standards, which are none in server-sent events, and characters of two to four bytes.
SPECIAL = "Grüße 🙂👍🏽 你好\u2028\u2029\x85\x0b\x0c\x1c a\tb\r\n"
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=30)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.just(SPECIAL) | TEXTS, at=st.lists(st.integers(0, 10**6), max_size=40))
def test_a_stream_cut_anywhere_is_read_as_the_same_answer(echo: httpx.Client, text: str, at: list[int]) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 150, "seed": 1}
    whole = echo.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    answer = echo.post("/v1/chat/completions", json=body | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.content.split(b"\n\n")
    assert events.pop() == b""
    assert events.pop() == b"data: [DONE]"
    for event in events:  # each is whole: one line, one JSON object, in UTF-8
        assert event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event
        json.loads(event.removeprefix(b"data: ").decode())

    assert asyncio.run(read(answer, cut(answer.content, at))) == whole


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.just(SPECIAL) | TEXTS, at=st.lists(st.integers(0, 10**6), max_size=40))
def test_other_streams_cut_anywhere_are_read_as_the_same_answer_by_openais_client(
    echo: httpx.Client, text: str, at: list[int]
) -> None:
    """Responses have named events, two lines each."""
    bodies: dict[str, Any] = {
        "/v1/completions": {"model": "tiny", "prompt": text, "max_tokens": 150, "seed": 1},
        "/v1/responses": {"model": "tiny", "input": text, "max_output_tokens": 150, "seed": 1},
    }
    for path, body in bodies.items():
        whole = echo.post(path, json=body).json()
        answer = echo.post(path, json=body | {"stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        if path == "/v1/completions":
            found = [chunk.choices[0].text for chunk in replay(answer, at).completions.create(**body, stream=True)]
            assert "".join(found) == whole["choices"][0]["text"]
            continue
        del body["seed"]  # the client does not know it
        events = list(replay(answer, at).responses.create(**body, stream=True))
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == whole["output"][0]["content"][0]["text"] == events[-1].response.output_text


def replay(answer: httpx.Response, at: list[int]) -> openai.OpenAI:
    """A client that gets this answer, in pieces, whatever it asks for."""

    class Pieces(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield from cut(answer.content, at)

    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=answer.headers, stream=Pieces()))
    return openai.OpenAI(base_url="http://x/v1", api_key="none", http_client=httpx.Client(transport=transport))


async def read(answer: httpx.Response, pieces: list[bytes]) -> str:
    """The text that the command line's client reads from an answer that arrives in these pieces."""

    async def arrive() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=answer.headers, content=arrive())

    async with httpx.AsyncClient(transport=httpx.MockTransport(respond)) as client:
        return "".join([piece.text async for piece in stream_chat(client, "http://x/v1", "tiny", "")])
