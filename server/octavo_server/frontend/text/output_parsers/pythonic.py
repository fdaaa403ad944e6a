"""Tool calls written as Python: `[f(a=1, b="x"), g()]`, as Llama 3.2 and 4 do. Arguments become JSON."""

import json
import re
from typing import Final

from octavo_server.frontend.text.output_parsers.message import Message
from octavo_server.frontend.text.output_parsers.parsed import Tool
from octavo_server.frontend.text.output_parsers.python_literals import python_value
from octavo_server.frontend.text.output_parsers.source import Markers, Read, Source

PYTHON_START, PYTHON_END = "<|python_start|>", "<|python_end|>"
_START: Final = Markers(PYTHON_START)
_NAME: Final = re.compile(r"[\w.-]*")


def read_pythonic(source: Source, message: Message, tools: dict[str, Tool]) -> Read[None]:
    """A list of calls, at the beginning or behind `<|python_start|>`. A name that is no tool's makes it just text."""
    source.keep()
    yield from source.space()
    while True:
        if not (yield from _calls(source, message, tools)):
            message.content(source.kept())
        marker = yield from source.until(_START, message.content)
        if not marker:
            return
        source.keep()
        source.take(source.at + len(marker))
        yield from source.space()


def _calls(source: Source, message: Message, tools: dict[str, Tool]) -> Read[bool]:
    """Whether a list of calls came, to its end. If not, what `source` keeps is just text, as is all behind it."""
    if not (yield from source.starts("[")):
        return False
    while (yield from _call(source, message, tools)):
        source.keep()
        yield from source.space()
        comma = yield from source.starts(",")
        yield from source.space()
        if (yield from source.starts("]")):
            source.keep()
            yield from source.space()
            ends = yield from source.starts(PYTHON_END)
            space = source.kept()
            if not ends:
                message.content(space)
            return True
        if not comma:
            return False
        source.keep()
    return False


def _call(source: Source, message: Message, tools: dict[str, Tool]) -> Read[bool]:
    yield from source.space()
    name = yield from source.run(_NAME)
    if name not in tools or not (yield from source.starts("(")):
        return False
    yield from source.space()
    if (yield from source.starts(")")):
        message.call(name)
        message.arguments("{}")
        return True
    return (yield from _arguments(source, message, name))


def _arguments(source: Source, message: Message, name: str) -> Read[bool]:
    begun = False
    while (key := (yield from _key(source))) is not None:
        source.kept()
        if not begun:
            message.call(name)
        message.arguments(f"{', ' if begun else '{'}{json.dumps(key)}: ")
        begun = True
        if not (yield from python_value(source, message.arguments)):
            break
        source.keep()
        yield from source.space()
        comma = yield from source.starts(",")
        yield from source.space()
        if (yield from source.starts(")")):
            message.arguments("}")
            return True
        if not comma:
            break
    if begun and source.ended and not (yield from source.peek()):
        message.arguments(source.kept())  # cut off: it is still the call's
    return False


def _key(source: Source) -> Read[str | None]:
    """The name of the argument that comes next, and its `=`; None if there is no such thing."""
    key = yield from source.run(_NAME)
    yield from source.space()
    if not key.isidentifier() or not (yield from source.starts("=")):
        return None
    yield from source.space()
    return key
