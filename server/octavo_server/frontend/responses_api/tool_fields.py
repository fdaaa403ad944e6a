"""Tools and the choice among them, in the flat form that responses have."""

from typing import Annotated, Any, Final, Literal, Never

from pydantic import Field

from octavo_server.frontend.fields import Body, Only
from octavo_server.frontend.responses_api.hints import FLAT
from octavo_server.frontend.responses_api.kinds import OTHER, OtherKinds, by_type, tag
from octavo_server.frontend.structured_fields import JsonSchema
from octavo_server.frontend.tool_fields import MAX_TOOLS, FunctionName

_OF_CLIENTS: Final = frozenset({"custom", "namespace", "apply_patch", "local_shell", "shell", "tool_search"})


def _why_not(kind: str) -> str:
    """Of what OpenAI's clients run, and of what OpenAI itself does."""
    if kind == "custom":
        return "a call's arguments are JSON: give it a function with a string among its parameters"
    if kind == "namespace":
        return "functions have one name: give each of them as a function"
    return "give it as a function" if kind in _OF_CLIENTS else "the server runs none: give it functions"


class FunctionTool(Body):
    """A function of the client's. `strict`: the arguments are made to keep to the schema; left out: if they can be."""

    hints = FLAT

    type: Literal["function"]
    name: FunctionName
    description: Annotated[str, Field(max_length=65_536)] | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None
    output_schema: Annotated[Any, Field(description="of no effect")] = None
    defer_loading: Annotated[Any, Only(False, why="all tools are shown to the model")] = None
    allowed_callers: Annotated[Any, Only(["direct"], why="calls come from the model alone")] = None
    async_: Annotated[Any, Only(False, why="an answer waits for its calls"), Field(alias="async")] = None


Tool = Annotated[
    Annotated[FunctionTool, tag("function")] | Annotated[Never, OtherKinds("tools", _why_not), tag(OTHER)],
    by_type(("function",)),
]


class NamedFunction(Body):
    """A function by its name."""

    hints = FLAT

    type: Literal["function"]
    name: FunctionName


class AllowedTools(Body):
    """Some of the tools, of which one may be called, or must."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Field(fail_fast=True, min_length=1, max_length=MAX_TOOLS)]


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], tag("word")]
    | Annotated[NamedFunction, tag("function")]
    | Annotated[AllowedTools, tag("allowed_tools")]
    | Annotated[Never, OtherKinds("tools", _why_not), tag(OTHER)],
    by_type(("function", "allowed_tools"), word="word"),
]
Tools = Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)]
