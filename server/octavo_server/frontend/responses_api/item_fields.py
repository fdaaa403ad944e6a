"""The items of a response's input as clients may send them, every field bounded.

Programs send back the items that they got, from here or elsewhere: what those carry and says nothing to a model (`id`,
`status`, `annotations`, `parsed`) is accepted and of no effect. Kinds of items and parts that are not here are refused
by name.
"""

from typing import Annotated, Any, Final, Literal, Never

from pydantic import Discriminator, Field, Tag

from octavo_server.frontend.fields import Body, Only, ShortText, kind
from octavo_server.frontend.generation_fields import Text
from octavo_server.frontend.message_fields import MAX_PARTS, Ignored, PromptCacheBreakpoint
from octavo_server.frontend.responses_api.kinds import OTHER, OtherKinds, by_type, tag

MAX_ITEMS: Final = 16_384
Status = Literal["in_progress", "completed", "incomplete"]
_MEDIA: Final = "this model takes text only"
_DIRECT: Final = "calls come from the model alone"


class InputText(Body):
    """A piece of text that the model is given."""

    type: Literal["input_text"]
    text: Text
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


class OutputText(Body):
    """A piece of an earlier answer."""

    type: Literal["output_text"]
    text: Text
    annotations: Ignored = None
    logprobs: Ignored = None
    parsed: Ignored = None


class OutputRefusal(Body):
    """A piece of an earlier answer that refused."""

    type: Literal["refusal"]
    refusal: Text


class ReasoningText(Body):
    """A piece of earlier thoughts."""

    type: Literal["reasoning_text"]
    text: Text


class SummaryText(Body):
    """A piece of what earlier thoughts were about."""

    type: Literal["summary_text"]
    text: Text


def _why(found: str) -> str:
    if found in ("input_image", "input_file", "input_audio"):
        return _MEDIA
    if found == "item_reference":
        return "send the item itself, or previous_response_id"
    return "nothing here makes or reads them"


InputPart = Annotated[
    Annotated[InputText, tag("input_text")]
    | Annotated[OutputText, tag("output_text")]
    | Annotated[OutputRefusal, tag("refusal")]
    | Annotated[Never, OtherKinds("parts", _why), tag(OTHER)],
    by_type(("input_text", "output_text", "refusal")),
]
_TEXT_OR_PARTS: Final = Discriminator(
    kind(strings="text", lists=lambda _: "parts"),
    custom_error_type="content_type",
    custom_error_message="Input should be a string or a list of text parts",
)
MessageContent = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[InputPart], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS), Tag("parts")],
    _TEXT_OR_PARTS,
]
ResultPart = Annotated[
    Annotated[InputText, tag("input_text")] | Annotated[Never, OtherKinds("parts", _why), tag(OTHER)],
    by_type(("input_text",)),
]
Result = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[ResultPart], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS), Tag("parts")],
    _TEXT_OR_PARTS,
]


class MessageItem(Body):
    """What somebody said, an earlier answer included."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: MessageContent
    id: ShortText | None = None
    status: Status | None = None
    phase: Annotated[Literal["commentary", "final_answer"] | None, Field(description="of no effect")] = None


class FunctionCallItem(Body):
    """A call in an earlier answer; `name` and `arguments` are what the model wrote, right or not."""

    type: Literal["function_call"]
    call_id: ShortText
    name: Text
    arguments: Text
    id: ShortText | None = None
    status: Status | None = None
    parsed_arguments: Ignored = None
    namespace: Annotated[Any, Only(why="functions have one name")] = None
    caller: Annotated[Any, Only({"type": "direct"}, why=_DIRECT)] = None
    async_: Annotated[Any, Only(False, why="an answer waits for its calls"), Field(alias="async")] = None
    spelt_async: Annotated[Any, Only(False, why="it is spelt async"), Field(alias="async_")] = None  # as dumped


class FunctionResultItem(Body):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: ShortText
    output: Result
    id: ShortText | None = None
    status: Status | None = None
    name: ShortText | None = None
    namespace: Annotated[Any, Only(why="functions have one name")] = None
    caller: Annotated[Any, Only({"type": "direct"}, why=_DIRECT)] = None


class ReasoningItem(Body):
    """Thoughts of an earlier answer. Those that another server has encrypted cannot be read, and are left out."""

    type: Literal["reasoning"]
    id: ShortText | None = None
    summary: Annotated[list[SummaryText], Field(fail_fast=True, max_length=MAX_PARTS)] | None = None
    content: Annotated[list[ReasoningText], Field(fail_fast=True, max_length=MAX_PARTS)] | None = None
    encrypted_content: Annotated[Text | None, Field(description="of no effect")] = None
    status: Status | None = None


Item = Annotated[
    Annotated[MessageItem, tag("message")]
    | Annotated[FunctionCallItem, tag("function_call")]
    | Annotated[FunctionResultItem, tag("function_call_output")]
    | Annotated[ReasoningItem, tag("reasoning")]
    | Annotated[Never, OtherKinds("items", _why), tag(OTHER)],
    by_type(("message", "function_call", "function_call_output", "reasoning"), default="message"),
]
Items = Annotated[list[Item], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS)]
