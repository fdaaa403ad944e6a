"""Compiled grammars of the engine's requests, made by a thread beside its steps.

Requests with the same grammar share what was compiled; each has a copy of it to go on from. What no request has is kept
for those to come, as long as there is not too much of it.
"""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_HELD: Final = 64  # different grammars of requests that are here: each takes 32 MiB at most, and mostly none of it
MOST_KEPT: Final = 32  # besides


@dataclass(slots=True)
class _Entry:
    """text: the one copy of it. users: requests that hold it."""

    text: str
    matcher: "LLMatcher"
    users: int = 0


class GrammarStore:
    """Used by the engine's loop, and where a request joins the worker: one thread, or one after the other."""

    def __init__(self, make_tokenizer: "Callable[[], LLTokenizer]") -> None:
        """make_tokenizer: called at once, on the store's thread."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo grammar")
        self._making = self._thread.submit(make_tokenizer)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._num_held = 0

    @property
    def tokenizer(self) -> "LLTokenizer | None":
        """None as long as it is not there."""
        return self._making.result() if self._making.done() and self._making.exception() is None else None

    @property
    def is_used(self) -> bool:
        """Whether there ever was a grammar."""
        return bool(self._entries)

    @property
    def has_room(self) -> bool:
        """Whether another grammar may be held."""
        return self._num_held < MOST_HELD

    def has(self, grammar: str) -> bool:
        """Whether it is compiled."""
        return grammar in self._entries

    def compile(self, grammar: str) -> "Future[LLMatcher]":
        """Begins to compile it; to be given to `keep`. The future raises GrammarError, or what the tokenizer did."""
        return self._thread.submit(self._compile, grammar)

    def keep(self, grammar: str, matcher: "LLMatcher") -> None:
        """Takes in what was compiled."""
        self._entries[grammar] = _Entry(grammar, matcher)
        unused = [text for text, entry in self._entries.items() if not entry.users]
        for text in unused[: max(0, len(unused) - MOST_KEPT)]:
            del self._entries[text]

    def hold(self, grammar: str) -> str:
        """Keeps it until it is released as often; the text that is shared by all that hold it."""
        entry = self._entries[grammar]
        self._entries.move_to_end(grammar)
        self._num_held += not entry.users
        entry.users += 1
        return entry.text

    def release(self, grammar: str) -> None:
        """A request that held it has ended."""
        entry = self._entries[grammar]
        entry.users -= 1
        self._num_held -= not entry.users

    def matcher(self, grammar: str) -> "LLMatcher":
        """A matcher of its own for a request that joins. Compiles what is not here: only where nobody came before."""
        if grammar not in self._entries:
            self.keep(grammar, self.compile(grammar).result())
        return self._entries[grammar].matcher.deep_copy()

    def close(self) -> None:
        """What has not begun never will."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: str) -> "LLMatcher":
        from octavo_server.grammar_compiler import compile_grammar

        return compile_grammar(self._making.result(), grammar)
