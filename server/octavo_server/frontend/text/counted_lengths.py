"""How many characters of strings an answer's lexer has to count, each of which is a state of it, or some.

Its table of states is shared by all answers of a schema and has a bound (`grammar_compiler.LIMITS`): what fits it as a
whole never comes to that bound, however many answers there are.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

MAX_COUNTED: Final = 8_192  # characters, each of up to 9 states where texts are of all kinds of characters
_PIECES: Final = re.compile(
    r"(?P<repeat>\{(?P<least>\d+)(?P<more>,(?P<most>\d*))?\})|(?P<open>\()|(?P<close>\))|(?P<other>[*+?|^$])"
    r"|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.",
    re.DOTALL,
)


class CountedLengths:
    """Over the schemas within one. Strings of the same bounds share what counts them."""

    def __init__(self) -> None:
        self._found: set[tuple[int, str]] = set()

    def add(self, schema: Mapping[str, Any]) -> None:
        """Count this schema alone."""
        bounds = [schema.get(name) for name in ("minLength", "maxLength")]
        pattern = schema.get("pattern")
        shown = pattern if isinstance(pattern, str) else ""
        counted = repeated(shown)
        counted += max((int(each) for each in bounds if type(each) in (int, float) and each < 2**63), default=0)  # type: ignore[operator, arg-type]
        if counted:
            self._found.add((counted, shown))
        named = schema.get("patternProperties")
        for name in named if isinstance(named, dict) else ():
            if counted := repeated(name):
                self._found.add((counted, name))

    @property
    def total(self) -> int:
        """Of all that were added."""
        return sum(counted for counted, _ in self._found)


def repeated(pattern: str) -> int:
    """Characters that a pattern counts by {n,m}, those within each other multiplied; 0 where it has none."""
    sums, last, has_counts = [0], 0, False
    for piece in _PIECES.finditer(pattern):
        if piece["repeat"]:
            times = int(piece["most"] or piece["least"])
            has_counts = True
            sums[-1] += last * (times - 1)
            last *= times
        elif piece["open"]:
            sums.append(0)
        elif piece["close"]:
            last = sums.pop() if len(sums) > 1 else 0
            sums[-1] += last
        elif not piece["other"]:
            last = 1
            sums[-1] += 1
    return sum(sums) if has_counts else 0
