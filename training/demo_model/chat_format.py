"""The chat format in plain Python, for speed in the data workers. `chat_template.jinja` says the same; a test compares them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .episode import Message

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# seen in decoded text, because the server's tool parser reads them there
MARKUP_TOKENS = ("<tool_call>", "</tool_call>", "<tools>", "</tools>", "<tool_response>", "</tool_response>")
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
_CALL_FORM = '\n</tools>\nA call looks like this:\n<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>'


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def assistant_text(message: Message) -> str:
    """What the model writes for an assistant message: its text, then its tool calls."""
    parts = [message["content"]] if message["content"] else []
    for call in message.get("tool_calls", ()):
        function = call["function"]
        parts.append(
            f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {_dump(function["arguments"])}}}\n</tool_call>'
        )
    return "\n".join(parts)


def render(messages: list[Message], tools: list[dict[str, Any]] | None = None, generation_prompt: bool = False) -> str:
    """The whole conversation as the model sees it."""
    out: list[str] = []
    if tools:
        system = ""
        if messages and messages[0]["role"] == "system":
            system, messages = messages[0]["content"] + "\n\n", messages[1:]
        listed = "".join("\n" + _dump(tool) for tool in tools)
        out.append(f"<|im_start|>system\n{system}You can call these tools:\n<tools>{listed}{_CALL_FORM}<|im_end|>\n")
    for message in messages:
        if message["role"] == "tool":
            body = f"<tool_response>\n{message['content']}\n</tool_response>"
        else:
            body = assistant_text(message)
        out.append(f"<|im_start|>{message['role']}\n{body}<|im_end|>\n")
    if generation_prompt:
        out.append("<|im_start|>assistant\n")
    return "".join(out)
