"""JSON schemas, bounded, of every keyword that is served, and of those that are not; random answers to a grammar."""

import json
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import jsonschema
import numpy as np

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_BOOL: Final = {"type": "boolean"}
_NULL: Final = {"type": "null"}
_CLOSED: Final = {"type": "object", "additionalProperties": False}
_DRAFT_4: Final = "http://json-schema.org/draft-04/schema#"
_DRAFT_7: Final = "http://json-schema.org/draft-07/schema#"


def _string(**keywords: Any) -> dict[str, Any]:
    return {"type": "string", **keywords}


def _integer(**keywords: Any) -> dict[str, Any]:
    return {"type": "integer", **keywords}


def _number(**keywords: Any) -> dict[str, Any]:
    return {"type": "number", **keywords}


def _array(items: Any, most: int = 3, **keywords: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": most, **keywords}


def _object(properties: Mapping[str, Any], *required: str, **keywords: Any) -> dict[str, Any]:
    return {**_CLOSED, "properties": dict(properties), "required": list(required), **keywords}


SERVED: Final[dict[str, dict[str, Any]]] = {
    "boolean": _BOOL,
    "null": _NULL,
    "types": {"type": ["integer", "null", "boolean"], "minimum": 0, "maximum": 3},
    "no type": {"maxLength": 3, "minimum": -3, "maximum": 3, "maxItems": 0, "maxProperties": 0},
    "integer": _integer(minimum=-1000, maximum=1000),
    "integer, excluding": _integer(exclusiveMinimum=-3, exclusiveMaximum=12),
    "integer, both bounds": _integer(minimum=3, exclusiveMinimum=3, maximum=5),
    "integer, large": _integer(minimum=10**15, maximum=10**15 + 5),
    "integer, draft 4": _integer(minimum=3, exclusiveMinimum=True, maximum=9, **{"$schema": _DRAFT_4}),
    "number": _number(minimum=-3.25, maximum=7.5),
    "number, excluding": _number(exclusiveMinimum=0, exclusiveMaximum=1),
    "number, tiny": _number(minimum=1e-3, maximum=2e-3),
    "multiples": _integer(multipleOf=7, minimum=0, maximum=10_000),
    "multiples, negative": _integer(multipleOf=5, minimum=-100, maximum=-3),
    "multiples of a quarter": _number(multipleOf=0.25, minimum=0, maximum=10),
    "multiples of two": {"allOf": [_integer(multipleOf=2), {"multipleOf": 3}], "minimum": 0, "maximum": 60},
    "length": _string(minLength=2, maxLength=5),
    "length 0": _string(maxLength=0),
    "pattern": _string(pattern="^[a-c]{2,4}$"),
    "pattern, anywhere": _string(pattern="b[0-9]", maxLength=8),
    "pattern, half open": _string(pattern="^a|b$", maxLength=4),
    "pattern, classes": _string(pattern=r"^\w\d\s\S\D{1,2}$"),
    "pattern, any character": _string(pattern="^.{1,4}$"),
    "pattern, excluding": _string(pattern="^[^a-z]{1,3}$"),
    "pattern, quoted": _string(pattern='^["\\\\\n]{1,3}$'),
    "pattern, unicode": _string(pattern="^[äöü€😀]{1,4}$"),
    "pattern and length": _string(pattern="^(aa|b){1,4}$", minLength=3, maxLength=6),
    "patterns": {"allOf": [_string(pattern="^a"), {"pattern": "b$"}, {"maxLength": 4}]},
    **{f"format {name}": _string(format=name) for name in ("date-time", "date", "time", "duration", "ipv4", "ipv6")},
    **{f"format {name}": _string(format=name, maxLength=40) for name in ("email", "hostname", "uri", "uuid")},
    "format and pattern": {"allOf": [_string(format="date"), {"pattern": "^2"}]},
    "enum": {"enum": ["a", 1, None, True, {"x": [1]}, [2], 2.5, 'ü"\\\n', "ab", "a"]},
    "enum of a type": {"type": "string", "enum": ["a", 3, "b"]},
    "enum and bounds": {"enum": [1, 5, 9, "a", "bbb"], "minimum": 4, "maxLength": 2},
    "const": {"const": {"a": [1, None], "b": "é", "c": 1.0}},
    "array": _array(_integer(minimum=0, maximum=9), 4, minItems=1),
    "array, empty": _array(_BOOL, 0),
    "array, of a length": _array({"enum": [1, 2]}, 3, minItems=3),
    "array of arrays": _array(_array(_BOOL, 2), 2),
    "array, not unique": _array({"enum": [1, 2]}, 3, uniqueItems=False),
    "tuple": {"type": "array", "prefixItems": [_BOOL, _NULL], "items": False, "minItems": 1},
    "tuple and others": _array({"const": 1}, 4, prefixItems=[_BOOL], minItems=3),
    "tuple, draft 7": _array([_BOOL], 3, additionalItems={"const": 3}, **{"$schema": _DRAFT_7}),
    "object": _object({"a": _BOOL, "b": _NULL, "c": {"const": 1}}, "b"),
    "object, many that may be left out": _object({f"field {index}": {"const": 1} for index in range(250)}),
    "object, odd names": _object({'a"b\\': _BOOL, "ü\n": _NULL, "": _BOOL}, 'a"b\\', "ü\n"),
    "object, open": {"type": "object", "properties": {"a": _BOOL}, "required": ["a"], "maxProperties": 1},
    "object, others": _object({"a": _BOOL}, "a", patternProperties={"^x[0-9]$": _NULL}, maxProperties=3),
    "object, one at least": _object({}, patternProperties={"^[a-c]$": _BOOL}, minProperties=1, maxProperties=2),
    "object, not declared": {**_CLOSED, "additionalProperties": _BOOL, "required": ["zz"], "maxProperties": 1},
    "object, never": {**_CLOSED, "properties": {"a": False, "b": {"const": 1}}},
    "object, some": _object({"a": {"const": 1}, "b": {"const": 2}}, anyOf=[{"required": ["a"]}, {"required": ["b"]}]),
    "anyOf": {"anyOf": [_BOOL, _string(maxLength=2)]},
    "anyOf within": _integer(anyOf=[{"minimum": 3, "maximum": 5}, {"maximum": -1, "minimum": -4}]),
    "oneOf": {"oneOf": [_BOOL, _NULL, {"const": "a"}]},
    "oneOf by a key": {
        "oneOf": [_object({"k": {"const": kind}, "x": {"const": 1}}, "k") for kind in ("a", "b")],
    },
    "allOf": {"allOf": [_integer(minimum=3), {"maximum": 9}]},
    "allOf of objects": {
        "allOf": [{"properties": {"a": _BOOL}, "required": ["a"]}, {"properties": {"b": _NULL}, "required": ["b"]}],
        "type": "object",
        "maxProperties": 2,
    },
    "allOf of enums": {"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}]},
    "allOf of arrays": _array(_integer(), 2, allOf=[{"items": {"minimum": 3}}, {"items": {"maximum": 5}}]),
    "$ref": {"$ref": "#/$defs/a", "maximum": 3, "$defs": {"a": _integer(minimum=0)}},
    "$ref, definitions": _object({"a": {"$ref": "#/definitions/x~1y%20z"}}, "a", definitions={"x/y z": {"const": 1}}),
    "$ref, $id and $anchor": {
        "$id": "http://example.com/x",
        "anyOf": [{"$ref": "http://example.com/x#/$defs/a"}, {"$ref": "#b"}],
        "$defs": {"a": _BOOL, "b": {"$anchor": "b", "type": "null"}},
    },
    "tree": {
        "$ref": "#/$defs/tree",
        "$defs": {"tree": _object({"v": {"enum": [1, 2]}, "c": _array({"$ref": "#/$defs/tree"}, 1)}, "v")},
    },
    "list": {
        "$ref": "#/$defs/list",
        "$defs": {"list": {"anyOf": [_NULL, _object({"next": {"$ref": "#/$defs/list"}}, "next")]}},
    },
    "annotations": {
        **{"title": "t", "description": "d", "default": 1, "examples": [1], "deprecated": True, "$comment": "c"},
        **{"readOnly": True, "writeOnly": True, "contentEncoding": "base64", "contentMediaType": "text/plain"},
        **{"x-ours": 1, "nullable": True, "type": "boolean"},
    },
    "asks for nothing": _object({"a": _BOOL}, dependentRequired={}, dependentSchemas={}, propertyNames=True),
    "names of keywords": _object({"not": _BOOL, "extends": _NULL, "uniqueItems": {"const": False}}, "not"),
}
# What cannot be held, and what the refusal names.
NOT_SERVED: Final[list[tuple[dict[str, Any], str]]] = [
    *(({"type": "array", **keywords}, next(iter(keywords))) for keywords in ({"contains": {}}, {"uniqueItems": True})),
    ({"type": "array", "minContains": 1}, "minContains"),
    ({"type": "array", "maxContains": 1}, "maxContains"),
    ({"type": "array", "unevaluatedItems": False}, "unevaluatedItems"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "dependentSchemas": {"a": {}}}, "dependentSchemas"),
    ({"type": "object", "dependencies": {"a": ["b"]}}, "dependencies"),
    ({"type": "object", "minProperties": 2}, "minProperties"),
    ({"type": "object", "properties": {"a": {}, "b": {}}, "maxProperties": 1, "minProperties": 1}, "Properties"),
    ({"type": "object", "patternProperties": {"^a": {}, "b$": {}}}, "disjoint"),
    ({"not": {"type": "string"}}, "not"),
    ({"if": {"type": "string"}, "then": {"maxLength": 3}, "else": {}}, "if"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "use anyOf"),
    ({"$dynamicRef": "#a"}, "$dynamicRef"),
    ({"$recursiveRef": "#"}, "$recursiveRef"),
    ({"disallow": "string"}, "disallow"),
    ({"type": "object", "properties": {"a": {"extends": {"type": "string"}}}}, "extends"),
    ({"anyOf": [{"type": "integer", "divisibleBy": 3}]}, "divisibleBy"),
    ({"$schema": "http://example.com/own"}, "example.com/own"),
    ({"$ref": "#/$defs/a"}, "$defs/a"),
    ({"$ref": "https://example.com/schema.json"}, "example.com"),
    ({"$ref": "file:///etc/passwd"}, "passwd"),
    ({"type": "strange"}, "strange"),
    ({"type": "string", "pattern": "(?=a)b"}, "the pattern (?=a)b: look-around"),
    ({"type": "string", "pattern": r"\bab"}, "look"),
    ({"type": "string", "pattern": r"(a)\1"}, "backreferences"),
    ({"type": "string", "pattern": "("}, "unclosed"),
    *(({"type": "string", "format": name}, name) for name in ("color", "regex", "iri", "idn-email", "json-pointer")),
    ({"type": "string", "minLength": -1}, "minLength"),
    ({"type": "number", "multipleOf": 0}, "multiple"),
    ({"type": "object", "properties": []}, "properties"),
    ({"type": "object", "required": "a"}, "required"),
    ({"enum": "a"}, "enum"),
    ({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "uniqueItems"),
    ({"type": "object", "properties": {"a": {"not": {}, "x-guidance": {"lenient": True}}}}, "not"),
]
# What nothing fits.
UNSATISFIABLE: Final[list[tuple[dict[str, Any], str]]] = [
    ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
    ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems"),
    ({"enum": []}, "Unsatisfiable"),
    ({"const": 3, "type": "string"}, "Unsatisfiable"),
    ({**_CLOSED, "required": ["zz"]}, "zz"),
]


def check(schema: dict[str, Any], text: str) -> None:
    """Raises what `jsonschema` does, or json, if it is not valid by its schema; formats as far as it knows them."""
    judge = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    judge(schema, format_checker=judge.FORMAT_CHECKER).validate(json.loads(text))


def random_answer(matcher: "LLMatcher", tokenizer: "LLTokenizer", draw: random.Random, most: int = 300) -> str | None:
    """Each token is any of those that the grammar allows; None if it does not end in time."""
    following, tokens = matcher.deep_copy(), list[int]()
    for _ in range(most):
        bits = np.unpackbits(np.frombuffer(following.compute_bitmask(), np.uint8), bitorder="little")
        token = int(draw.choice(np.flatnonzero(bits)))
        if token in tokenizer.eos_tokens:
            return tokenizer.decode_bytes(tokens).decode()
        if not following.consume_token(token):
            raise RuntimeError(following.get_error())
        tokens.append(token)
    return None
