"""Schemas of tools that refer to parts of themselves: held in every format, and no work without end."""

import json
from typing import Any, Final

import jsonschema
import pytest

from call_grammars import vocabularies
from octavo_server.errors import RequestError
from octavo_server.frontend.text.output_parsers import Tool, choose_format
from octavo_server.frontend.text.output_parsers.qwen3_coder import as_json

VOCABULARY: Final = dict(vocabularies())["bytes"]
NODE: Final = {"type": "object", "properties": {"a": {"type": "array", "items": {"$ref": "#"}}}, "required": ["a"]}
SIBLING: Final = {
    "type": "object",
    "properties": {
        "a": {"type": "object", "properties": {"b": {"type": "string"}, "c": {"$ref": "#/properties/b"}}},
        "b": {"type": "integer"},
    },
}
NAMED: Final = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/one%20two"}},
    "$defs": {
        "one two": {"anyOf": [{"$ref": "#/$defs/kinds~1c"}, {"type": "null"}]},
        "kinds/c": {"type": "array", "items": {"$ref": "#/$defs/one%20two"}},
    },
}
SPELL: Final = {
    "hermes": '<tool_call>\n{{"name": "f", "arguments": {{"a": {}}}}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=f>\n<parameter=a>\n{}\n</parameter>\n</function>\n</tool_call>",
}


def grammar(name: str, parameters: dict[str, Any]) -> str:
    found = choose_format("", name, "none").call_grammar((Tool("f", parameters, True),), required=True, parallel=False)
    assert found is not None
    return found


@pytest.mark.parametrize("name", SPELL)
@pytest.mark.parametrize(
    ("parameters", "values"),
    [
        (NODE, [[], [{"a": []}], [[]], [1], [{"a": [{"a": [{"a": []}]}]}]]),
        (SIBLING, [{"c": 1}, {"c": "x"}, {"b": "x", "c": 2}, {"b": 1}]),
        (NAMED, [None, [], [None], [[None], []], [1], 1]),
    ],
)
def test_an_argument_may_refer_to_any_part_of_its_tool_s_schema(
    name: str, parameters: dict[str, Any], values: list[Any]
) -> None:
    found, validator = grammar(name, parameters), jsonschema.Draft202012Validator(parameters)
    for value in values:
        text = SPELL[name].format(json.dumps(value))
        assert VOCABULARY.accepts(found, text) == validator.is_valid({"a": value}), value


@pytest.mark.parametrize("listed", [{"enum": ["C", "F"], "type": "string"}, {"$ref": "#/$defs/unit"}])
def test_a_list_within_a_union_is_held_in_python_s_form(listed: dict[str, Any]) -> None:
    parameters = {
        "type": "object",
        "properties": {"a": {"anyOf": [listed, {"type": "null"}, {"type": "array", "items": {"oneOf": [listed]}}]}},
        "$defs": {"unit": {"const": "C"}},
    }
    found = grammar("pythonic", parameters)
    for value, right in (('"C"', True), ("None", True), ('["C", "C"]', True), ('"K"', False), ('["K"]', False)):
        assert VOCABULARY.accepts(found, f"[f(a={value})]") == right, value


@pytest.mark.parametrize("name", ["qwen3_coder", "pythonic"])
@pytest.mark.timeout(60)
def test_schemas_that_lead_to_each_other_on_many_ways_come_to_an_end(name: str) -> None:
    ways = [{"$ref": "#/$defs/n"}] * 50
    arrays = [{"type": "array", "items": {"$ref": "#/$defs/m"}, "title": str(number)} for number in range(50)]
    parameters = {
        "type": "object",
        "properties": {key: {"$ref": f"#/$defs/{key}"} for key in "nmo"},
        "$defs": {"n": {"anyOf": [*ways, {"enum": ["x", 1]}]}, "m": {"oneOf": arrays}, "o": {"allOf": [*ways] * 2}},
    }
    form, tools = choose_format("", name, "none"), (Tool("f", parameters),)
    if name == "pythonic":
        assert VOCABULARY.accepts(grammar(name, parameters), '[f(n="x", m=[[], [[]]])]')
        return
    assert form.call_grammar(tools, required=True, parallel=False)
    for key, value in (("n", "1"), ("o", "null")):
        text = SPELL[name].replace("=a>", f"={key}>").format(value)
        (call,) = form.parser(tools, reasoning_open=False).add(text).calls
        assert json.loads(call.arguments).keys() == {key}


def test_an_argument_s_schema_brings_what_it_refers_to_and_no_more() -> None:
    definitions = {f"d{number}": {"type": "object", "properties": {"x": {"type": "integer"}}} for number in range(300)}
    named = {f"p{number}": {"$ref": f"#/$defs/d{number}"} for number in range(300)}
    parameters = {"type": "object", "properties": named, "$defs": definitions}
    assert len(grammar("qwen3_coder", parameters)) < 16 * len(json.dumps(parameters))


def test_copies_of_what_is_referred_to_have_a_bound() -> None:
    long = {"enum": [f"{number:0100}" for number in range(1000)] + [0]}
    named = {f"p{number}": {"type": "array", "items": {"$ref": "#/$defs/long"}} for number in range(100)}
    with pytest.raises(RequestError, match="each with what it refers to"):
        grammar("qwen3_coder", {"type": "object", "properties": named, "$defs": {"long": long}})


@pytest.mark.parametrize("name", ["qwen3_coder", "pythonic"])
@pytest.mark.parametrize(
    ("shared", "why"),
    [
        ({"enum": [f"value {number}" for number in range(5000)]}, "each with what it refers to"),
        ({"anyOf": [{"type": "string"}, *({"type": "integer"} for _ in range(2000))]}, "too much to be read"),
    ],
)
@pytest.mark.timeout(60)
def test_what_many_arguments_share_is_not_written_or_read_for_each_without_end(
    name: str, shared: dict[str, Any], why: str
) -> None:
    named = {f"p{number}": {"anyOf": [{"$ref": "#/$defs/u"}]} for number in range(500)}
    with pytest.raises(RequestError, match=why):
        grammar(name, {"type": "object", "properties": named, "$defs": {"u": shared}})


def test_of_the_values_of_a_long_list_those_that_the_schema_allows_besides_are_held() -> None:
    listed = {"type": "string", "enum": [*range(1200), *(f"v{number}" for number in range(600))]}
    found = grammar("qwen3_coder", {"type": "object", "properties": {"a": listed}, "required": ["a"]})
    for text, right in (("v599", True), ("v600", False), ("5", False)):
        assert VOCABULARY.accepts(found, SPELL["qwen3_coder"].format(text)) == right, text


class Counted(dict[str, Any]):
    """Of definitions, how often they were looked for."""

    count = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.count += 1
        return super().get(key, default)


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"$ref": f"#/$defs/{'%61' * 300}"}] * 200},
        {"type": ["string", "integer"], "allOf": [{"$ref": f"#/$defs/{'%61' * 300}"}] * 200},
    ],
)
def test_long_references_are_read_less_often_while_answers_come(schema: dict[str, Any]) -> None:
    definitions = Counted({"a" * 300: {"type": "integer"}})
    assert as_json("17\n", schema, {"$defs": definitions}) == "17"
    assert 0 < definitions.count < 50
