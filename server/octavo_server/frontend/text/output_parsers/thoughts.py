"""What a model thinks before it answers: `<think>…</think>`, or other markers around it."""

from functools import cache

from octavo_server.frontend.text.output_parsers.message import Message
from octavo_server.frontend.text.output_parsers.source import Markers, Read, Source


def read_thoughts(source: Source, message: Message, markers: tuple[str, str], *, is_open: bool) -> Read[None]:
    """Read the thoughts that an answer begins with, if it does, and the marker behind them.

    is_open: it begins within them; the marker before them may come all the same. Thoughts that nothing ends go on to
    the end of the text.
    """
    start, end = markers
    source.keep()
    yield from source.space()
    begins = yield from source.starts(start)
    space = source.kept()
    if not begins and not is_open:
        message.content(space)
        return
    message.thoughts_begin()
    if not (yield from source.until(_markers(end), message.thoughts)):
        return
    source.take(source.at + len(end))
    message.thoughts_end()


@cache
def _markers(end: str) -> Markers:
    return Markers(end)
