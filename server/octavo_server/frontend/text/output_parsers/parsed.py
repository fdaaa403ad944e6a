"""What a parser makes of an answer's text, and what every parser can do."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Kind = Literal["content", "reasoning"]


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a tool call.

    `index`: which of the answer's calls, from 0. `name`: in the first piece of a call alone. `arguments`: text; all
    pieces of a call, joined, are its arguments: JSON if the model wrote them well and to the end.
    """

    index: int
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a piece of text adds to a message. At most one delta a call, in the order of the calls.

    `content_at`, `reasoning_at`: from which of the answer's characters to which one they stood; what stands between
    parts of them, and is neither, came in the same piece.
    """

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    content_at: tuple[int, int] = (0, 0)
    reasoning_at: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that may be called. `parameters`: JSON schema of its arguments; `strict`: they must be valid.

    `index`: which of the request's tools it is.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    strict: bool = False
    index: int = 0


class OutputParser(Protocol):
    """Takes an answer's text in pieces. How it is cut makes no difference to what all results add up to.

    The parser of one answer; a whole one is `add` of all of it, then `end`.
    """

    def add(self, text: str) -> Parsed:
        """What is certain now."""
        ...

    def plain(self, text: str) -> Kind | None:
        """What this is, if it comes next and all of it is given out as it is; it counts as added then.

        So it mostly is, token by token. None: it has to be added.
        """
        ...

    @property
    def held(self) -> int:
        """Of the text so far, how many of the last characters nothing was made of yet."""
        ...

    def end(self) -> Parsed:
        """What was held back. Nothing may be added afterwards."""
        ...
