"""The messages of a chat as clients may send them, every field bounded."""

from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, Tag

from octavo_server.frontend.fields import Body, NotYet, Only, ShortText, kind
from octavo_server.frontend.generation_fields import Text

MAX_MESSAGES: Final = 16_384


class TextPart(Body):
    """A piece of a message. Other kinds than text are refused by name."""

    type: Literal["text"]
    text: Text


Content = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[TextPart], Field(fail_fast=True, min_length=1, max_length=1024), Tag("parts")],
    Discriminator(
        kind(strings="text", lists=lambda _: "parts"),
        custom_error_type="content_type",
        custom_error_message="Input should be a string or a list of text parts",
    ),
]


class FunctionCall(Body):
    """The function that an earlier answer called; `arguments` is JSON in a string, as the model wrote it."""

    name: ShortText
    arguments: Text


class ToolCall(Body):
    """A tool call in an earlier answer."""

    id: ShortText
    type: Literal["function"] = "function"
    function: FunctionCall


class SystemMessage(Body):
    """Instructions, and their newer name."""

    role: Literal["system", "developer"]
    content: Content
    name: ShortText | None = None


class UserMessage(Body):
    """What the person says."""

    role: Literal["user"]
    content: Content
    name: ShortText | None = None


class AssistantMessage(Body):
    """An earlier answer. Clients send back what they got, so the null fields of an answer are accepted."""

    role: Literal["assistant"]
    content: Content | None = None
    name: ShortText | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=256)] | None = None
    refusal: NotYet = None
    annotations: Annotated[Any, Only([])] = None
    audio: NotYet = None
    function_call: NotYet = None


class ToolMessage(Body):
    """What a tool returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: ShortText
    name: ShortText | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
