"""Tool calls of Qwen3-Coder: each parameter in tags of its own, its value as bare text. Arguments become JSON.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

Whether a value is a string, is for the tool's schema to say. Where it may be something else, too, it is that if it can
be: `null` is no string where there may be none.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from octavo_server.frontend.text.output_parsers.json_formats import TOOL_CALL
from octavo_server.frontend.text.output_parsers.message import Message
from octavo_server.frontend.text.output_parsers.parsed import Tool
from octavo_server.frontend.text.output_parsers.schema_types import Checker, Looks, is_plain_string, properties, types
from octavo_server.frontend.text.output_parsers.source import Emit, Markers, Read, Source

FUNCTION, PARAMETER = ("<function=", "</function>"), ("<parameter=", "</parameter>")
_START: Final = Markers(TOOL_CALL[0], FUNCTION[0])
# A tag left out is a common slip: what can only come behind it stands for it.
_VALUE_END: Final = Markers(PARAMETER[1], PARAMETER[0], FUNCTION[1], TOOL_CALL[1])
_NAME: Final = re.compile(r"[^<>\r\n]*")
_PYTHON: Final = {"True": "true", "False": "false", "None": "null"}


def read_qwen3_coder(source: Source, message: Message, tools: dict[str, Tool]) -> Read[None]:
    """Calls, as often as they come, among text; `<tool_call>` may be missing."""
    while marker := (yield from source.until(_START, message.content)):
        source.keep()
        source.take(source.at + len(marker))
        yield from source.space()
        named = marker == FUNCTION[0]
        while named or (yield from source.starts(FUNCTION[0])):
            named = False
            call = _Call(source, message, tools)
            if not (yield from call.read()) or call.closed:
                break
            source.keep()
            yield from source.space()
            if (yield from source.starts(TOOL_CALL[1])):
                source.kept()
                break
        message.content(source.kept())


class _Call:
    """Reads a call behind `<function=`. `closed`: and the `</tool_call>` behind it."""

    def __init__(self, source: Source, message: Message, tools: Mapping[str, Tool]) -> None:
        self._source = source
        self._message = message
        self._tools = tools
        self._begun = False
        self.closed = False

    def read(self) -> Read[bool]:
        """Whether the call is whole; if not, `source` keeps what is just text."""
        source, message = self._source, self._message
        name = yield from source.run(_NAME)
        if not name or not (yield from source.starts(">")):
            return False
        yield from source.space()
        whole = yield from self._parameters(name)
        if whole:
            source.kept()
            if not self._begun:
                message.call(name)
            message.arguments("}" if self._begun else "{}")
        elif self._begun and source.ended and not (yield from source.peek()):
            message.arguments(source.kept())  # cut off: it is still the call's
        return whole

    def _parameters(self, name: str) -> Read[bool]:
        source = self._source
        parameters = self._tools[name].parameters if name in self._tools else {}
        while (yield from source.starts(PARAMETER[0])):
            key = yield from source.run(_NAME)
            if not key or not (yield from source.starts(">")):
                return False
            source.kept()
            if not self._begun:
                self._message.call(name)
            self._message.arguments(f"{', ' if self._begun else '{'}{json.dumps(key)}: ")
            self._begun = True
            if not (yield from self._value(properties(parameters).get(key), parameters)):
                return False
            source.keep()
            yield from source.space()
        if (yield from source.starts(FUNCTION[1])):
            return True
        self.closed = yield from source.starts(TOOL_CALL[1])
        return self.closed

    def _value(self, schema: Any, parameters: Mapping[str, Any]) -> Read[bool]:
        """Whether it is whole."""
        source, arguments = self._source, self._message.arguments
        if not (yield from source.starts("\r\n")):
            yield from source.starts("\n")
        if is_plain_string(schema, Looks(parameters)):
            text = _StringValue(arguments)
            end = yield from source.until(_VALUE_END, text.add)
            if end:
                text.end()
        else:
            pieces: list[str] = []
            end = yield from source.until(_VALUE_END, pieces.append)
            arguments(as_json("".join(pieces), schema, parameters) if end else "".join(pieces))
        if end == PARAMETER[1]:
            source.take(source.at + len(end))
        return bool(end)


class _StringValue:
    """A string as JSON, while it comes. One line break at its end is none of it."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._held = ""
        emit('"')

    def add(self, text: str) -> None:
        """More of it."""
        text = self._held + text
        self._held = next((end for end in ("\r\n", "\n", "\r") if text.endswith(end)), "")
        self._emit(_escaped(text.removesuffix(self._held)))

    def end(self) -> None:
        """It is whole."""
        self._emit(_escaped("\r" if self._held == "\r" else "") + '"')


def as_json(text: str, schema: Any, root: Mapping[str, Any]) -> str:
    """A value that need not be a string: as it stands if it is JSON or a constant of Python, else as a string.

    Where it may be one: a string, unless it is valid as something else; in quotes, if it is valid as such alone.
    """
    word = text.strip()
    word = _PYTHON.get(word, word)
    string = text.removesuffix("\n").removesuffix("\r")
    try:
        value = json.loads(word, parse_constant=_refuse)
        allows = Checker(Looks(root)).allows
        is_json = "string" not in types(schema, Looks(root)) or (
            allows(schema, value) and not (isinstance(value, str) and allows(schema, string))
        )
    except (ValueError, RecursionError):
        is_json = False
    return word if is_json else json.dumps(string, ensure_ascii=False)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1] if text else ""
