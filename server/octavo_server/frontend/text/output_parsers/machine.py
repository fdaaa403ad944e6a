"""The parser of an answer: readers of its parts, one after the other, driven by the text as it comes."""

from collections.abc import Callable, Iterator
from typing import Final

from octavo_server.frontend.text.output_parsers.message import Message
from octavo_server.frontend.text.output_parsers.parsed import Kind, Parsed, Tool
from octavo_server.frontend.text.output_parsers.source import Markers, Read, Source
from octavo_server.frontend.text.output_parsers.thoughts import read_thoughts

Reader = Callable[[Source, Message, dict[str, Tool]], Read[None]]
_NOTHING: Final = Markers()


class PlainText:
    """All of the text is content."""

    def __init__(self) -> None:
        self._given = 0

    def add(self, text: str) -> Parsed:
        """The text."""
        begin, self._given = self._given, self._given + len(text)
        return Parsed(text, content_at=(begin, self._given))

    def plain(self, text: str) -> Kind | None:
        """All of it is content."""
        self._given += len(text)
        return "content"

    @property
    def held(self) -> int:
        """None."""
        return 0

    def end(self) -> Parsed:
        """Nothing."""
        return Parsed()


class Machine:
    """Thoughts first, then what a reader of tool calls finds; see `OutputParser`."""

    def __init__(
        self, thoughts: tuple[str, str] | None, reader: Reader | None, tools: dict[str, Tool], *, reasoning_open: bool
    ) -> None:
        """thoughts: the markers around them. reader: of calls. None: there are none to be looked for."""
        self._source = Source()
        self._message = Message(self._source, with_calls=reader is not None)
        self._steps = _steps(self._source, self._message, thoughts, reader, tools, reasoning_open)
        next(self._steps)

    def add(self, text: str) -> Parsed:
        """See `OutputParser`."""
        self._source.add(text)
        next(self._steps)
        return self._message.take()

    def plain(self, text: str) -> Kind | None:
        """See `OutputParser`."""
        emit = self._source.passing(text)
        kind = None if emit is None else self._message.plain(text, emit)
        if kind is not None:
            self._source.position += len(text)
        return kind

    @property
    def held(self) -> int:
        """See `OutputParser`."""
        return self._source.held + self._message.held

    def end(self) -> Parsed:
        """See `OutputParser`."""
        self._source.ended = True
        next(self._steps, None)
        self._message.end()
        return self._message.take()


class Without:
    """Text as it comes, less some strings, wherever it is cut."""

    def __init__(self, strings: tuple[str, ...]) -> None:
        """strings: none is the beginning of another."""
        self._source = Source()
        self._kept: list[str] = []
        self._steps = self._read(Markers(*strings))
        next(self._steps)

    def add(self, text: str) -> str:
        """What is certain now."""
        self._source.add(text)
        next(self._steps)
        return self._take()

    def passes(self, text: str) -> bool:
        """Whether all of it would be given out at once, if it came next."""
        return self._source.passing(text) is not None

    def end(self) -> str:
        """What was held back."""
        self._source.ended = True
        next(self._steps, None)
        return self._take()

    def _read(self, markers: Markers) -> Read[None]:
        while marker := (yield from self._source.until(markers, self._kept.append)):
            self._source.take(self._source.at + len(marker))

    def _take(self) -> str:
        kept = "".join(self._kept)
        self._kept.clear()
        return kept


def _steps(
    source: Source,
    message: Message,
    thoughts: tuple[str, str] | None,
    reader: Reader | None,
    tools: dict[str, Tool],
    reasoning_open: bool,
) -> Iterator[None]:
    if thoughts is not None:
        yield from read_thoughts(source, message, thoughts, is_open=reasoning_open)
    if reader is not None:
        yield from reader(source, message, tools)
    yield from source.until(_NOTHING, message.content)
