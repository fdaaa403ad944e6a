"""Tool calls written in JSON: the formats of Hermes and Qwen, of Llama 3, and of Mistral."""

import re
from typing import Final

from octavo_server.frontend.text.output_parsers.call_object import CallObject
from octavo_server.frontend.text.output_parsers.json_text import json_value
from octavo_server.frontend.text.output_parsers.message import Message
from octavo_server.frontend.text.output_parsers.parsed import Tool
from octavo_server.frontend.text.output_parsers.source import Markers, Read, Source

TOOL_CALL: Final = ("<tool_call>", "</tool_call>")
PYTHON_TAG: Final = "<|python_tag|>"
TOOL_CALLS, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_CLOSERS: Final = re.compile(r"[ \t\r\n}]*")
_SEPARATORS: Final = re.compile(r"[ \t\r\n;]*")
_COMMAS: Final = re.compile(r"[ \t\r\n,]*")
_NAME: Final = re.compile(r"[^ \t\r\n\[\]{}\"]*")
_ID: Final = re.compile(r"[\w-]*", re.ASCII)
_OPEN_CALL, _PYTHON_TAG, _TOOL_CALLS = Markers(TOOL_CALL[0]), Markers(PYTHON_TAG), Markers(TOOL_CALLS)

Tools = dict[str, Tool]


def read_hermes(source: Source, message: Message, tools: Tools) -> Read[None]:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as often as it comes, among text."""
    while marker := (yield from source.until(_OPEN_CALL, message.content)):
        source.keep()
        source.take(source.at + len(marker))
        yield from source.space()
        begun = False
        while (yield from CallObject(source, message).read()):
            begun = True
            source.keep()
            yield from source.run(_CLOSERS)  # one brace too many is a common slip, as is one too few
            if (yield from source.starts(TOOL_CALL[1])):
                source.kept()
                break
        else:
            _give_back(source, message, begun, "}")


def read_llama3_json(source: Source, message: Message, tools: Tools) -> Read[None]:
    """`{"name": …, "parameters": {…}}`, several with `;` between them.

    A call stands at the beginning or behind `<|python_tag|>`, and only if it names a tool: the answer may be JSON.
    """
    source.keep()
    yield from source.space()
    while True:
        begun = False
        while (yield from CallObject(source, message, tools).read()):
            begun = True
            source.keep()
            yield from source.run(_SEPARATORS)
        _give_back(source, message, begun, ";")
        marker = yield from source.until(_PYTHON_TAG, message.content)
        if not marker:
            return
        source.keep()
        source.take(source.at + len(marker))
        yield from source.space()


def read_mistral(source: Source, message: Message, tools: Tools) -> Read[None]:
    """`[TOOL_CALLS]` before a JSON list of calls, or before each `name[ARGS]{…}`, which may have a `[CALL_ID]`."""
    while marker := (yield from source.until(_TOOL_CALLS, message.content)):
        source.keep()
        source.take(source.at + len(marker))
        yield from source.space()
        first = yield from source.peek()
        if first == "[":
            begun = yield from _mistral_list(source, message)
        elif first == "{":
            begun = yield from CallObject(source, message).read()
        else:
            begun = yield from _mistral_call(source, message)
        if not begun:
            message.content(source.kept())


def _mistral_list(source: Source, message: Message) -> Read[bool]:
    source.take(source.at + 1)
    yield from source.space()
    begun = False
    while (yield from CallObject(source, message).read()):
        begun = True
        yield from source.run(_COMMAS)
        if (yield from source.starts("]")):
            break
        source.keep()
    else:
        if begun:
            message.content(source.kept())
    return begun


def _mistral_call(source: Source, message: Message) -> Read[bool]:
    name = yield from source.run(_NAME)
    if not name:
        return False
    if (yield from source.starts(CALL_ID)):
        yield from source.run(_ID)
    yield from source.starts(ARGS)
    yield from source.space()
    if (yield from source.peek()) != "{":
        return False
    source.kept()
    message.call(name)
    yield from json_value(source, message.arguments)
    return True


def _give_back(source: Source, message: Message, begun: bool, punctuation: str) -> None:
    """What was kept is no call. Punctuation alone, behind a call, belonged to it."""
    kept = source.kept()
    if begun and not kept.strip(f" \t\r\n{punctuation}"):
        kept = kept.replace(punctuation, "")
    message.content(kept)
