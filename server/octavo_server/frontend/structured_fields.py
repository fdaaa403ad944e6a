"""The fields by which a request says what its answer must look like: `response_format` and `structured_outputs`.

OpenAI's and vLLM's names. What a grammar costs grows with these texts, so that each has a bound; what fits them may
still be too much to compile, and is refused then (`grammars.py`).
"""

import json
from typing import Annotated, Any, Final, Literal, TypeGuard

from pydantic import Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from octavo_server.frontend.fields import Body, BoundedObject, Only, field_error

MAX_SCHEMA_BYTES: Final = 256 * 1024
MAX_SCHEMA_DEPTH: Final = 64
MAX_SCHEMA_VALUES: Final = 20_000
MAX_GRAMMAR: Final = 128 * 1024  # characters
MAX_REGEX: Final = 16 * 1024
MAX_CHOICES: Final = 1024
KINDS: Final = ("json", "regex", "choice", "grammar", "json_object")

_BOUNDS: Final = BoundedObject(depth=MAX_SCHEMA_DEPTH, values=MAX_SCHEMA_VALUES, bytes=MAX_SCHEMA_BYTES)
JsonSchema = Annotated[dict[str, Any], _BOUNDS]


class TextFormat(Body):
    """Whatever the model says."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """OpenAI's way to give a schema. It is always kept to; `strict` changes nothing."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$", min_length=1, max_length=64)]
    description: Annotated[str, Field(max_length=16_384)] | None = None
    schema_: Annotated[JsonSchema | None, Field(alias="schema")] = None
    strict: bool | None = None


class JsonSchemaFormat(Body):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def has_format(given: ResponseFormat | None) -> TypeGuard[JsonObjectFormat | JsonSchemaFormat]:
    """Whether it asks for more than text."""
    return not isinstance(given, TextFormat | None)


class StructuredOutputs(Body):
    """vLLM's extension: exactly one of `json`, `regex`, `choice`, `grammar`, `json_object`, and options for JSON."""

    json_: Annotated[
        Annotated[
            Annotated[JsonSchema, Tag("schema")]
            | Annotated[str, Field(min_length=1, max_length=MAX_SCHEMA_BYTES), Tag("text")],
            Discriminator(
                lambda value: "text" if isinstance(value, str) else "schema" if isinstance(value, dict) else None,
                custom_error_type="schema_type",
                custom_error_message="Input should be a JSON schema, an object or one in a string",
            ),
        ]
        | None,
        Field(alias="json"),
    ] = None
    regex: Annotated[str, Field(min_length=1, max_length=MAX_REGEX)] | None = None
    choice: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=4096)]],
            Field(fail_fast=True, min_length=1, max_length=MAX_CHOICES),
        ]
        | None
    ) = None
    grammar: Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR, description="Lark or GBNF")] | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    disable_fallback: Annotated[bool | None, Field(description="of no effect: there is one way to do it")] = None
    structural_tag: Annotated[Any, Only(why="texts with formatted parts are not made")] = None

    @field_validator("json_", mode="after")
    @classmethod
    def _a_text_holds_an_object(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise PydanticCustomError("schema_text", "the string must hold a JSON schema") from error
        if not isinstance(parsed, dict):
            raise PydanticCustomError("schema_text", "the string must hold a JSON object")
        return _BOUNDS.check(parsed)

    @model_validator(mode="after")
    def _exactly_one(self) -> "StructuredOutputs":
        if len(self.given) > 1:
            raise field_error(self.given[1], f"is not allowed together with {self.given[0]}: give one of them")
        if not self.given:
            raise PydanticCustomError("nothing_given", "give one of {kinds}", {"kinds": ", ".join(KINDS)})
        if self.whitespace_pattern is not None and self.disable_any_whitespace:
            raise field_error("whitespace_pattern", "is not allowed together with disable_any_whitespace")
        if self.given[0] not in ("json", "json_object"):
            for name in ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern"):
                if getattr(self, name):
                    raise field_error(name, "is only allowed together with json or json_object")
        return self

    @property
    def given(self) -> list[str]:
        """Names of the kinds that are given."""
        values = (self.json_, self.regex, self.choice, self.grammar, self.json_object or None)
        return [name for name, value in zip(KINDS, values, strict=True) if value is not None]
