"""Text that comes in pieces, as readers see it.

A reader is a generator: it `yield`s where it needs more text than there is, and is resumed when some has come or the
end is known. It decides by nothing but what `Source` lets it see, which waits where it must: so how the text is cut can
make no difference. What a reader leaves unread at a `yield` is a part of a marker at most: reading is linear.
"""

import re
from collections.abc import Callable, Generator
from typing import Final, TypeVar

T = TypeVar("T")
Read = Generator[None, None, T]
Emit = Callable[[str], None]

SPACE: Final = re.compile(r"[ \t\r\n]*")


class Source:
    """The text not read yet, from `at` on. What is read may be kept, to be given back as it was."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.position = 0  # of `at` in all of the text
        self.ended = False
        self._kept: list[str] | None = None
        self._kept_from = 0
        self._passing: tuple[Markers, Emit] | None = None  # where `until` waits, with nothing held back or kept

    def add(self, piece: str) -> None:
        """More text."""
        self.text = self.text[self.at :] + piece
        self.at = 0

    def passing(self, text: str) -> Emit | None:
        """Where this would go if it came next and were only passed on, as most text is; None: it has to be read."""
        if self._passing is None:
            return None
        markers, emit = self._passing
        for first in markers.firsts:
            if first in text:
                return None
        return emit

    @property
    def held(self) -> int:
        """Characters that are not read, and those that are kept."""
        return len(self.text) - self.at + (0 if self._kept is None else self.position - self._kept_from)

    def keep(self) -> None:
        """From here on, keep what is read."""
        self._kept, self._kept_from = [], self.position

    def kept(self) -> str:
        """What was read since `keep`; no more is kept."""
        kept, self._kept = self._kept or [], None
        return "".join(kept)

    def take(self, end: int) -> str:
        """Read up to a position in `text`."""
        piece = self.text[self.at : end]
        self.position += end - self.at
        self.at = end
        if self._kept is not None:
            self._kept.append(piece)
        return piece

    def more(self) -> Read[bool]:
        """Wait for more text than there is; False if none comes."""
        known = len(self.text) - self.at
        while len(self.text) - self.at == known:
            if self.ended:
                return False
            yield
        return True

    def peek(self) -> Read[str]:
        """The next character, not read; empty at the end."""
        if self.at < len(self.text) or (yield from self.more()):
            return self.text[self.at]
        return ""

    def starts(self, literal: str) -> Read[bool]:
        """Whether this comes next; then it is read."""
        while True:
            seen = self.text[self.at : self.at + len(literal)]
            if seen == literal:
                self.take(self.at + len(literal))
                return True
            if not literal.startswith(seen) or not (yield from self.more()):
                return False

    def run(self, characters: re.Pattern[str]) -> Read[str]:
        """Read as many characters as match a pattern of the form `[…]*`."""
        pieces = []
        while True:
            match = characters.match(self.text, self.at)
            if match is not None:
                pieces.append(self.take(match.end()))
            if self.at < len(self.text) or not (yield from self.more()):
                return "".join(pieces)

    def space(self) -> Read[str]:
        """Read white space."""
        return (yield from self.run(SPACE))

    def until(self, markers: "Markers", emit: Emit) -> Read[str]:
        """Pass text on up to the first of the markers, which is returned but not read; empty if none comes."""
        while True:
            hit = markers.pattern.search(self.text, self.at)
            if hit is not None:
                emit(self.take(hit.start()))
                return hit[0]
            held = 0 if self.ended else markers.begun(self.text, self.at)
            emit(self.take(len(self.text) - held))
            self._passing = (markers, emit) if not held and self._kept is None else None
            more = yield from self.more()
            self._passing = None
            if not more and not held:
                return ""


class Markers:
    """Strings to look for; none is the beginning of another. Without any, none is found."""

    def __init__(self, *markers: str) -> None:
        self.pattern = re.compile("|".join(map(re.escape, markers)) or "(?!)")
        self.firsts = "".join({marker[0] for marker in markers})  # without them, none begins in a text
        beginnings = {re.escape(marker[:length]) for marker in markers for length in range(1, len(marker))}
        self._beginning = re.compile(f"(?:{'|'.join(beginnings)})\\Z")
        self._longest = max(map(len, markers), default=1) - 1

    def begun(self, text: str, at: int) -> int:
        """Length of the longest end of `text`, from `at` on, that may be the beginning of a marker."""
        hit = self._beginning.search(text, max(at, len(text) - self._longest))
        return 0 if hit is None else len(text) - hit.start()
