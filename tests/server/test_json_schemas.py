"""What becomes of schemas: every answer that is allowed is valid, as `jsonschema` sees it, or the schema is refused."""

import asyncio
import json
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest

import octavo_server
from octavo_server.errors import RequestError
from octavo_server.frontend.grammars import Grammars
from octavo_server.frontend.structured import GrammarSource, Reasoning, grammar_source
from octavo_server.frontend.structured_fields import StructuredOutputs
from octavo_server.frontend.text.closed_schemas import closed
from octavo_server.frontend.text.counted_lengths import MAX_COUNTED, MAX_IN_PATTERNS, repeated
from octavo_server.frontend.text.json_characters import unspellable
from octavo_server.frontend.text.json_schemas import served
from octavo_server.frontend.text.output_parsers import Tool, choose_format
from octavo_server.frontend.text.output_parsers.lark import arguments_schema
from octavo_server.grammar_compiler import compile_grammar, read_tokenizer
from schema_corpus import NOT_SERVED, SERVED, UNSATISFIABLE, check, random_answer

DEMO = Path(octavo_server.__file__).parent / "demo_model"
TOKENIZER = read_tokenizer(DEMO)
ANSWERS = 30


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    made = Grammars(DEMO)
    yield made
    made.close()


def compiled(grammars: Grammars, schema: dict[str, Any], **options: Any) -> Any:
    """As a request's schema is."""
    source = grammar_source(None, StructuredOutputs.model_validate({"json": schema, **options}))
    assert source is not None
    return compile_grammar(TOKENIZER, asyncio.run(grammars.compile(source)))


def accepts(matcher: Any, text: str) -> bool:
    following = matcher.deep_copy()
    return all(map(following.consume_token, TOKENIZER.tokenize_str(text))) and following.is_accepting()


@pytest.mark.parametrize("name", SERVED)
def test_every_answer_that_is_allowed_is_valid(grammars: Grammars, name: str) -> None:
    matcher, draw, seen = compiled(grammars, SERVED[name]), random.Random(name), set()
    for _ in range(ANSWERS):
        answer = random_answer(matcher, TOKENIZER, draw)
        assert answer is not None
        check(SERVED[name], answer)
        seen.add(json.dumps(json.loads(answer)))
    assert len(seen) > 1 or name in (
        "null",
        "const",
        "length 0",
        "array, empty",
        "enum and bounds",
        "$ref, definitions",
    )


@pytest.mark.parametrize(("schema", "named"), NOT_SERVED, ids=[str(given)[:50] for given, _ in NOT_SERVED])
def test_what_cannot_be_held_is_refused_and_named(grammars: Grammars, schema: dict[str, Any], named: str) -> None:
    within = {"type": "object", "properties": {"a": {"type": "array", "items": {"anyOf": [{"type": "null"}, schema]}}}}
    for asked in (schema, within):
        refused(grammars, asked, named)


@pytest.mark.parametrize(("schema", "named"), UNSATISFIABLE, ids=[str(given)[:50] for given, _ in UNSATISFIABLE])
def test_what_nothing_fits_is_refused_with_the_reason(grammars: Grammars, schema: dict[str, Any], named: str) -> None:
    refused(grammars, schema, named)


def refused(grammars: Grammars, schema: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError) as caught:
        compiled(grammars, schema)
    assert caught.value.param == "structured_outputs.json"
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_cannot_be_spelt_so_that_its_schema_is_passed_by(grammars: Grammars) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": {"const": 2}}
    matcher = compiled(grammars, schema)
    assert accepts(matcher, '{"a":1,"b":2}')
    for text in (r'{"\u0061":2}', r'{"a":1,"\u0061":2}', '{"a":2}', '{"a":1,"a":2}', '{"b":2,"a":2}'):
        assert not accepts(matcher, text), text


def test_strings_hold_no_half_characters(grammars: Grammars) -> None:
    for schema in ({"type": "string"}, {"type": "string", "maxLength": 3}, {"type": ["string", "array"]}):
        matcher = compiled(grammars, schema)
        assert accepts(matcher, r'"é\n\""')
        assert not accepts(matcher, r'"\ud83d"')


