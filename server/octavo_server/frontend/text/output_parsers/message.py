"""What readers have made of the text so far and nobody has taken yet."""

from typing import Final

from octavo_server.frontend.text.output_parsers.parsed import CallDelta, Kind, Parsed
from octavo_server.frontend.text.output_parsers.source import Emit

_SPACE: Final = " \t\r\n"
_SPACES: Final = tuple(_SPACE)


class TrimmedText:
    """Text without the white space around what stands in it and is none: calls, thoughts.

    White space within the text is left as it is; so it waits for what comes behind it.
    """

    def __init__(self, *, waits: bool) -> None:
        """`waits`: a border may come behind white space."""
        self._waits = waits
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
        if words:
            self._given += (*self._held, words)
            self._held = []
            self._empty = self._at_border = False
        if len(words) < len(text):
            self._held.append(text[len(words) :])

    def passes(self, text: str) -> bool:
        """Whether this text, which is not empty, would be given out at once and as it is."""
        if self._held or self._given or self._empty or self._at_border:
            return False
        return not (self._waits and text.endswith(_SPACES))

    def border(self) -> None:
        """Something else stands here."""
        self._held = []
        self._at_border = True

    def end(self) -> None:
        """Nothing more comes."""
        if not self._at_border:
            self._given += self._held
        self._held = []

    def take(self) -> str:
        """What is certain and was not taken yet."""
        if not self._given:
            return ""
        given, self._given = self._given, []
        return given[0] if len(given) == 1 else "".join(given)


class Message:
    """Collects content, thoughts and calls."""

    def __init__(self, *, with_calls: bool) -> None:
        self._content = TrimmedText(waits=with_calls)
        self._thoughts = TrimmedText(waits=True)
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
            return Parsed(content, thoughts)
        calls, self._calls = self._calls, []
        deltas = (CallDelta(index, name, "".join(pieces)) for index, name, pieces in calls)
        return Parsed(content, thoughts, tuple(delta for delta in deltas if delta.name is not None or delta.arguments))
