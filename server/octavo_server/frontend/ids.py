"""Random names for requests and answers: 128 bits of the system's randomness each.

Drawn for many at a time: a draw lets other threads run first, which costs a request more than all else of its name.
"""

import os
from typing import Final

_BYTES: Final = 16
_AT_ONCE: Final = 256
_drawn: list[str] = []


def new_id() -> str:
    """32 hexadecimal digits, never the same. From any thread."""
    try:
        return _drawn.pop()
    except IndexError:
        drawn = os.urandom(_BYTES * _AT_ONCE).hex()
        first, *others = (drawn[at : at + 2 * _BYTES] for at in range(0, len(drawn), 2 * _BYTES))
        _drawn.extend(others)
        return first
