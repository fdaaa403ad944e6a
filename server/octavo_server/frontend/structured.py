"""From what a request says of its answer's shape to one grammar, not compiled yet. Pure.

What only llguidance can turn into a grammar of its own stays as it is until then: `text/grammar_worker.py`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from octavo_server.errors import RequestError
from octavo_server.frontend.structured_fields import (
    JsonObjectFormat,
    JsonSchemaFormat,
    ResponseFormat,
    StructuredOutputs,
)
from octavo_server.frontend.text.closed_schemas import closed
from octavo_server.frontend.text.json_schemas import ESCAPES, served

# "lark": of our own making, "choice": around texts of the client's, "grammar": Lark or GBNF, as the text has it.
SourceKind = Literal["json", "regex", "lark", "choice", "grammar"]
_ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
# Between JSON's tokens, where no request says it: a space, or a new line with its indentation. Without a bound small
# models may write space until their tokens are used up.
WHITESPACE: Final = r"[ ]|\r?\n([ ]{0,32}|\t{0,16})"
_FLEXIBLE: Final[Mapping[str, Any]] = {"whitespace_pattern": WHITESPACE}


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What stands around the thoughts of a model that thinks, as text. `is_open`: the prompt ends within them.

    Where it is not, thoughts may be left out.
    """

    start: str
    end: str
    is_open: bool


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """A grammar to be compiled. `param`: path of the field that it comes from, for errors."""

    kind: SourceKind
    text: str
    param: str
    reasoning: Reasoning | None = None


def grammar_source(
    response_format: ResponseFormat | None,
    structured_outputs: StructuredOutputs | None,
    call_grammar: str | None = None,
    reasoning: Reasoning | None = None,
) -> GrammarSource | None:
    """The one grammar of a request, None if its answer is free.

    call_grammar: Lark, of tool calls that are required or strict. reasoning: of a model that thinks first; the grammar
    begins behind that.

    Raises:
        RequestError: more than one of them says what the answer must look like; a schema says what cannot be held.
    """
    found = {
        "response_format": _of_format(response_format, reasoning),
        "structured_outputs": None if structured_outputs is None else _of_outputs(structured_outputs, reasoning),
        "tool_choice": None if call_grammar is None else GrammarSource("lark", call_grammar, "tools", reasoning),
    }
    given = {name: source for name, source in found.items() if source is not None}
    if len(given) > 1:
        names = " and ".join(given)
        raise RequestError(
            f"{names} each say what the answer must look like: give one of them", param=next(reversed(given))
        )
    return next(iter(given.values()), None)


def _of_format(given: ResponseFormat | None, reasoning: Reasoning | None) -> GrammarSource | None:
    match given:
        case JsonObjectFormat():
            return _json(_ANY_OBJECT, _FLEXIBLE, "response_format", reasoning)
        case JsonSchemaFormat():
            schema = given.json_schema.schema_
            param = "response_format.json_schema.schema"
            return _json(_ANY_OBJECT if schema is None else schema, _FLEXIBLE, param, reasoning)
    return None


def _of_outputs(given: StructuredOutputs, reasoning: Reasoning | None) -> GrammarSource:
    kind = given.given[0]
    param = f"structured_outputs.{kind}"
    if given.regex is not None:
        return GrammarSource("regex", given.regex, param, reasoning)
    if given.choice is not None:
        return GrammarSource("choice", choice_grammar(given.choice), param, reasoning)
    if given.grammar is not None:
        return GrammarSource("grammar", given.grammar, param, reasoning)
    schema = given.json_ if isinstance(given.json_, dict) else _ANY_OBJECT
    options: Mapping[str, Any] = _FLEXIBLE
    if given.disable_any_whitespace:
        options = {"whitespace_flexible": False}
    elif given.whitespace_pattern is not None:
        options = {"whitespace_pattern": given.whitespace_pattern}
    return _json(_closed(schema) if given.disable_additional_properties else schema, options, param, reasoning)


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    found, is_whole = closed(schema)
    if not is_whole:
        param = "structured_outputs.disable_additional_properties"
        raise RequestError(
            f"{param}: several schemas describe one object together (allOf, or $ref or anyOf beside properties), or a "
            "$ref is not of the form #/…: say additionalProperties: false in the schema",
            param=param,
        )
    return found


def _json(
    schema: Mapping[str, Any], options: Mapping[str, Any], param: str, reasoning: Reasoning | None
) -> GrammarSource:
    """`x-guidance` is how llguidance takes options: those of a client's are replaced. Raises as `served`."""
    text = json.dumps({**served(schema, param), "x-guidance": {**ESCAPES, **options}}, ensure_ascii=False)
    return GrammarSource("json", text, param, reasoning)


def choice_grammar(choices: list[str]) -> str:
    """Lark whose language is these strings: one terminal, as a rule may not have so many."""
    return "start: CHOICE\nCHOICE: " + "\n      | ".join(map(json.dumps, choices))
