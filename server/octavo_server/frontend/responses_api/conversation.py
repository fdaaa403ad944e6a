"""The conversation that a response goes on with: what was stored before, and what its request adds."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from pydantic import TypeAdapter, ValidationError

from octavo_server.errors import RequestError
from octavo_server.frontend.limits import MAX_BODY_BYTES
from octavo_server.frontend.responses_api.fields import ResponsesRequest
from octavo_server.frontend.responses_api.item_fields import (
    MAX_ITEMS,
    FunctionCallItem,
    FunctionResultItem,
    Item,
    Items,
    MessageItem,
    OutputRefusal,
    ReasoningItem,
)
from octavo_server.frontend.responses_api.objects import Message, OutputItem
from octavo_server.frontend.responses_api.store import Turn
from octavo_server.frontend.text_threads import SHORT_TEXT

_ITEMS: Final[TypeAdapter[list[Item]]] = TypeAdapter(Items)
_FEW_ITEMS: Final = 64
_PREFIXES: Final[Mapping[str, str]] = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """`items`: all of it. `before`: the turn that it follows. `added`: what the request adds, as JSON to be kept."""

    items: list[Item]
    before: Turn | None
    added: bytes

    @classmethod
    def of(cls, request: ResponsesRequest, before: Turn | None) -> "Conversation":
        """What a request asks to be gone on with. Its work grows with the conversation.

        Raises:
            RequestError: it is too long, or an answer in it is none that may be sent back.
        """
        given = request.input
        added: list[Item] = [MessageItem(role="user", content=given)] if isinstance(given, str) else list(given)
        items = [*([] if before is None else _stored(before)), *added]
        if len(items) > MAX_ITEMS:
            raise RequestError(
                f"previous_response_id: the conversation has {len(items)} items; allowed are {MAX_ITEMS}",
                param="previous_response_id",
            )
        return cls(items, before, _kept(added) if request.is_stored else b"")

    def turn(self, output: Sequence[OutputItem]) -> Turn:
        """The turn that a response ends, with its output."""
        return Turn(self.before, self.added, msgspec.json.encode([_plain(item) for item in output]))


def is_short(given: str | list[Item]) -> bool:
    """Whether it is no work to go through it."""
    if isinstance(given, str):
        return len(given) <= SHORT_TEXT
    return len(given) <= _FEW_ITEMS and sum(map(_length, given)) <= SHORT_TEXT


def _length(item: Item) -> int:
    """Characters, about."""
    match item:
        case FunctionCallItem():
            return len(item.name) + len(item.arguments)
        case ReasoningItem():
            return sum(len(part.text) for part in (*(item.content or ()), *(item.summary or ())))
    texts = item.output if isinstance(item, FunctionResultItem) else item.content
    if isinstance(texts, str):
        return len(texts)
    return sum(len(part.refusal) if isinstance(part, OutputRefusal) else len(part.text) for part in texts)


def check_length(before: Turn) -> None:
    """Raises RequestError where what was stored is more than any request may bring."""
    if before.size > MAX_BODY_BYTES:
        raise RequestError(
            f"previous_response_id: the conversation has {before.size} bytes; allowed are {MAX_BODY_BYTES}",
            param="previous_response_id",
        )


def input_items(turn: Turn) -> list[dict[str, Any]]:
    """What the model was given for the response that ended a turn, the oldest first: earlier answers, too."""
    found: list[dict[str, Any]] = []
    for each in turn.chain():
        found += msgspec.json.decode(each.input)
        if each is not turn:
            found += msgspec.json.decode(each.output)
    return found


def _stored(turn: Turn) -> list[Item]:
    lists = [items for each in turn.chain() for items in (each.input, each.output)]
    try:
        return [item for items in lists if items != b"[]" for item in _ITEMS.validate_json(items)]
    except ValidationError as error:
        where = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
        raise RequestError(
            f"previous_response_id: what was kept cannot be gone on with ({where}); send its items as input",
            param="previous_response_id",
        ) from error


def _kept(items: Sequence[Item]) -> bytes:
    """As a list of input items shows them: each with an id, content in parts."""
    name = secrets.token_hex(16)
    return msgspec.json.encode([_shown(item, f"{name}_{at}") for at, item in enumerate(items)])


def _shown(item: Item, name: str) -> dict[str, Any]:
    plain = item.model_dump(exclude_none=True, by_alias=True)
    plain = {"id": f"{_PREFIXES[item.type]}_{name}", "type": item.type, **plain}
    if isinstance(item, MessageItem) and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        part: dict[str, Any] = {"type": kind, "text": item.content}
        plain["content"] = [part | {"annotations": []} if kind == "output_text" else part]
    return plain


def _plain(item: OutputItem) -> OutputItem:
    """Without log-probabilities, which say nothing to a model."""
    if not isinstance(item, Message):
        return item
    content = [msgspec.structs.replace(part, logprobs=[]) for part in item.content]
    return msgspec.structs.replace(item, content=content)
