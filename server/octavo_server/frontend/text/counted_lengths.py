"""How many characters of strings an answer's lexer has to count, each of which is a state of it, or some.

Its table of states is shared by all answers of a schema and has a bound (`grammar_compiler.LIMITS`): what fits it as a
whole never comes to that bound, however many answers there are.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

MAX_COUNTED: Final = 8_192  # characters, each of up to 9 states where texts are of all kinds of characters
MAX_IN_PATTERNS: Final = 32_768  # characters: reading them takes some 0.1 s
_ENOUGH: Final = 10**9  # counted no further: patterns multiply
_PIECES: Final = re.compile(
    r"(?P<repeat>\{(?P<least>\d+)(?P<more>,(?P<most>\d*))?\})|(?P<open>\()|(?P<close>\))|(?P<other>[*+?|^$])"
    r"|\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]?|.",  # a set that nothing ends goes on to the end, and is looked for once
    re.DOTALL,
)


class CountedLengths:
    """Over the schemas within one. Strings of the same bounds share what counts them.

    `in_patterns`: how long its patterns are together, of which no more than MAX_IN_PATTERNS are read.
    """

    def __init__(self) -> None:
        self._found: set[tuple[int, str]] = set()
        self.in_patterns = 0

    def add(self, schema: Mapping[str, Any]) -> None:
        """Count this schema alone."""
        pattern = schema.get("pattern")
        shown = pattern if isinstance(pattern, str) else ""
        if counted := self._repeated(shown) + _most(schema.get("minLength"), schema.get("maxLength")):
            self._found.add((counted, shown))
        named = schema.get("patternProperties")
        for name in named if isinstance(named, dict) else ():
            if counted := self._repeated(name):
                self._found.add((counted, name))

    @property
    def total(self) -> int:
        """Of all that were added, 1,000,000,000 at most."""
        return min(sum(counted for counted, _ in self._found), _ENOUGH)

    def _repeated(self, pattern: str) -> int:
        self.in_patterns += len(pattern)
        return repeated(pattern) if self.in_patterns <= MAX_IN_PATTERNS else 0


def _most(*bounds: Any) -> int:
    """The larger bound; those that no string reaches bound nothing."""
    return max((int(each) for each in bounds if type(each) in (int, float) and 0 <= each < 2**63), default=0)


def repeated(pattern: str) -> int:
    """Characters that a pattern counts by {n,m}, those within each other multiplied; 0 where it has none.

    1,000,000,000 stands for all that is more.
    """
    sums, last, has_counts = [0], 0, False
    for piece in _PIECES.finditer(pattern):
        if piece["repeat"]:
            digits = (piece["most"] or piece["least"]).lstrip("0") or "0"
            times = int(digits) if len(digits) < 10 else _ENOUGH
            has_counts = True
            sums[-1] = min(sums[-1] + last * (times - 1), _ENOUGH)
            last = min(last * times, _ENOUGH)
        elif piece["open"]:
            sums.append(0)
        elif piece["close"]:
            last = sums.pop() if len(sums) > 1 else 0
            sums[-1] += last
        elif not piece["other"]:
            last = 1
            sums[-1] += 1
    return min(sum(sums), _ENOUGH) if has_counts else 0
