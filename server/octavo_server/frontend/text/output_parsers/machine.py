"""The parser of an answer: readers of its parts, one after the other, driven by the text as it comes."""

from collections.abc import Callable, Iterator

from octavo_server.frontend.text.output_parsers.message import Message
from octavo_server.frontend.text.output_parsers.parsed import Parsed, Tool
from octavo_server.frontend.text.output_parsers.source import Read, Source
from octavo_server.frontend.text.output_parsers.thoughts import read_thoughts

Reader = Callable[[Source, Message, dict[str, Tool]], Read[None]]


class PlainText:
    """All of the text is content."""

    def add(self, text: str) -> Parsed:
        """The text."""
        return Parsed(text)

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
    while source.at < len(source.text) or (yield from source.more()):
        message.content(source.take(len(source.text)))
