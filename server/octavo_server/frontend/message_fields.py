"""The messages of a chat as clients may send them, every field bounded.

Clients send back what they got, from here or elsewhere: fields that answers carry are accepted, and those that say
nothing to the model (`annotations`, `parsed`, the `index` of a call, what litellm adds) are of no effect.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from octavo_server.frontend.fields import Body, Only, ShortText, kind
from octavo_server.frontend.generation_fields import Text
from octavo_server.frontend.tool_fields import functions_alone

MAX_MESSAGES: Final = 16_384
MAX_PARTS: Final = 1024
MAX_CALLS: Final = 256
Ignored = Annotated[Any, BeforeValidator(lambda _: None), Field(description="of no effect")]


def _text_only(value: Any) -> Any:
    if isinstance(value, str) and value != "text":
        raise PydanticCustomError(
            "text_only",
            "parts of this kind are not supported: this model takes text only, as {form}",
            {"form": '{"type": "text", "text": …}'},
        )
    return value


class PromptCacheBreakpoint(Body):
    """OpenAI's hint where a prefix ends that will come again. All prefixes are cached here."""

    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class TextPart(Body):
    """A piece of a message. Other kinds than text are refused by name."""

    type: Annotated[Literal["text"], BeforeValidator(_text_only)]
    text: Text
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None
    cache_control: Ignored = None  # the same hint as clients of several vendors' give it


class RefusalPart(Body):
    """A piece of an earlier answer that refused."""

    type: Literal["refusal"]
    refusal: Text


_content_kind: Final = Discriminator(
    kind(strings="text", lists=lambda _: "parts"),
    custom_error_type="content_type",
    custom_error_message="Input should be a string or a list of text parts",
)
Content = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[TextPart], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS), Tag("parts")],
    _content_kind,
]


def _part_kind(part: Any) -> str:
    """Of what a client sent, or of a part that /v1/responses has made already."""
    told = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return "refusal" if told == "refusal" else "text"


AnswerPart = Annotated[
    Annotated[TextPart, Tag("text")] | Annotated[RefusalPart, Tag("refusal")],
    Discriminator(_part_kind),
]
AnswerContent = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[AnswerPart], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS), Tag("parts")],
    _content_kind,
]


class FunctionCall(Body):
    """The function that an earlier answer called; `name` and `arguments` are what the model wrote, right or not."""

    name: Text
    arguments: Text
    parsed_arguments: Ignored = None
    provider_specific_fields: Ignored = None


class ToolCall(Body):
    """A tool call in an earlier answer."""

    id: ShortText
    type: Annotated[Literal["function"], BeforeValidator(functions_alone)] = "function"
    function: FunctionCall
    index: Ignored = None
    provider_specific_fields: Ignored = None


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
    """An earlier answer. `reasoning` and `reasoning_content` are two names for its thoughts."""

    role: Literal["assistant"]
    content: AnswerContent | None = None
    name: ShortText | None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=MAX_CALLS)] | None = None
    refusal: Text | None = None
    annotations: Ignored = None
    parsed: Ignored = None
    provider_specific_fields: Ignored = None
    thinking_blocks: Ignored = None
    images: Ignored = None
    audio: Annotated[Any, Only(why="this model takes text only")] = None
    function_call: Annotated[Any, Only(why="it is the older name of tool_calls")] = None


class ToolMessage(Body):
    """What a tool returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: ShortText
    name: ShortText | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
