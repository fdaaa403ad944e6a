"""The tools that a model may call, and which of them it should, as clients may send them."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from octavo_server.frontend.fields import Body, Only, field_error
from octavo_server.frontend.structured_fields import JsonSchema

MAX_TOOLS: Final = 128
FunctionName = Annotated[
    str, Field(pattern=r"^[a-zA-Z0-9_-]+$", min_length=1, max_length=64, description="letters, digits, _ and -")
]


def check_tool_names(names: Sequence[str], chosen: Sequence[str], *, needed: bool) -> None:
    """Of a request's tools. chosen: those that `tool_choice` names. needed: whether it asks for any.

    Raises:
        PydanticCustomError: a name stands twice; there are no tools though they are needed; one is chosen that is none.
    """
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise field_error("tools", f"has two functions of the name {double}")
    if needed and not names:
        raise field_error("tool_choice", "is only allowed together with tools")
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise field_error("tool_choice", f"names a function that is not among the tools: {unknown[0]}")


class FunctionDefinition(Body):
    """A function. `parameters` is the JSON schema of its arguments, which are an object; left out: it has none.

    `strict`: the arguments are made to keep to the schema.
    """

    name: FunctionName
    description: Annotated[str, Field(max_length=65_536)] | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None

    @field_validator("parameters", mode="after")
    @classmethod
    def _arguments_are_an_object(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None and schema.get("type", "object") != "object":
            raise PydanticCustomError("parameters", "must describe an object: {form}", {"form": '"type": "object"'})
        return schema


def functions_alone(value: Any) -> Any:
    """A validator of the type of a tool, or of a call. Raises PydanticCustomError."""
    if isinstance(value, str) and value != "function":
        raise PydanticCustomError(
            "function_only",
            "Input should be 'function': arguments are JSON, so there are no other kinds of tools",
        )
    return value


_WITHIN: Final = 'it stands within function: {"type": "function", "function": {"name": …}}'


class FunctionTool(Body):
    """A tool that is a function of the client's."""

    hints = MappingProxyType(dict.fromkeys(FunctionDefinition.model_fields, _WITHIN))  # as /v1/responses has it

    type: Annotated[Literal["function"], BeforeValidator(functions_alone)] = "function"
    function: FunctionDefinition
    defer_loading: Annotated[Any, Only(False, why="all tools are shown to the model")] = None

    @property
    def length(self) -> int:
        """Characters that it takes to render it, about."""
        function = self.function
        return len(function.description or "") + len(msgspec.json.encode(function.parameters))


class NamedFunction(Body):
    """A function by its name."""

    name: FunctionName


class NamedTool(Body):
    """The one tool that must be called."""

    hints = MappingProxyType({"name": _WITHIN})

    type: Literal["function"]
    function: NamedFunction


class AllowedTool(Body):
    """A tool by its name; what else its definition says is not looked at."""

    hints = MappingProxyType({"name": _WITHIN})

    type: Literal["function"]
    function: FunctionDefinition


class AllowedTools(Body):
    """Some of the tools, of which one may be called, or must."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Field(fail_fast=True, min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(Body):
    """The tools are fewer for this request."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "word"
    kinds = {"function": "named", "allowed_tools": "allowed"}
    found = value.get("type") if isinstance(value, dict) else None
    return kinds.get(found) if isinstance(found, str) else None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")]
    | Annotated[NamedTool, Tag("named")]
    | Annotated[AllowedToolsChoice, Tag("allowed")],
    Discriminator(
        _choice_kind,
        custom_error_type="tool_choice_kind",
        custom_error_message=(
            'Input should be "none", "auto", "required", {"type": "function", "function": {"name": …}} or '
            '{"type": "allowed_tools", "allowed_tools": {"mode": …, "tools": […]}}'
        ),
    ),
]
Tools = Annotated[list[FunctionTool], Field(fail_fast=True, max_length=MAX_TOOLS)]
