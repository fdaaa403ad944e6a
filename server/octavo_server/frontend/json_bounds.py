"""How much JSON may hold, counted before it is parsed: a parser holds the interpreter from end to end.

A million numbers take it some 50 ms, and a hundred thousand keys as long; meanwhile no stream goes on.
"""

from http import HTTPStatus
from typing import Final

from octavo_server.errors import RequestError

MAX_COMMAS: Final = 2**20  # a list of a million token ids
MAX_NESTED: Final = 2**17  # objects, arrays and keys
_PIECE: Final = 128 * 1024  # bytes that are counted in a row; between them others have their turn


def check_bounds(raw: bytes, param: str | None = None) -> None:
    """Refuse JSON of too many values; what stands in strings does not count. `param`: the field that holds it.

    Raises:
        RequestError: it holds too many (413).
    """
    if len(raw) <= MAX_NESTED:
        return
    commas = nested = begin = 0
    in_string = False
    while begin < len(raw):
        piece = raw[begin : begin + _PIECE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # an escape goes on behind it
            piece = raw[begin : begin + _PIECE + 1]
        begin += len(piece)
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(parts[in_string::2])
        in_string ^= len(parts) % 2 == 0
        commas += outside.count(b",")
        nested += outside.count(b"{") + outside.count(b"[") + outside.count(b":")
        if commas > MAX_COMMAS or nested > MAX_NESTED:
            raise RequestError(
                f"{param or 'the body'}: it holds too many values: JSON may have {MAX_COMMAS} commas and {MAX_NESTED} "
                "keys, objects and arrays here",
                param=param,
                code="too_many_values",
                status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
