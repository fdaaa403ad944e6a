"""Python's literals, turned into JSON while they come: strings, numbers, True, False, None, lists and dicts."""

import json
import math
import re
from typing import Final

from octavo_server.frontend.text.output_parsers.source import Emit, Read, Source

_BRACKETS: Final = {"[": "]", "{": "}"}
_WORD: Final = re.compile(r"[-+.\w]*", re.ASCII)
_JSON_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_NUMBER: Final = re.compile(r"[-+]?\.?[0-9][-+.\w]{0,98}", re.ASCII)
_CONSTANTS: Final = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_PLAIN: Final = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "\n": ""} | {
    character: character for character in "\\'\""
}
_HEX_DIGITS: Final = {"x": 2, "u": 4, "U": 8}
_OCTAL: Final = "01234567"


def python_value(source: Source, emit: Emit) -> Read[bool]:
    """Pass on the literal that comes next, as JSON. Whether there is one, and whole.

    If not, `source` keeps what was read of it and not passed on. Nested literals are read without recursion.
    """
    closers: list[str] = []
    while True:
        opening = yield from source.peek()
        if opening and opening in _BRACKETS:
            emit(source.take(source.at + 1))
            closers.append(_BRACKETS[opening])
        elif not (yield from _scalar(source, emit)):
            return False
        if not (yield from _next_item(source, emit, closers, first=opening in _BRACKETS)):
            return False
        if not closers:
            return True


def _next_item(source: Source, emit: Emit, closers: list[str], *, first: bool) -> Read[bool]:
    """Close what ends here, and go to where the next value begins, if one is to come. False if none does."""
    while closers:
        source.keep()
        yield from source.space()
        comma = not first and (yield from source.starts(","))
        yield from source.space()
        if (yield from source.starts(closers[-1])):
            emit(closers.pop())
            first = False
            continue
        if not (first or comma):
            return False
        return (yield from _before_value(source, emit, "" if first else ", ", key=closers[-1] == "}"))
    source.kept()
    return True


def _before_value(source: Source, emit: Emit, separator: str, *, key: bool) -> Read[bool]:
    if key and (yield from source.peek()) not in ("'", '"'):
        return False
    source.kept()
    emit(separator)
    if not key:
        return True
    if not (yield from _string(source, emit)):
        return False
    source.keep()
    yield from source.space()
    if not (yield from source.starts(":")):
        return False
    yield from source.space()
    source.kept()
    emit(": ")
    return True


def _scalar(source: Source, emit: Emit) -> Read[bool]:
    if (yield from source.peek()) in ("'", '"'):
        return (yield from _string(source, emit))
    source.keep()
    text = _json_of((yield from source.run(_WORD)))
    if text is None:
        return False
    source.kept()
    emit(text)
    return True


def _json_of(word: str) -> str | None:
    """A constant or number as JSON; None if it is neither."""
    if word in _CONSTANTS or _JSON_NUMBER.fullmatch(word):
        return _CONSTANTS.get(word, word)
    if not _NUMBER.fullmatch(word):
        return None
    for kind in (lambda text: int(text, 0), float):
        try:
            number = kind(word)
        except ValueError:
            continue
        return json.dumps(number) if math.isfinite(number) else None
    return None


def _string(source: Source, emit: Emit) -> Read[bool]:
    quote = source.take(source.at + 1)
    plain = _PLAIN[quote]
    if (yield from source.starts(quote)):
        if not (yield from source.starts(quote)):
            emit('""')
            return True
        quote *= 3
    emit('"')
    while True:
        match = plain.match(source.text, source.at)
        if match is not None:
            emit(_escaped(source.take(match.end())))
        following = yield from source.peek()
        if following == "\\":
            source.take(source.at + 1)
            emit((yield from _escape(source)))
        elif following in _PLAIN and following:
            if (yield from source.starts(quote)):
                emit('"')
                return True
            emit(_escaped(source.take(source.at + 1)))
        elif not following:
            return False


def _escape(source: Source) -> Read[str]:
    """What stands behind a backslash, as JSON text. One that Python does not know stays as it is, backslash and all."""
    character = yield from source.peek()
    if not character:
        return ""
    if character in _OCTAL:
        digits = yield from _digits(source, 3, _OCTAL)
        return _escaped(chr(int(digits, 8)))
    source.take(source.at + 1)
    if character in _ESCAPES:
        return _escaped(_ESCAPES[character])
    wanted = _HEX_DIGITS.get(character, 0)
    digits = yield from _digits(source, wanted, "0123456789abcdefABCDEF")
    if not wanted or len(digits) < wanted or int(digits, 16) > 0x10FFFF:
        return _escaped(f"\\{character}{digits}")
    code = int(digits, 16)
    # JSON can spell half of a surrogate pair; UTF-8 cannot hold it.
    return f"\\u{code:04x}" if 0xD800 <= code < 0xE000 else _escaped(chr(code))


def _digits(source: Source, most: int, allowed: str) -> Read[str]:
    digits = ""
    while len(digits) < most:
        following = yield from source.peek()
        if not following or following not in allowed:
            break
        digits += source.take(source.at + 1)
    return digits


def _escaped(text: str) -> str:
    """Text as it stands in a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1] if text else ""
