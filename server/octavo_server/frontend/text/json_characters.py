"""What a schema asks for and no answer can spell: llguidance would leave it out, and the answer not be valid.

JSON spells control characters by their numbers, `\\u0001`, which answers may not (see `json_schemas.ESCAPES`); and
llguidance's integers have 64 bits.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

# Without those of short escapes: \b \t \n \f \r. DEL counts among them for llguidance.
_CONTROL: Final = "\x00-\x07\x0b\x0e-\x1f\x7f"
_CONTROLS: Final = re.compile(f"[{_CONTROL}]")
# As patterns spell them, and what else stands in one: another escape, a set of characters, any character.
_PIECES: Final = re.compile(
    rf"(?P<control>[{_CONTROL}]|\\(?:[av]|(?:x|u00)(?:0[0-7bBeEfF]|1[0-9a-fA-F]|7[fF])|"
    r"[xuU]\{0*(?:[0-7bBeEfF]|1[0-9a-fA-F]|7[fF])\}))"
    r"|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.",
    re.DOTALL,
)
_LEAST, _MOST = -(2**63), 2**64 - 1


def unspellable(schema: Mapping[str, Any]) -> str:
    """Which keyword of this schema alone asks for it, and what it is; empty if none does."""
    for name in ("const", "enum"):
        for value in _values(schema.get(name)):
            if isinstance(value, str) and _CONTROLS.search(value):
                return f"{name}: a control character in a string cannot be answered"
            if isinstance(value, int) and not _LEAST <= value <= _MOST and not _is_float(value):
                return f"{name}: an integer of more than 64 bits that no double is equal to cannot be answered"
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and any(piece["control"] for piece in _PIECES.finditer(pattern)):
        return "pattern: a control character cannot be answered; in a set, as [^\\x00-\\x1f], it may stand"
    return ""


def _is_float(value: int) -> bool:
    try:
        return int(float(value)) == value
    except OverflowError:
        return False


def _values(value: Any) -> Iterator[Any]:
    """All strings and numbers in it, keys too."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            waiting += found.keys()
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found
        else:
            yield found
