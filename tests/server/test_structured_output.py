"""Structured output over HTTP, with the demo model at temperature 1: what is asked for is what comes."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any

import httpx
import jsonschema
import openai
import pydantic
import pytest

import octavo_server
import serving
from schema_corpus import SERVED, check

DEMO = Path(octavo_server.__file__).parent / "demo_model"
ASK: Any = [{"role": "user", "content": "Describe a page in JSON."}]
TEXT = {"type": "string", "maxLength": 12}
SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "name": TEXT,
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "ok": {"type": "boolean"},
        },
        "required": ["name", "age", "ok"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {
            "kinds": {"type": "array", "items": {"enum": ["a", "b", None, 3]}, "minItems": 1, "maxItems": 4}
        },
        "required": ["kinds"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/point"}, "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}},
        "required": ["at", "code"],
        "additionalProperties": False,
        "$defs": {
            "point": {
                "type": "object",
                "properties": {axis: {"type": "integer", "minimum": -50, "maximum": 50} for axis in "xy"},
                "required": ["x", "y"],
                "additionalProperties": False,
            }
        },
    },
    {
        "type": "object",
        "properties": {"on": {"type": "string", "format": "date"}, "who": {"anyOf": [TEXT, {"type": "null"}]}},
        "required": ["on"],
        "additionalProperties": False,
    },
]


@pytest.fixture(scope="module")
def server() -> Iterator[serving.ServerProcess]:
    env = {"OMP_NUM_THREADS": "1"}
    with serving.serve(DEMO, fake=False, env=env, max_num_seqs=32) as process:
        process.wait_until_ready()
        engine = process.engine_pid()
        yield process
        assert process.engine_pid() == engine
        assert httpx.get(f"{process.url}/ready").status_code == 200
        assert process.metric("vllm:num_requests_running") == process.metric("vllm:num_requests_waiting") == 0.0
        assert process.metric("vllm:kv_cache_usage_perc") == 0.0


@pytest.fixture(scope="module")
def client(server: serving.ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60.0) as made:
        yield made


def chat(client: openai.OpenAI, structured: dict[str, Any] | None = None, **fields: Any) -> Any:
    extra = ({} if structured is None else {"structured_outputs": structured}) | fields.pop("extra_body", {})
    asked = {"model": "tiny", "messages": ASK, "temperature": 1.0, "max_tokens": 300, "seed": 1, "extra_body": extra}
    return client.chat.completions.create(**(asked | fields))


def texts(answer: Any) -> list[str]:
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * len(answer.choices)
    return [choice.message.content for choice in answer.choices]


def refused(client: openai.OpenAI, structured: dict[str, Any] | None = None, **fields: Any) -> Any:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, structured, **fields)
    return caught.value


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "page", "strict": True, "schema": schema}}


@pytest.mark.parametrize("index", range(len(SCHEMAS)))
def test_a_hundred_answers_in_a_hundred_fit_their_schemas(client: openai.OpenAI, index: int) -> None:
    found = texts(chat(client, response_format=json_schema(SCHEMAS[index]), n=25, seed=index))
    for text in found:
        jsonschema.validate(json.loads(text), SCHEMAS[index], format_checker=jsonschema.FormatChecker())
    assert len(found) == 25 and len(set(found)) > 1


class Reading(pydantic.BaseModel):
    at: datetime
    clock: time
    lasted: timedelta
    share: Annotated[float, pydantic.Field(ge=0, le=1)]
    count: int
    debt: Annotated[float, pydantic.Field(lt=0)]


def test_times_and_numbers_of_pydantics_models_come_to_an_end(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": ASK, "temperature": 1.0, "max_tokens": 300, "n": 20, "seed": 4}
    choices = client.chat.completions.parse(**asked, response_format=Reading).choices
    assert [choice.finish_reason for choice in choices] == ["stop"] * 20
    assert all(choice.message.parsed.share <= 1 for choice in choices)


def test_vllms_fields_say_the_same(client: openai.OpenAI) -> None:
    (want,) = texts(chat(client, response_format=json_schema(SCHEMAS[0])))
    for schema in (SCHEMAS[0], json.dumps(SCHEMAS[0])):
        assert texts(chat(client, {"json": schema})) == [want]
    (plain,) = texts(chat(client, {"json": SCHEMAS[0], "disable_any_whitespace": True}))
    assert json.dumps(json.loads(plain), separators=(",", ":"), ensure_ascii=False) == plain or "\\" in plain
    (spaced,) = texts(chat(client, {"json": SCHEMAS[1], "whitespace_pattern": " "}))
    assert json.loads(spaced)["kinds"] and "\n" not in spaced


def test_properties_that_are_not_named_can_be_kept_out(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"at": {"type": "object", "properties": {"x": {"enum": [1, 2]}}}}}
    for text in texts(chat(client, {"json": schema, "disable_additional_properties": True}, n=8)):
        jsonschema.validate(json.loads(text), {"properties": {"at": {"propertyNames": {"const": "x"}}}})
        assert set(json.loads(text)) <= {"at"}


def test_any_object_is_an_object(client: openai.OpenAI) -> None:
    for structured, fields in (({"json_object": True}, {}), (None, {"response_format": {"type": "json_object"}})):
        answer = chat(client, structured, n=3, max_tokens=60, **fields)
        for choice in answer.choices:
            assert choice.message.content.lstrip().startswith("{")
            assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


def test_choices_patterns_and_grammars_are_kept_to(client: openai.OpenAI) -> None:
    assert set(texts(chat(client, {"choice": ["yes", "no", '50% "maybe"\n']}, n=20))) <= {"yes", "no", '50% "maybe"\n'}
    pattern = r"[A-Z][a-z]{2,8}/\d{1,3}"
    for text in texts(chat(client, {"regex": pattern}, n=10)):
        assert re.fullmatch(pattern, text)
    sums = re.compile(r"(\d{1,3} (\+ |- )){0,3}\d{1,3}")
    lark = 'start: term (("+ " | "- ") term){0,2} last\nterm: /[0-9]{1,3}/ " "\nlast: "+ "? /[0-9]{1,3}/\n'
    gbnf = 'root ::= (num " " ("+ " | "- ")){0,3} num\nnum ::= [0-9]{1,3}\n'
    for text in texts(chat(client, {"grammar": gbnf}, n=10)):
        assert sums.fullmatch(text)
    for text in texts(chat(client, {"grammar": lark}, n=10)):
        assert re.fullmatch(r"\d{1,3} ([+-] \d{1,3} ){0,2}(\+ )?\d{1,3}", text)


def test_completions_take_the_same_fields(client: openai.OpenAI) -> None:
    extra: Any = {"structured_outputs": {"regex": "[0-9]{4}"}}
    answer = client.completions.create(model="tiny", prompt=["The year ", "In "], n=2, extra_body=extra, max_tokens=50)
    assert all(re.fullmatch("[0-9]{4}", choice.text) for choice in answer.choices) and len(answer.choices) == 4


def test_a_stream_put_together_is_the_whole_answer(client: openai.OpenAI) -> None:
    form = json_schema(SCHEMAS[2])
    want = texts(chat(client, response_format=form, n=3))
    got = dict.fromkeys(range(3), "")
    for chunk in chat(client, response_format=form, n=3, stream=True):
        for choice in chunk.choices:
            got[choice.index] += choice.delta.content or ""
    assert list(got.values()) == want


def test_stop_strings_stop_token_ids_and_max_tokens_still_end_an_answer(client: openai.OpenAI) -> None:
    (text,) = texts(chat(client, {"regex": "[a-y]{2,5}zend[a-y]{2,5}"}, stop="end"))
    assert re.fullmatch("[a-y]{2,5}z", text)
    answer = chat(client, {"regex": "[a-z]{50}"}, max_tokens=3)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3
    (token,) = httpx_tokens(client, ";")
    answer = chat(client, {"regex": "[ab]{3};[ab]{3}"}, extra_body={"stop_token_ids": [token]})
    assert re.fullmatch("[ab]{3}", answer.choices[0].message.content) and answer.choices[0].stop_reason == token


def httpx_tokens(client: openai.OpenAI, text: str) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return ids


def test_log_probabilities_are_those_of_the_model_not_of_the_grammar(client: openai.OpenAI) -> None:
    free, kept = (
        chat(client, structured, logprobs=True, top_logprobs=5).choices[0].logprobs.content[0]
        for structured in (None, {"choice": ["]]]"]})
    )
    assert kept.top_logprobs == free.top_logprobs
    assert kept.logprob < kept.top_logprobs[0].logprob


def test_the_end_of_a_grammar_ends_the_answer_whatever_else_is_asked_for(client: openai.OpenAI) -> None:
    (end,) = httpx_tokens(client, "<|im_end|>")
    for extra in (
        {"min_tokens": 50},
        {"ignore_eos": True},
        {"logit_bias": {str(end): -100}},
        {"bad_words": ["<|im_end|>"]},
    ):
        assert texts(chat(client, {"choice": ["page", "pages"]}, extra_body=extra))[0] in ("page", "pages"), extra


def test_where_nothing_is_left_the_request_is_told_so(client: openai.OpenAI) -> None:
    error = refused(client, {"choice": ["b"]}, extra_body={"bad_words": ["b"]})
    assert "excluded by bad_words" in error.message and "min_tokens" not in error.message
    (token,) = httpx_tokens(client, "b")
    error = refused(client, {"choice": ["b"]}, extra_body={"min_tokens": 3, "stop_token_ids": [token]})
    assert "excluded by min_tokens" in error.message and "bad_words" not in error.message


def test_one_field_says_what_an_answer_looks_like(client: openai.OpenAI) -> None:
    error = refused(client, {"regex": "a"}, response_format=json_schema(SCHEMAS[0]))
    assert "response_format" in error.message and "structured_outputs" in error.message
    error = refused(client, {"regex": "a", "choice": ["b"]})
    assert error.param == "structured_outputs.choice" and "regex" in error.message
    assert refused(client, {}).param == "structured_outputs"
    assert "only" in refused(client, {"regex": "a", "whitespace_pattern": " "}).message
    assert refused(client, {"structural_tag": "{}"}).param == "structured_outputs.structural_tag"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    ({"json": {"type": "object", "properties": {"a": {"not": {}}}}}, "not"),
    ({"json": {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}}, "uniqueItems"),
    ({"json": {"$ref": "https://example.com/schema.json"}}, "example.com"),
    ({"json": {"$ref": "file:///etc/passwd"}}, "passwd"),
    ({"json": {"type": "strange"}}, "strange"),
    ({"json": "{"}, "JSON"),
    ({"json": False}, "schema"),
    ({"regex": "(?=a)b"}, "it cannot be served: the pattern (?=a)b: look-around"),
    ({"regex": r"(a)\1"}, "backreferences"),
    ({"regex": "(a|b"}, "unclosed"),
    ({"grammar": 'start: "a" rest'}, "rest"),
    ({"grammar": "what is this"}, "Lark"),
    ({"choice": []}, "choice"),
]


@pytest.mark.parametrize(("structured", "said"), WRONG, ids=[str(given)[:40] for given, _ in WRONG])
def test_what_is_wrong_is_refused_by_its_field_with_the_reason(
    client: openai.OpenAI, structured: dict[str, Any], said: str
) -> None:
    error = refused(client, structured)
    assert error.param is not None and error.param.startswith(f"structured_outputs.{next(iter(structured))}")
    assert said in error.message and "\n" not in error.message and len(error.message) < 700


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    return schema


HOSTILE: list[dict[str, Any]] = [
    {"regex": "(a+)+$"},
    {"regex": "a{1,1000000}"},
    {"regex": "((a{1,100}){1,100}){1,100}"},
    {"regex": "(x|xx|xxx){4000}y"},
    {"regex": "[ab]*a[ab]{5000}"},
    {"regex": "|".join(f"(a|b|c)*{index}" for index in range(2000))},
    {"regex": "(" * 8000 + "a" + ")" * 8000},
    {"regex": ".*".join("abcdefghij" * 300)},
    {"regex": "a" * 10_000_000},
    {"grammar": 'start: a\na: "x" | a a | a a a | ""\n'},
    {"grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000},
    {"grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000},
    {"grammar": 'start: A{100000000}\nA: "a" | "b"\n'},
    {"grammar": "start: ~/[ab]*a[ab]{25}/ & /(.*a.*b){40}/\n"},
    {"grammar": 'start: %json {"type": "integer", "multipleOf": 999983}\n'},
    {"json": {"type": "integer", "multipleOf": 999983}},
    {"json": {"type": "string", "minLength": 10**9, "maxLength": 10**9}},
    {"json": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9, "maxItems": 10**9}},
    {"json": {"$ref": "#"}},
    {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}},
    {"json": {"enum": [f"value {index * 7919 % 10_007}" for index in range(10_000)]}},
    {"json": {"enum": ["x" * 200_000, "y" * 50_000]}},
    {"json": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}},
    {"json": {"patternProperties": {f"^(a|b)*{index}.*$": {} for index in range(300)}, "type": "object"}},
    {
        "json": {
            "type": "object",
            "allOf": [{"anyOf": [{"properties": {f"{name}{at}": TEXT}} for name in "pq"]} for at in range(20)],
        }
    },
    {"json": {"type": "object", "properties": {f"p{index}": TEXT for index in range(3000)}}},
    {"json": {"type": "number", "minimum": -1e300, "maximum": 1e300}},
    {"json": nested(60)},
    {"json": {"a": [[[[[[{}] * 10] * 10] * 10] * 10] * 10]}},
    {"choice": [f"{index} " + "word " * 100 for index in range(1000)]},
]


def test_hostile_grammars_are_refused_or_served_and_hold_up_nobody(
    server: serving.ServerProcess, client: openai.OpenAI
) -> None:
    """While each of them is worked on others are answered and /health, too; the engine stays the one it was."""
    engine, stopped, served = server.engine_pid(), threading.Event(), [0]

    def others() -> None:
        while not stopped.is_set():
            assert httpx.get(f"{server.url}/health", timeout=60.0).status_code == 200
            chat(client, max_tokens=2, seed=None)
            chat(client, {"choice": ["a", "b"]}, seed=None)
            served[0] += 1

    def attack(structured: dict[str, Any]) -> None:
        body = {"model": "tiny", "messages": ASK, "max_tokens": 8, "structured_outputs": structured}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60.0)
        assert answer.status_code in (200, 400, 413), answer.text
        assert len(answer.text) < 4000 and "Traceback" not in answer.text

    with ThreadPoolExecutor(3) as beside:
        running = beside.submit(others)
        try:
            serving.until(lambda: served[0] > 0)
            before = served[0]
            list(beside.map(attack, HOSTILE))
            assert served[0] > before
        finally:
            stopped.set()
        running.result()
    assert server.engine_pid() == engine
    assert texts(chat(client, {"choice": ["still here"]})) == ["still here"]


TOO_LONG = {"json": {"type": "integer", "multipleOf": 999_983}}


def test_what_takes_too_long_to_compile_is_stopped_and_remembered(
    server: serving.ServerProcess, client: openai.OpenAI
) -> None:
    """It is cut off by the CPU time that it took, whatever the load; asked for again, it is refused without work."""
    error = refused(client, TOO_LONG)
    assert error.param == "structured_outputs.json" and "too long to compile" in error.message
    before = cpu_seconds(server)
    for _ in range(20):
        assert refused(client, TOO_LONG).message == error.message
    assert cpu_seconds(server) == before


def cpu_seconds(server: serving.ServerProcess) -> list[int]:
    """Clock ticks of the processes that compile, children that were ended included."""
    pids = [pid for pid, command in server.children().items() if "grammar_worker" in command]
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return [sum(map(int, each[13:15])) for each in fields]


def test_all_keywords_hold_over_http_with_the_model(client: openai.OpenAI) -> None:
    """At temperature 1, answers that ended: of `schema_corpus`, which holds without a model, too."""

    def ask(name: str) -> list[str]:
        answer = chat(client, response_format=json_schema(SERVED[name]), max_tokens=150, seed=len(name))
        return [choice.message.content for choice in answer.choices if choice.finish_reason == "stop"]

    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(SERVED, pool.map(ask, SERVED), strict=True))
    for name, answers in found.items():
        for text in answers:
            check(SERVED[name], text)
    assert sum(map(len, found.values())) > 0.9 * len(SERVED)


def test_free_answers_are_the_same_beside_others_with_grammars(client: openai.OpenAI) -> None:
    def free() -> Any:
        choice = chat(client, seed=3, max_tokens=40, logprobs=True, top_logprobs=2).choices[0]
        return choice.message.content, choice.logprobs

    alone = free()
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(chat, client, response_format=json_schema(SCHEMAS[2]), n=4, seed=at) for at in range(5)]
        beside = [pool.submit(free) for _ in range(3)]
        assert [one.result() for one in beside] == [alone] * 3
        for other in others:
            assert len(texts(other.result())) == 4
