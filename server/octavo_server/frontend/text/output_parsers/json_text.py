"""JSON that comes in pieces, passed on as it is: where it ends is all that is found out."""

import json
import re
from typing import Final

from octavo_server.frontend.text.output_parsers.source import Emit, Read, Source

_MARKS: Final = re.compile(r'["\\{}\[\]]')
_WORD: Final = re.compile(r"[-+.\w]*", re.ASCII)


class JsonEnd:
    """Finds the end of an object, an array or a string, fed from its first character on.

    Strings, escapes and the number of open brackets are all that it looks at: what is broken otherwise is passed on,
    and ends where it would if it were not.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._skip = -1  # position of a character that is escaped

    def find(self, text: str, at: int) -> int:
        """Position behind the value's last character; -1 if it is not in this text, all of which belongs to it."""
        for hit in _MARKS.finditer(text, at):
            mark, position = hit[0], hit.start()
            if self._in_string:
                if position == self._skip:
                    continue
                if mark == "\\":
                    self._skip = position + 1
                    continue
                self._in_string = mark != '"'
            elif mark == '"':
                self._in_string = True
            elif mark != "\\":
                self._depth += 1 if mark in "{[" else -1
            if self._depth <= 0 and not self._in_string:
                return hit.end()
        self._skip -= len(text)  # the next text begins behind this one
        return -1


def json_value(source: Source, emit: Emit) -> Read[bool]:
    """Pass on the value that comes next. Whether one came, whole or cut off by the end."""
    first = yield from source.peek()
    if not first or first not in '{["':
        word = yield from source.run(_WORD)
        emit(word)
        return bool(word)
    end = JsonEnd()
    while True:
        position = end.find(source.text, source.at)
        emit(source.take(len(source.text) if position < 0 else position))
        if position >= 0 or not (yield from source.more()):
            return True


def json_string(source: Source) -> Read[str | None]:
    """The string that comes next, decoded; None if there is none, or one that is broken or no Unicode."""
    if (yield from source.peek()) != '"':
        return None
    pieces: list[str] = []
    yield from json_value(source, pieces.append)
    try:
        text = json.loads("".join(pieces), strict=False)
        str(text).encode()
    except ValueError:
        return None
    return text if isinstance(text, str) else None
