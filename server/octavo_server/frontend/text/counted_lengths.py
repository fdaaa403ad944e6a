"""How many characters of strings an answer's lexer has to count, each of which is a state of it, or some.

Its table of states is shared by all answers of a schema and has a bound (`grammar_compiler.LIMITS`): what fits it as a
whole never comes to that bound, however many answers there are.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

MAX_COUNTED: Final = 8_192  # characters, each of up to 9 states where texts are of all kinds of characters
_REPEATED: Final = re.compile(r"\\.|\{(\d+)(?:,(\d*))?\}")


class CountedLengths:
    """Over the schemas within one. Strings of the same bounds share what counts them."""

    def __init__(self) -> None:
        self._found: set[tuple[int, str]] = set()

    def add(self, schema: Mapping[str, Any]) -> None:
        """Count this schema alone."""
        least, most, pattern = schema.get("minLength", 0), schema.get("maxLength", 0), schema.get("pattern", "")
        counted = max((each for each in (least, most) if type(each) is int), default=0)
        if isinstance(pattern, str) and pattern:
            counted += sum(int(found[2] or found[1]) for found in _REPEATED.finditer(pattern) if found[1])
        if counted:
            self._found.add((counted, str(pattern)))

    @property
    def total(self) -> int:
        """Of all that were added."""
        return sum(counted for counted, _ in self._found)
