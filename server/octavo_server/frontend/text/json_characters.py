"""What a schema asks for and no answer can spell: llguidance would leave it out, and the answer not be valid.

JSON spells control characters by their numbers, `\\u0001`, which answers may not (see `json_schemas.ESCAPES`); and
llguidance's numbers are doubles, of which it writes as many digits as tell one from the next.
"""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

# Without those of short escapes: \b \t \n \f \r. DEL counts among them for llguidance.
_CONTROL: Final = "\x00-\x07\x0b\x0e-\x1f\x7f"
_CONTROLS: Final = re.compile(f"[{_CONTROL}]")
_SPELT: Final = (  # as patterns spell them
    rf"(?:[{_CONTROL}]|\\(?:[av]|(?:x|u00)(?:0[0-7bBeEfF]|1[0-9a-fA-F]|7[fF])|"
    r"[xuU]\{0*(?:[0-7bBeEfF]|1[0-9a-fA-F]|7[fF])\}))"
)
# Alone or as all that a set holds, in which a range may go on to other characters; and what else stands in a pattern:
# another escape, a set, which may have no end (it is looked for once), any character.
_PIECES: Final = re.compile(rf"(?P<control>{_SPELT}|\[(?:{_SPELT})+\])|\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]?|.", re.DOTALL)
_EXACT: Final = 2**53  # up to which all integers are doubles


def unspellable(schema: Mapping[str, Any]) -> str:
    """Which keyword of this schema alone asks for it, and what it is; empty if none does."""
    for name in ("const", "enum"):
        for value in _values(schema.get(name)):
            if isinstance(value, str) and _CONTROLS.search(value):
                return f"{name}: a control character in a string cannot be answered"
            if isinstance(value, int) and abs(value) > _EXACT and not _is_written_out(value):
                return f"{name}: the integer {str(value)[:40]} is beyond 2^53 and cannot be answered exactly"
    named = schema.get("patternProperties")
    for keyword, patterns in (
        ("pattern", [schema.get("pattern")]),
        ("patternProperties", list(named) if isinstance(named, dict) else []),
    ):
        for pattern in patterns:
            if isinstance(pattern, str) and any(piece["control"] for piece in _PIECES.finditer(pattern)):
                return f"{keyword}: a control character cannot be answered; it may stand in a set, as [^\\x00-\\x1f]"
    return ""


def _is_written_out(value: int) -> bool:
    """Whether a double's digits, and zeros behind them, are this integer."""
    try:
        return Decimal(repr(float(value))) == value
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