def test_white_space_is_bounded_and_json_stands_alone(grammars: Grammars) -> None:
    matcher = compiled(grammars, SERVED["array"])
    assert accepts(matcher, "[1, 2,\n  3\n]") and accepts(matcher, "[1,2,3]") and accepts(matcher, "[\r\n\t\t1 ]")
    for text in ("[1,  2]", "[\n\n1]", "[1,\n" + " " * 33 + "2]", " [1]", "[1] ", "[1]\n"):
        assert not accepts(matcher, text), text


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize(
    "outputs",
    [
        {"choice": ["<|im_end|>", "a <|im_end|> b"]},
        {"json": {"const": "x<|im_end|>y"}},
        {"json": {"type": "object", "properties": {"<|im_end|>": {"const": 1}}, "required": ["<|im_end|>"]}},
        {"regex": r"a<\|im_end\|>b"},
        {"regex": r"a(<)(\|)im_end[|]>b"},
        {"json": {"type": "string", "pattern": r"^a<{1}\|im_end\x7c>b$"}},
        {"grammar": 'start: "<|im_end|>" "!"'},
    ],
    ids=str,
)
def test_text_that_spells_a_special_token_is_text(grammars: Grammars, outputs: dict[str, Any], thinks: bool) -> None:
    """Else an answer would end where it has only begun."""
    thoughts = Reasoning("<|im_start|>", "</think>", is_open=False) if thinks else None
    source = grammar_source(None, StructuredOutputs.model_validate(outputs), None, thoughts)
    assert source is not None
    matcher = compile_grammar(TOKENIZER, asyncio.run(grammars.compile(source))).deep_copy()
    written: list[int] = []
    while not matcher.is_accepting():  # no token but such as spell text
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        token = max(int(one) for one in np.flatnonzero(bits) if not TOKENIZER.is_special_token(int(one)))
        assert not bits[TOKENIZER.eos_tokens].any()
        assert matcher.consume_token(token)
        written.append(token)
    assert b"<|im_end|>" in TOKENIZER.decode_bytes(written)


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize(
    "schema",
    [
        {"const": "x<|im_end|>y"},
        *(
            {"type": "string", "pattern": pattern}
            for pattern in (r"^x<\|im_end\|>$", r"^x[<]\|im_end\|>$", r"^x<\x7Cim_end\|>$")
        ),
        {"const": "x"},
    ],
    ids=str,
)
def test_beside_tools_text_that_spells_a_special_token_is_text(
    grammars: Grammars, schema: dict[str, Any], thinks: bool
) -> None:
    end = TOKENIZER.tokenize_str("<|im_end|>", parse_special=True)[0]
    form = choose_format("<tool_call>", token_ids={"<|im_end|>": end})
    calls = form.call_grammar([Tool("f")], required=True, parallel=True)
    assert calls is not None
    thoughts = Reasoning("<|im_start|>", "</think>", is_open=False) if thinks else None
    lark = form.call_or_json(calls, json.dumps(served(schema, "x")))
    source = GrammarSource("lark", lark, "x", thoughts)
    matcher = compile_grammar(TOKENIZER, asyncio.run(grammars.compile(source))).deep_copy()
    written: list[int] = TOKENIZER.tokenize_str('"')
    assert matcher.consume_tokens(written)
    while not matcher.is_accepting():
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        assert not bits[end]
        written.append(max(int(one) for one in np.flatnonzero(bits) if not TOKENIZER.is_special_token(int(one))))
        assert matcher.consume_token(written[-1])
    assert json.loads(TOKENIZER.decode_bytes(written)) in ("x<|im_end|>y", "x<|im_end|>", "x")


FINITE: dict[str, dict[str, Any]] = {
    **{f"format {name}": {"type": "string", "format": name} for name in ("date-time", "time", "duration", "date")},
    "integer": {"type": "integer"},
    "positive integer": {"type": "integer", "exclusiveMinimum": 0},
    "fraction": {"type": "number", "minimum": 0, "maximum": 1},
    "positive": {"type": ["number", "null"], "exclusiveMinimum": 0.5},
    "negative": {"type": "number", "exclusiveMaximum": -1e-6},
    "by reference": {"$ref": "#/$defs/a", "minimum": 2, "$defs": {"a": {"type": "number", "maximum": 10**9}}},
    "multiples of both": {"allOf": [{"type": "number", "multipleOf": 0.25}, {"minimum": 1}, {"maximum": 50}]},
}


