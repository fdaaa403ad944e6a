"""What an answer's text says: content, thoughts and tool calls, told apart while it comes.

A parser is given the text and says which of it is what, and where that stood. Log-probabilities of the content and the
number of tokens of thoughts need to know that of tokens: so it is given them one by one.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise, zip_longest

from octavo_server.frontend.answer import Delta
from octavo_server.frontend.text.output_parsers import CallDelta, OutputFormat, Parsed, Tool, Without
from octavo_server.ipc import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Parsing:
    """How the answers to one request are read. `reasoning_open`: the prompt ends within thoughts.

    `hidden`: special tokens that are in the text for the parser alone, and never content. `only_calls`: a grammar lets
    nothing else come, so that what is no call is one that was cut off before it could be told.
    """

    format: OutputFormat
    tools: tuple[Tool, ...]
    reasoning_open: bool
    hidden: tuple[str, ...] = ()
    only_calls: bool = False

    def choice(self, *, with_logprobs: bool) -> "ChoiceParser":
        """The parser of one answer. with_logprobs: its tokens have some."""
        return ChoiceParser(self, by_token=with_logprobs or self.format.supports_reasoning)


@dataclass(slots=True)
class Piece:
    """What a delta adds to a message. `logprobs`: of the tokens of `content`."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def then(self, other: "Piece") -> "Piece":
        """This one and what follows it."""
        calls = {call.index: call for call in self.calls}
        for call in other.calls:
            before = calls.get(call.index, CallDelta(call.index, call.name, ""))
            calls[call.index] = CallDelta(call.index, before.name, before.arguments + call.arguments)
        return Piece(
            self.content + other.content,
            self.reasoning + other.reasoning,
            tuple(calls.values()),
            self.logprobs + other.logprobs,
        )


@dataclass(slots=True)
class _Token:
    """One that is not settled: where its text begins, and whether a part of it was given out, which tells it."""

    offset: int
    entry: TokenLogprobs | None
    is_told: bool = False


class ChoiceParser:
    """Reads one answer. `called`: it has called a tool; `reasoning_tokens`: of its thoughts so far."""

    def __init__(self, parsing: Parsing, *, by_token: bool) -> None:
        """by_token: what each token says is wanted, too."""
        self._parser = parsing.format.parser(parsing.tools, reasoning_open=parsing.reasoning_open)
        self._by_token = by_token
        self._only_calls = parsing.only_calls
        self._visible = Without(parsing.hidden) if parsing.hidden else None
        self._arguments: list[str] = []  # of the last call
        self._given = 0  # characters that the parser has been given
        self._tokens: deque[_Token] = deque()  # those of which more may be said
        self.called = False
        self.reasoning_tokens = 0

    def add(self, delta: Delta) -> Piece:
        """What a delta of the answer says."""
        text = delta.text
        if text and delta.finish_reason is None and (plain := self._plain(delta, text)) is not None:
            return plain
        found = _Found(self._visible, only_calls=self._only_calls)
        if self._by_token:
            offsets = delta.offsets
            entries: Sequence[TokenLogprobs | None] = delta.logprobs or [None] * len(offsets)
            self._tokens.extend(map(_Token, offsets, entries))
            for part in self._parts(text, offsets):
                self._take(len(part), self._parser.add(part), found)
        elif text:
            found.take(self._parser.add(text))
        if delta.finish_reason is not None:
            self._take(0, self._parser.end(), found)
            found.end()
        for name, arguments in found.calls.values():
            self.called = True
            if name is not None:
                self._arguments = []
            self._arguments += arguments
        return found.piece()

    def _plain(self, delta: Delta, text: str) -> Piece | None:
        """The same as by the long way, for text in which nothing is to be told apart: as nearly all that comes is."""
        begins: list[int] = []
        if self._by_token:
            begins = delta.offsets
            if not begins or begins[0] != self._given or begins[-1] >= self._given + len(text):
                return None  # not all of these tokens are told by this text, or others are
            if self._tokens and self._tokens[-1].offset >= self._given:
                return None  # one that was before them, too
        if self._only_calls or (self._visible is not None and not self._visible.passes(text)):
            return None
        kind = self._parser.plain(text)
        if kind is None:
            return None
        self._given += len(text)
        self._tokens.clear()  # those before: what they say has come, or is none
        if kind == "content":
            return Piece(text, logprobs=delta.logprobs)
        self.reasoning_tokens += len(begins)
        return Piece(reasoning=text)

    @property
    def num_waiting(self) -> int:
        """The last tokens of which nothing was said or decided yet; 0 where they are not looked at."""
        decided, count = self._given - self._parser.held, 0
        for token in reversed(self._tokens):
            if token.is_told or token.offset < decided:
                break
            count += 1
        return count

    def call_is_whole(self) -> bool:
        """Whether the arguments of the last call are JSON, to their end."""
        try:
            json.loads("".join(self._arguments))
        except (ValueError, RecursionError):
            return False
        return True

    def _parts(self, text: str, offsets: Sequence[int]) -> Iterator[str]:
        """The text, cut where tokens begin. Stop strings hold text back, so that tokens may begin behind its end."""
        inside = sorted({offset - self._given for offset in offsets if 0 < offset - self._given < len(text)})
        for begin, end in pairwise((0, *inside, len(text))):
            if begin < end:
                yield text[begin:end]

    def _take(self, length: int, parsed: Parsed, found: "_Found") -> None:
        found.take(parsed)
        if not self._by_token:
            return
        self._given += length
        if parsed.reasoning:
            self.reasoning_tokens += len(self._tell(*parsed.reasoning_at))
        if parsed.content and not self._only_calls:
            found.logprobs += [entry for entry in self._tell(*parsed.content_at) if entry is not None]
        self._forget(self._given - self._parser.held)

    def _tell(self, begin: int, end: int) -> list[TokenLogprobs | None]:
        """The tokens by which these characters were said; each once, however its text is cut."""
        told = []
        for token, behind in zip_longest(self._tokens, islice(self._tokens, 1, None)):
            if token.offset >= end:
                break
            if not token.is_told and (behind is None or token.offset >= begin or behind.offset > begin):
                token.is_told = True
                told.append(token.entry)
        return told

    def _forget(self, decided: int) -> None:
        """Tokens whose text ends before that: only where the next one begins tells where one ends."""
        tokens = self._tokens
        while len(tokens) > 1 and tokens[0].offset < decided and tokens[1].offset <= decided:
            tokens.popleft()


class _Found:
    """Gathers what a parser gives out, at a cost that does not grow with what is there."""

    def __init__(self, visible: Without | None, *, only_calls: bool) -> None:
        self._visible = visible
        self._only_calls = only_calls
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self.calls: dict[int, tuple[str | None, list[str]]] = {}
        self.logprobs: list[TokenLogprobs] = []

    def take(self, parsed: Parsed) -> None:
        """Add what was given out."""
        content = "" if self._only_calls else parsed.content
        self._content.append(content if self._visible is None else self._visible.add(content))
        self._reasoning.append(parsed.reasoning)
        for call in parsed.calls:
            _, pieces = self.calls.setdefault(call.index, (call.name, []))
            pieces.append(call.arguments)

    def end(self) -> None:
        """Nothing more comes."""
        if self._visible is not None:
            self._content.append(self._visible.end())

    def piece(self) -> Piece:
        """All of it."""
        calls = tuple(CallDelta(index, name, "".join(pieces)) for index, (name, pieces) in self.calls.items())
        return Piece("".join(self._content), "".join(self._reasoning), calls, self.logprobs)
