"""Compiled grammars of the engine's requests, made by a thread beside its steps.

Requests with the same grammar share what was compiled; each has a copy of it to go on from. What no request has is kept
for those to come, as long as there is not too much of it.

Copies share the lexer's table, which grows with what answers come through, and with it the limits of its size. So a
table that came to a limit is given to nobody any more; who had it together with others gets one of its own, once.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Gives a request, by whatever stands for it as long as it has a matcher, one whose lexer is its own; None: it may not.
Renew = Callable[[object], "LLMatcher | None"]

# Each takes 32 MiB at most, and its table up to 100 MB, some 30 kB a token of an answer; mostly very little of that.
MOST_HELD: Final = 64  # different grammars of requests that are here
MOST_KEPT: Final = 32  # besides
WORN_TOKENS: Final = 512  # of answers by a grammar, from which on its table may be large
MOST_WORN: Final = 4  # of those that are kept
MOST_OWN: Final = 8  # requests at a time that have a table of their own
CHEAP_SECONDS: Final = 0.02  # of CPU time: what takes longer to compile is not compiled within a step


@dataclass(slots=True)
class _Entry:
    """text: the one copy of it. users: requests that hold it. copies: of the matcher, handed out. seconds: to compile.

    spent: a copy's lexer came to a limit, and so will all others.
    """

    text: str
    matcher: "LLMatcher"
    users: int = 0
    copies: int = 0
    seconds: float = 0.0
    tokens: int = 0
    spent: bool = False


class GrammarStore:
    """Used by the engine's loop, and where a request joins the worker: one thread, or one after the other."""

    def __init__(self, make_tokenizer: "Callable[[], LLTokenizer]") -> None:
        """make_tokenizer: called at once, on the store's thread."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo grammar")
        self._making = self._thread.submit(make_tokenizer)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._num_held = 0
        self._own: WeakSet[object] = WeakSet()
        self._seconds = 0.0  # that the last compilation took

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
        """Whether it is compiled, and good for another request."""
        entry = self._entries.get(grammar)
        return entry is not None and not entry.spent

    def compile(self, grammar: str) -> "Future[LLMatcher]":
        """Begins to compile it; to be given to `keep`. The future raises GrammarError, or what the tokenizer did."""
        return self._thread.submit(self._compile, grammar)

    def keep(self, grammar: str, matcher: "LLMatcher") -> None:
        """Takes in what was compiled last; in the place of what is spent."""
        users = self._entries[grammar].users if grammar in self._entries else 0
        self._entries[grammar] = _Entry(grammar, matcher, users, seconds=self._seconds)
        self._forget()

    def hold(self, grammar: str) -> str:
        """Keeps it until it is released as often; the text that is shared by all that hold it."""
        entry = self._entries[grammar]
        self._entries.move_to_end(grammar)
        self._num_held += not entry.users
        entry.users += 1
        return entry.text

    def release(self, grammar: str, tokens: int = 0) -> None:
        """A request that held it has ended, with an answer of so many tokens."""
        entry = self._entries[grammar]
        entry.users -= 1
        entry.tokens += tokens
        self._num_held -= not entry.users
        if entry.spent and not entry.users:
            del self._entries[grammar]
        self._forget()

    def matcher(self, grammar: str) -> "tuple[LLMatcher, Renew]":
        """A matcher for a request that joins, and what gives another one in its place.

        Compiles what is not here: only where nobody came before.
        """
        if grammar not in self._entries:
            self.keep(grammar, self.compile(grammar).result())
        entry = self._entries[grammar]
        entry.copies += 1
        return entry.matcher.deep_copy(), partial(self._renew, entry)

    def close(self) -> None:
        """What has not begun never will."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _forget(self) -> None:
        """The oldest of those that nobody holds, where there are too many of them, or of those with large tables."""
        unused = [entry for entry in self._entries.values() if not entry.users]
        worn = [entry for entry in unused if entry.tokens > WORN_TOKENS]
        for entries, most in ((unused, MOST_KEPT), (worn, MOST_WORN)):
            for entry in entries[: max(0, len(entries) - most)]:
                self._entries.pop(entry.text, None)

    def _renew(self, entry: _Entry, user: object) -> "LLMatcher | None":
        """On the thread that makes masks. None: it had the table for itself, or there is no room for one of its own."""
        from octavo_server.grammar_compiler import GrammarError, compile_grammar

        entry.spent = True
        if entry.copies == 1 or entry.seconds > CHEAP_SECONDS or len(self._own) >= MOST_OWN:
            return None
        self._own.add(user)
        try:
            return compile_grammar(self._making.result(), entry.text)
        except GrammarError:
            return None

    def _compile(self, grammar: str) -> "LLMatcher":
        from octavo_server.grammar_compiler import compile_grammar

        tokenizer = self._making.result()
        began = time.thread_time()
        matcher = compile_grammar(tokenizer, grammar)
        self._seconds = time.thread_time() - began
        return matcher
