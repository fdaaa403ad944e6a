"""What readers have made of the text so far and nobody has taken yet."""

from typing import Final

from octavo_server.frontend.text.output_parsers.parsed import CallDelta, Kind, Parsed
from octavo_server.frontend.text.output_parsers.source import Emit, Source

_SPACE: Final = " \t\r\n"
_SPACES: Final = tuple(_SPACE)


class TrimmedText:
    """Text without the white space around what stands in it and is none: calls, thoughts.

    White space within the text is left as it is; so it waits for what comes behind it. `at`: where that which was not
    taken stood.
    """

    def __init__(self, source: Source, *, waits: bool) -> None:
        """source: has just read what is added. `waits`: a border may come behind white space."""
        self._source = source
        self._waits = waits
        self.at = (0, 0)
        self._held_from = 0
        self._given: list[str] = []
        self._held: list[str] = []
        self._empty = True
        self._at_border = False

    def add(self, text: str) -> None:
        """More of it."""
        if not text:
            return
        if self._at_border and self._empty:
            text = text.lstrip(_SPACE)
        words = text.rstrip(_SPACE) if self._waits else text
        end = self._source.position - len(text) + len(words)
        if words:
            self._stood(self._held_from if self._held else end - len(words), end)
            self._given += (*self._held, words)
            self._held = []
            self._empty = self._at_border = False
        if len(words) < len(text):
            if not self._held:
                self._held_from = end
            self._held.append(text[len(words) :])

    def passes(self, text: str) -> bool:
        """Whether this text, which is not empty, would be given out at once and as it is."""
        if self._held or self._given or self._empty or self._at_border:
            return False
        return not (self._waits and text.endswith(_SPACES))

    @property
    def held(self) -> int:
        """Characters of white space that wait; what was read since is none of them."""
        return self._source.position - self._held_from if self._held else 0

    def border(self) -> None:
        """Something else stands here."""
        self._held = []
        self._at_border = True

    def end(self) -> None:
        """Nothing more comes."""
        if self._held and not self._at_border:
            self._stood(self._held_from, self._source.position)
            self._given += self._held
        self._held = []

    def take(self) -> str:
        """What is certain and was not taken yet."""
        if not self._given:
            return ""
        given, self._given = self._given, []
        return given[0] if len(given) == 1 else "".join(given)

    def _stood(self, begin: int, end: int) -> None:
        """Before what it gives is added."""
        self.at = (self.at[0] if self._given else begin, end)


class Message:
    """Collects content, thoughts and calls."""

    def __init__(self, source: Source, *, with_calls: bool) -> None:
        """source: has just read what it is given."""
        self._content = TrimmedText(source, waits=with_calls)
        self._thoughts = TrimmedText(source, waits=True)
        self._calls: list[tuple[int, str | None, list[str]]] = []
        self._num_calls = 0
        self.content = self._content.add
        self.thoughts = self._thoughts.add

    def plain(self, text: str, emit: Emit) -> Kind | None:
        """See `OutputParser`; `emit`: by which it would come."""
        if emit is self.content:
            return "content" if self._content.passes(text) else None
        if emit is self.thoughts:
            return "reasoning" if self._thoughts.passes(text) else None
        return None

    @property
    def held(self) -> int:
        """Characters of white space that wait for what comes behind them."""
        return self._content.held + self._thoughts.held

    def thoughts_begin(self) -> None:
        """What comes next is thought."""
        self._thoughts.border()

    def thoughts_end(self) -> None:
        """What comes next is the answer."""
        self._thoughts.border()
        self._content.border()

    def call(self, name: str) -> None:
        """A call begins."""
        self._content.border()
        self._calls.append((self._num_calls, name, []))
        self._num_calls += 1

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that began last."""
        if not self._calls:
            self._calls.append((self._num_calls - 1, None, []))
        self._calls[-1][2].append(text)

    def end(self) -> None:
        """Nothing more comes."""
        self._thoughts.end()
        self._content.end()

    def take(self) -> Parsed:
        """What is certain and was not taken yet."""
        content, thoughts = self._content.take(), self._thoughts.take()
        if not self._calls:
            return Parsed(content, thoughts, (), self._content.at, self._thoughts.at)
        calls, self._calls = self._calls, []
        deltas = (CallDelta(index, name, "".join(pieces)) for index, name, pieces in calls)
        said = tuple(delta for delta in deltas if delta.name is not None or delta.arguments)
        return Parsed(content, thoughts, said, self._content.at, self._thoughts.at)
