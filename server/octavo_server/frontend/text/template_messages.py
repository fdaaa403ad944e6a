"""Messages as a chat template takes them, and the last of them left open: the rules of transformers."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from octavo_server.frontend.text.template_language import Content

# Names that templates read a message's reasoning by; the first one is the usual.
REASONING_FIELDS: Final = ("reasoning_content", "thinking", "reasoning")
# What a call's arguments are to a template that takes nothing but mappings, where they are none.
INVALID: Final = "INVALID_ARGUMENTS"


class CannotContinue(Exception):
    """The last message cannot be left open; the message says why."""


def for_template(
    messages: Sequence[Mapping[str, Any]], content: Content, *, text_arguments: bool
) -> list[dict[str, Any]]:
    """Null fields left out, reasoning under every name it is read by, content in the form that the template takes.

    `text_arguments`: whether it takes arguments of calls that are no mapping, but the text that a model wrote.
    """
    return [_for_template(message, content, text_arguments) for message in messages]


def _for_template(message: Mapping[str, Any], content: Content, text_arguments: bool) -> dict[str, Any]:
    plain = {name: value for name, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in REASONING_FIELDS if name in plain), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    if "content" in plain:
        plain["content"] = _content(plain["content"], content)
    if "tool_calls" in plain and not text_arguments:
        plain["tool_calls"] = [_with_mapping(call) for call in plain["tool_calls"]]
    return plain


def _with_mapping(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function", {})
    text = function.get("arguments")
    return {**call, "function": {**function, "arguments": {INVALID: text}}} if isinstance(text, str) else call


def _content(value: Any, form: Content) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}] if form == "parts" else value
    if form == "parts" or not isinstance(value, list):
        return value
    texts = [part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if len(texts) != len(value) or (form == "either" and len(texts) != 1):
        return value
    return "\n".join(texts)


def leave_open(messages: list[dict[str, Any]], mark: str) -> str:
    """Put a mark behind the last message's text, in place; the text is returned.

    Raises:
        CannotContinue: it has none.
    """
    last = messages[-1] if messages else {}
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + mark
        return content
    for part in reversed(content if isinstance(content, list) else []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text = str(part["text"])
            part["text"] = text + mark
            return text
    raise CannotContinue("the last message has no content that could be continued")


def cut_off(rendered: str, mark: str, text: str) -> str:
    """The prompt up to the mark, which ends with a space: a template that strips the text has stripped that, too.

    Raises:
        CannotContinue: the template does not show the whole of the text.
    """
    stem = mark.strip()
    if text.strip() not in rendered or stem not in rendered:
        raise CannotContinue("the model's chat template leaves out a part of the last message")
    at = rendered.rindex(stem)
    before = rendered[:at]
    return before if rendered.startswith(mark, at) else before.rstrip()