@pytest.mark.parametrize("name", FINITE)
def test_digits_come_to_an_end_and_every_one_of_them_is_valid(grammars: Grammars, name: str) -> None:
    """A model that always goes on if it may: nothing but the longest answers."""
    matcher, draw = compiled(grammars, FINITE[name]), random.Random(name)
    for _ in range(20):
        following, text = matcher.deep_copy(), ""
        while not following.is_stopped():
            bits = np.unpackbits(np.frombuffer(following.compute_bitmask(), np.uint8), bitorder="little")
            spelt = {TOKENIZER.decode_bytes([token]): int(token) for token in np.flatnonzero(bits)}
            digits = [byte for byte in spelt if len(byte) == 1 and (byte.isdigit() or byte in b".")]
            text += (chosen := draw.choice(digits or [byte for byte in spelt if len(byte) <= 1])).decode()
            assert following.consume_token(spelt[chosen]) and len(text) < 80, text
        check(FINITE[name], text)
        if "date" in name:
            assert datetime.fromisoformat(json.loads(text)).year > 0
        elif name == "format duration":
            assert pydantic.TypeAdapter(timedelta).validate_json(text) >= timedelta(0)


def test_days_that_never_were_are_refused_and_bounds_are_kept(grammars: Grammars) -> None:
    for schema, good, bad in (
        ({"format": "date"}, ['"2024-02-29"', '"2000-02-29"'], ['"2023-02-29"', '"1900-02-29"', '"0000-01-01"']),
        (
            {"format": "date-time", "pattern": "^2"},
            ['"2024-02-29T23:59:59.123456789+01:30"', '"2023-01-31T00:00:00Z"'],
            ['"2023-02-29T00:00:00Z"', '"1999-01-01T00:00:00Z"', '"2023-01-31T00:00:60Z"', '"2023-01-31T00:00:00"'],
        ),
        ({"format": "time"}, ['"23:59:59Z"', '"00:00:00.5-12:00"'], ['"24:00:00Z"', '"00:00:00.Z"', '"00:00:00"']),
        ({"format": "duration"}, ['"P1Y2M3DT4H5M6S"', '"PT5M"', '"P4W"'], ['"P"', '"PT"', '"PT1H2S"', '"P1W1D"']),
        ({"type": "number", "minimum": 0.001}, ["0.001", "0.0012", "5", f"{9 * 10**18}"], ["0.0009", "-5"]),
        ({"type": "number", "minimum": 1e-15, "maximum": 2e-15}, ["0.0000000000000015"], ["0.1"]),
        ({"type": "integer"}, [f"{2**62}", f"-{2**62}", "0"], [f"{2**64}"]),
        ({"type": "number"}, ["6.022e23", "6.6e-34", "1"], ["e"]),
        ({"enum": [10**20, 7], "minimum": 0}, [f"{10**20}"], ["8"]),
    ):
        matcher = compiled(grammars, schema)
        assert [text for text in good if not accepts(matcher, text)] == [], schema
        assert [text for text in bad if accepts(matcher, text)] == [], schema


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"const": "a\x00b"}, "const: a control character"),
        ({"enum": ["a", {"b": ["\x1f"]}]}, "enum: a control character"),
        ({"enum": [{"\x7f": 1}]}, "enum: a control character"),
        *(({"const": [value]}, "const: the integer .* beyond 2.53")
          for value in (12345678901234567890123, 2**53 + 1, 2**63, -(2**63), 2**64 - 1, 10**400)),
        ({"type": "string", "pattern": r"^a[\x01\x02]$"}, "pattern: a control character"),
        ({"patternProperties": {r"^a\x01$": {}}}, "patternProperties: a control character"),
        *(({"properties": {"a": {"$ref": reference}}, "components": {"schemas": {"b": {"const": "\x01"}}}}, r"\$ref: ")
          for reference in ("#/components/schemas/b", "#/x%2Dfoo", "#/examples/0", "file:///a#/default")),
        *(({"type": "string", "pattern": f"^a{control}b$"}, "pattern: a control character")
          for control in ("\x01", r"\x01", r"\u000b", r"\x{1f}", r"\x7F", r"\a", r"\u{0007}")),
        ({"properties": {"a": {"items": {"const": "\x02"}}}}, "const: a control character"),
    ],
)  # fmt: skip
def test_what_no_answer_can_spell_is_refused(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError, match=f"^x: {told}"):
        served(schema, "x")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"const": "a\b\t\n\f\r\\x01b€"}, [json.dumps("a\b\t\n\f\r\\x01b€", ensure_ascii=False)], ['"ab"']),
        ({"type": "string", "pattern": r"^[^\x00-\x1f\x7f]{1,3}$"}, ['"ab€"'], ['""', '"a\\tb"']),
        ({"type": "string", "pattern": r"^[\x00-\x7F]{1,3}$"}, ['"ab~"'], ['"é"', '""']),
        ({"type": "string", "pattern": r"^\\x01[\x01-\x1fa]$"}, [r'"\\x01a"'], [r'"\\x01"']),
        ({"const": [2**53, -(2**53), 10**20]}, [f"[{2**53},{-(2**53)},{10**20}]"], ["[0]"]),
        (
            {"$ref": "#/$defs/a/items/0/anyOf/0", "$defs": {"a": {"items": [{"anyOf": [{"const": 1}]}]}}},
            ["1"],
            ["2"],
        ),
    ],
)
def test_other_characters_and_integers_come_out_as_they_are_given(
    grammars: Grammars, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    matcher = compiled(grammars, schema)
    assert [text for text in good if not accepts(matcher, text)] == []
    assert [text for text in bad if accepts(matcher, text)] == []


def test_bounds_of_numbers_may_be_of_any_size() -> None:
    huge = 10**400
    for bounds in (
        {"minimum": 0.5, "maximum": huge},
        {"exclusiveMinimum": -huge, "maximum": 1.5},
        {"minimum": huge, "maximum": 1.5},
        {"minimum": -1.5, "maximum": -huge},
    ):
        assert served({"type": "number", **bounds}, "x")["type"] == "number"


def test_strings_have_as_many_characters_together_as_a_lexers_table_can_count(grammars: Grammars) -> None:
    """Of any kind, in any answer: the copies of a matcher share the table."""
    for schema in (
        {"type": "string", "maxLength": MAX_COUNTED + 1},
        {"type": "string", "minLength": 30_000},
        {"type": "string", "pattern": f"^(a{{{MAX_COUNTED}}}|b{{2,}})$"},
        {"anyOf": [{"type": "string", "maxLength": MAX_COUNTED // 8 + at} for at in range(8)]},
        {"type": "string", "maxLength": 60_000.0},
        {"type": "string", "pattern": "^(?:[a-z {}]{90}|b+){91}$"},
        {"patternProperties": {f"^{letter}{{4000}}$": {} for letter in "abc"}},
        {"type": "string", "pattern": f"a{{{'9' * 5000}}}"},
        {"type": "string", "pattern": "a" + "{9}" * 8000},
        {"type": "string", "pattern": f"^a{{{'0' * 30}9000}}$"},
    ):
        with pytest.raises(RequestError, match=f"^x: .* {MAX_COUNTED} can be counted"):
            served(schema, "x")
    of_half = {"type": "string", "maxLength": MAX_COUNTED // 2}
    matcher = compiled(grammars, {"properties": {"a": of_half, "b": of_half, "c": {**of_half, "minLength": 1}}})
    for kind in ("plain text", 'a\n"b\\\t', "äß€漢😀Ж\u00ff\u07ff\ud7ff\ue000\U0010ffff"):
        for name in "ac":
            text = (kind * MAX_COUNTED)[: MAX_COUNTED // 2]
            following = matcher.deep_copy()
            answer = json.dumps({name: text}, ensure_ascii=False)[:-1]
            for token in TOKENIZER.tokenize_str(answer):
                following.compute_bitmask()
                assert following.consume_token(token), following.get_error()


def test_patterns_are_read_once_and_have_so_many_characters_together() -> None:
    """A set that nothing ends was looked for from each of its beginnings: 16,000 of them took 10 s."""
    for schema in (
        {"type": "string", "pattern": "[" * (MAX_IN_PATTERNS + 1)},
        {"anyOf": [{"type": "string", "pattern": f"{at}{'a' * 999}"} for at in range(MAX_IN_PATTERNS // 1000 + 1)]},
        {"patternProperties": {"x" * (MAX_IN_PATTERNS + 1): {}}},
    ):
        with pytest.raises(RequestError, match=rf"^x: its patterns have \d+ characters, and {MAX_IN_PATTERNS}"):
            served(schema, "x")
    for piece in ("[", "[^", "(", r"\x{0", "[\x01"):
        pattern = (piece * MAX_IN_PATTERNS)[: MAX_IN_PATTERNS - 1]
        assert repeated(pattern) == 0
        assert unspellable({"pattern": pattern}) in ("", unspellable({"pattern": "\x01"}))


def test_bounds_of_64_bits_are_those_of_any_integer(grammars: Grammars) -> None:
    for bounds in (
        {"minimum": -(2**63), "maximum": 2**63 - 1},
        {"minimum": 0, "maximum": 2**64 - 1},
        {"exclusiveMinimum": -(2**63) - 1, "exclusiveMaximum": 2**63},
    ):
        matcher = compiled(grammars, {"type": "integer", **bounds})
        assert accepts(matcher, "0") and accepts(matcher, str(2**53)) and not accepts(matcher, str(2**65))


def test_names_of_properties_are_no_keywords() -> None:
    schema = {"properties": {"minProperties": {}, "disallow": {"uniqueItems": False}, "properties": {"properties": {}}}}
    assert served(schema, "x") == {
        "properties": {"minProperties": {}, "disallow": {}, "properties": {"properties": {}}},
    }
    assert schema["properties"]["disallow"] == {"uniqueItems": False}  # a copy is changed


X, Y = ({"type": "object", "properties": {name: {"const": 1}}, "required": [name]} for name in "xy")
ARRAY = {"type": "array", "maxItems": 1}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"properties": {"a": X}, "type": "object"}, ['{"a":{"x":1}}'], ['{"b":1}', '{"a":{"x":1,"b":1}}']),
        ({"anyOf": [X, Y, {"type": "null"}]}, ['{"x":1}', '{"y":1}', "null"], ['{"x":1,"y":1}']),
        ({"allOf": [{"$ref": "#/$defs/a%20b"}], "$defs": {"a b": X}}, ['{"x":1}'], ['{"x":1,"y":1}']),
        ({**X, "anyOf": [{"required": ["x"]}]}, ['{"x":1}'], ['{"x":1,"y":1}']),
        ({**ARRAY, "items": {"$ref": "#/$defs/a"}, "$defs": {"a": X}}, ['[{"x":1}]'], ['[{"x":1,"y":1}]']),
        ({**X, "additionalProperties": {"const": 2}}, ['{"x":1,"b":2}'], ['{"x":1,"b":1}']),
        ({"enum": [{"x": 1, "y": 2}, {"x": 2}], **X}, ['{"x":1,"y":2}'], ['{"x":1}']),
        ({"properties": {"enum": X}, "type": "object"}, ['{"enum":{"x":1}}'], ['{"enum":{"x":1,"y":1}}']),
    ],
)  # fmt: skip
def test_objects_are_closed_by_the_schema_that_alone_describes_them(
    grammars: Grammars, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    matcher = compiled(grammars, schema, disable_additional_properties=True)
    assert [text for text in good if not accepts(matcher, text)] == []
    assert [text for text in bad if accepts(matcher, text)] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [X, Y]},
        {**X, "$ref": "#/$defs/a", "$defs": {"a": Y}},
        {"type": "object", "properties": {"a": {"anyOf": [X, Y], "properties": {"z": {}}}}},
        {"anyOf": [{"$ref": "#/$defs/a"}, {"allOf": [{"$ref": "#/$defs/a"}, Y]}], "$defs": {"a": X}},
        {"$ref": "#a", "$defs": {"a": {**X, "$anchor": "a"}}},
    ],
)
def test_objects_that_several_schemas_describe_stay_open_and_cannot_be_closed(
    grammars: Grammars, schema: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match="allOf") as caught:
        compiled(grammars, schema, disable_additional_properties=True)
    assert caught.value.param == "structured_outputs.disable_additional_properties"
    matcher = compiled(grammars, arguments_schema(schema))
    assert any(accepts(matcher, text) for text in ('{"x":1,"y":1}', '{"y":1,"x":1}', '{"a":{"x":1,"z":1,"y":1}}'))


def test_closing_takes_no_longer_than_a_schema_is_long() -> None:
    chain: dict[str, Any] = {f"{at}": {"anyOf": [{"$ref": f"#/$defs/{at + 1}"}] * 2} for at in range(4000)}
    found, _ = closed({"$ref": "#/$defs/0", "$defs": chain | {"4000": {"$ref": "#/$defs/0"}}})
    assert len(found["$defs"]) == 4001
