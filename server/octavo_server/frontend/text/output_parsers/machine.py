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

    def add(self, text: str) -> Parsed:
        """The text."""
        return Parsed(text)

    def plain(self, text: str) -> Kind | None:
        """All of it is content."""
        return "content"

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
        self._message = Message(with_calls=reader is not None)
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
        return None if emit is None else self._message.plain(text, emit)

    def end(self) -> Parsed:
        """See `OutputParser`."""
        self._source.ended = True
        next(self._steps, None)
        self._message.end()
        return self._message.take()


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
