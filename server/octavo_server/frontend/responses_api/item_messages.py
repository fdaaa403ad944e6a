"""The items of a conversation as the messages of a chat."""

from collections.abc import Iterable, Sequence
from typing import Any

from octavo_server.errors import RequestError
from octavo_server.frontend.chat_prompt import call_arguments
from octavo_server.frontend.message_fields import (
    MAX_CALLS,
    AssistantMessage,
    FunctionCall,
    Message,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from octavo_server.frontend.responses_api.item_fields import (
    FunctionCallItem,
    FunctionResultItem,
    InputText,
    Item,
    MessageItem,
    OutputRefusal,
    OutputText,
    ReasoningItem,
)


def messages(instructions: str | None, items: Iterable[Item]) -> list[Message]:
    """The messages of a conversation. Thoughts, words and calls of one answer are one message again.

    A call that was cut off is left out: nobody can have answered it.

    Raises:
        RequestError: there is nothing in them.
    """
    found: list[Message] = []
    if instructions is not None:
        found.append(SystemMessage(role="system", content=instructions))
    answer = _Answer(found)
    for item in items:
        match item:
            case MessageItem(role="assistant"):
                answer.says(item)
            case MessageItem():
                answer.ends()
                found.append(_given(item))
            case FunctionCallItem():
                answer.calls(item)
            case FunctionResultItem():
                answer.ends()
                found.append(_result(item))
            case ReasoningItem():
                answer.thinks(item)
    answer.ends()
    if not found:
        raise RequestError("input: there is nothing in it that a model could be shown", param="input")
    return found


class _Answer:
    """An assistant's message while its items come."""

    def __init__(self, found: list[Message]) -> None:
        """`found`: where it is put when it ends."""
        self._found = found
        self._fields: dict[str, Any] = {}

    def thinks(self, item: ReasoningItem) -> None:
        """Thoughts begin a message."""
        self.ends()
        parts: Sequence[Any] = item.content or item.summary or ()
        if parts:
            self._fields["reasoning_content"] = "\n".join(part.text for part in parts)

    def says(self, item: MessageItem) -> None:
        """A text. A second one is of another message."""
        if "content" in self._fields or "tool_calls" in self._fields:
            self.ends()
        self._fields["content"] = _answered(item)

    def calls(self, item: FunctionCallItem) -> None:
        """A call, of the same message as those before it."""
        if item.status == "incomplete" and isinstance(call_arguments(item.arguments), str):
            return
        calls = self._fields.setdefault("tool_calls", [])
        if len(calls) == MAX_CALLS:
            raise RequestError(f"input: one answer has more than {MAX_CALLS} calls", param="input")
        call = ToolCall(
            id=item.call_id, type="function", function=FunctionCall(name=item.name, arguments=item.arguments)
        )
        calls.append(call)

    def ends(self) -> None:
        """Another one speaks."""
        if self._fields:
            self._found.append(AssistantMessage(role="assistant", **self._fields))
            self._fields = {}


def _given(item: MessageItem) -> Message:
    content = item.content if isinstance(item.content, str) else [_text_part(part) for part in item.content]
    if item.role == "user":
        return UserMessage(role="user", content=content)
    return SystemMessage(role="developer" if item.role == "developer" else "system", content=content)


def _answered(item: MessageItem) -> str | list[TextPart | RefusalPart]:
    if isinstance(item.content, str):
        return item.content
    return [
        RefusalPart(type="refusal", refusal=part.refusal) if isinstance(part, OutputRefusal) else _text_part(part)
        for part in item.content
    ]


def _result(item: FunctionResultItem) -> ToolMessage:
    content = item.output if isinstance(item.output, str) else [_text_part(part) for part in item.output]
    return ToolMessage(role="tool", content=content, tool_call_id=item.call_id)


def _text_part(part: InputText | OutputText | OutputRefusal) -> TextPart:
    return TextPart(type="text", text=part.refusal if isinstance(part, OutputRefusal) else part.text)
