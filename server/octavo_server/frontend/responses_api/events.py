"""The events of a streamed response, as OpenAI's reference has them: each with a number, and its type as its name."""

from collections.abc import Iterator
from itertools import count

from msgspec import Struct

from octavo_server.frontend.responses import TokenLogprob, encode
from octavo_server.frontend.responses_api.objects import OutputItem, Part, Response


class Lifecycle(Struct, tag_field="type"):
    """Shows the whole response."""

    sequence_number: int
    response: Response


class Created(Lifecycle, tag="response.created"):
    """It begins."""


class InProgress(Lifecycle, tag="response.in_progress"):
    """It is worked on."""


class Completed(Lifecycle, tag="response.completed"):
    """It has ended by itself."""


class Incomplete(Lifecycle, tag="response.incomplete"):
    """It has been cut off."""


class Failed(Lifecycle, tag="response.failed"):
    """The server could not finish it."""


class ItemAdded(Struct, tag_field="type", tag="response.output_item.added"):
    """An item begins."""

    sequence_number: int
    output_index: int
    item: OutputItem


class ItemDone(Struct, tag_field="type", tag="response.output_item.done"):
    """An item has ended."""

    sequence_number: int
    output_index: int
    item: OutputItem


class PartAdded(Struct, tag_field="type", tag="response.content_part.added"):
    """A piece of an item's content begins."""

    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: Part


class PartDone(Struct, tag_field="type", tag="response.content_part.done"):
    """A piece of an item's content has ended."""

    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: Part


class TextDelta(Struct, tag_field="type", tag="response.output_text.delta"):
    """A text goes on."""

    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob]


class TextDone(Struct, tag_field="type", tag="response.output_text.done"):
    """A text has ended."""

    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob]


class ReasoningDelta(Struct, tag_field="type", tag="response.reasoning_text.delta"):
    """Thoughts go on."""

    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str


class ReasoningDone(Struct, tag_field="type", tag="response.reasoning_text.done"):
    """Thoughts have ended."""

    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str


class ArgumentsDelta(Struct, tag_field="type", tag="response.function_call_arguments.delta"):
    """A call's arguments go on."""

    sequence_number: int
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(Struct, tag_field="type", tag="response.function_call_arguments.done"):
    """A call's arguments have ended."""

    sequence_number: int
    item_id: str
    output_index: int
    name: str
    arguments: str


Event = (
    Created
    | InProgress
    | Completed
    | Incomplete
    | Failed
    | ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
)


class Numbers:
    """Counts the events of one stream from 0."""

    def __init__(self) -> None:
        self._numbers: Iterator[int] = count()

    def __call__(self) -> int:
        """The next one's."""
        return next(self._numbers)


def frame(event: Struct) -> bytes:
    """An event with its name, as server-sent events have it."""
    name = str(event.__struct_config__.tag)
    return b"event: " + name.encode() + b"\ndata: " + encode(event) + b"\n\n"
