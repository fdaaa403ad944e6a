"""How much JSON may hold, counted before it is parsed: a parser holds the interpreter from end to end.

A million numbers take it some 50 ms, and a hundred thousand keys as long; meanwhile no stream goes on. So does one
number of many digits, whose cost grows with their square.
"""

import re
from http import HTTPStatus
from typing import Final

from octavo_server.errors import RequestError

MAX_COMMAS: Final = 2**20  # a list of a million token ids
MAX_NESTED: Final = 2**17  # objects, arrays and keys
MAX_DIGITS: Final = 128  # in a row; what a double holds takes 17
_PIECE: Final = 128 * 1024  # bytes that are counted in a row; between them others have their turn
_DIGITS: Final = re.compile(b"(?<![0-9])[0-9]{%d}" % (MAX_DIGITS + 1))  # looked for at a number's beginning alone


class NumberTooLong(RequestError):
    """It would take long to read: more with the square of its digits."""


class JSONBounds:
    """Counts over one or several texts, what stands in their strings aside. `param`: the field that holds them."""

    def __init__(self, param: str | None = None) -> None:
        self._param = param
        self._commas = self._nested = 0

    def add(self, raw: bytes) -> None:
        """Count a text too.

        Raises:
            RequestError: all together hold too many values (413).
            NumberTooLong: this one holds such a number (400).
        """
        begin, in_string = 0, False
        while begin < len(raw):
            piece = raw[begin : begin + _PIECE]
            if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # an escape goes on behind it
                piece = raw[begin : begin + _PIECE + 1]
            begin += len(piece)
            parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
            outside = b'"'.join(parts[in_string::2])
            in_string ^= len(parts) % 2 == 0
            self._count(outside)

    def _count(self, outside: bytes) -> None:
        self._commas += outside.count(b",")
        self._nested += outside.count(b"{") + outside.count(b"[") + outside.count(b":")
        if self._commas > MAX_COMMAS or self._nested > MAX_NESTED:
            raise RequestError(
                f"{self._param or 'the body'}: it holds too many values: JSON may have {MAX_COMMAS} commas and "
                f"{MAX_NESTED} keys, objects and arrays here",
                param=self._param,
                code="too_many_values",
                status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        if _DIGITS.search(outside):  # one that goes on in the next piece may be twice as long, which is no matter
            raise NumberTooLong(
                f"{self._param or 'the body'}: it holds a number of more than {MAX_DIGITS} digits",
                param=self._param,
                code="number_too_long",
            )
