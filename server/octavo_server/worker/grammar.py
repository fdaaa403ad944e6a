"""Grammars in a step: each request's matcher, which follows its answer, and the masks of the rows that sample.

A matcher is worth nothing but what follows from the answer so far: after a preemption, and for an answer that was begun
elsewhere, a new one takes in all of it. Nothing here raises for what a grammar does: a matcher that comes to one of its
limits ends its own request. A lexer's limits may have been used up by others that have the same grammar, though: then
another matcher, compiled anew, takes its place, once.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from octavo_server.grammar_store import GrammarStore, Renew

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

    from octavo_server.worker.input_batch import ScheduledRow

_PARALLEL_ROWS: Final = 4  # from which on several threads are worth their start
_STRIDE: Final = 16  # tokens
_CATCH_UP_SECONDS: Final = 0.05  # of CPU time, for masks that nobody needs but the lexer


class RequestGrammar:
    """What a request's answer may go on with. `error`: why nobody can say any more, for people."""

    __slots__ = ("__weakref__", "_num_consumed", "_renew", "error", "matcher")

    def __init__(self, matcher: "LLMatcher | None", renew: Renew = lambda _: None) -> None:
        """matcher: at the beginning of an answer. None allows everything. renew: see `GrammarStore.matcher`."""
        self.matcher = matcher
        self.error: str | None = None
        self._num_consumed = 0
        self._renew = renew

    def follow(self, answer: np.ndarray) -> None:
        """Take in what is new of the answer, [n] int64: all of its tokens are given."""
        if self.matcher is None or self.error is not None:
            return
        if _take_in(self.matcher, answer[self._num_consumed :].tolist()):
            self._num_consumed = len(answer)
        else:
            self.fail(answer)

    def fail(self, answer: np.ndarray) -> None:
        """The matcher is in an error, which it never leaves: another one goes on, or it is `error`."""
        from octavo_server.grammar_compiler import one_line

        said = "" if self.matcher is None else one_line(self.matcher.get_error())
        # A token that had been allowed and is not any more: so llguidance says it, too, where its lexer gave up.
        if said.startswith("lexer error") or self._num_consumed < len(answer):
            renew, self._renew = self._renew, lambda _: None
            fresh = renew(self)
            if fresh is not None and _take_in(fresh, answer.tolist()):
                self.matcher, self._num_consumed = fresh, len(answer)
                return
        said = "nothing can follow" if said.startswith("NoExtension") else said
        self.error = f"the answer cannot be kept to its grammar beyond {self._num_consumed} tokens: {said}"


def _take_in(matcher: "LLMatcher", tokens: list[int]) -> bool:
    """Whether they fit. A lexer's fuel lasts from mask to mask: of many tokens some at a time, within bounds."""
    until = time.thread_time() + _CATCH_UP_SECONDS
    while len(tokens) > _STRIDE and time.thread_time() < until:
        if not matcher.consume_tokens(tokens[:_STRIDE]):
            return False
        matcher.compute_bitmask()
        tokens = tokens[_STRIDE:]
    return matcher.consume_tokens(tokens)


@dataclass(frozen=True, slots=True)
class RowMasks:
    """Of n rows. bits: [n, words] int32. forced: [n] int32, 1 where nothing but ends are allowed.

    See `octavo_kernels.token_mask`.
    """

    bits: np.ndarray
    forced: np.ndarray


class GrammarMasks:
    """Makes the masks of steps, one step after the other."""

    def __init__(self, vocab_size: int, grammars: GrammarStore | None) -> None:
        """vocab_size: of the model, where no tokenizer says how wide a mask is."""
        self._words = -(-vocab_size // 32)
        self._grammars = grammars
        self._not_ends: np.ndarray | None = None
        self._executor: LLExecutor | None = None
        self._thread = None if grammars is None else ThreadPoolExecutor(1, thread_name_prefix="octavo mask")

    def begin(self, rows: Sequence["ScheduledRow"]) -> Callable[[], RowMasks]:
        """`make` on a thread beside; what is returned waits for it."""
        if self._thread is None:
            return lambda: self.make(rows)
        return self._thread.submit(self.make, rows).result

    def make(self, rows: Sequence["ScheduledRow"]) -> RowMasks:
        """The masks of rows that have grammars, whose tokens before the next one are all known on the host.

        A row whose grammar fails may have any token, which is dropped: its request has failed.
        """
        asked: list[tuple[LLMatcher, int]] = []
        for index, row in enumerate(rows):
            grammar = row.state.grammar
            if grammar is None or grammar.matcher is None or row.state.failed:
                continue
            grammar.follow(_answer(row))
            if grammar.error is None:
                asked.append((grammar.matcher, index))
        bits = np.full((len(rows), self._width()), -1, dtype=np.int32)
        self._fill(asked, bits)
        for matcher, index in asked:
            if matcher.is_error():
                self._fill_anew(rows[index], index, bits)
        for index, row in enumerate(rows):
            if row.state.grammar is not None and row.state.grammar.error is not None:
                row.state.failed = True
                bits[index] = -1
        return RowMasks(bits, self._forced(bits))

    def close(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._thread.shutdown()

    def _width(self) -> int:
        """Words of a mask. A tokenizer is there as soon as a request has a matcher."""
        if self._grammars is not None and self._grammars.tokenizer is not None:
            return -(-self._grammars.tokenizer.vocab_size // 32)
        return self._words

    def _fill(self, asked: list[tuple["LLMatcher", int]], bits: np.ndarray) -> None:
        if len(asked) < _PARALLEL_ROWS:
            for matcher, index in asked:
                matcher.unsafe_compute_mask_ptr(bits[index].ctypes.data, bits[index].nbytes)
            return
        if self._executor is None:
            from llguidance import LLExecutor

            self._executor = LLExecutor()
        self._executor.unsafe_compute_mask_ptr(asked, bits.ctypes.data, bits[0].nbytes, len(bits))

    def _fill_anew(self, row: "ScheduledRow", index: int, bits: np.ndarray) -> None:
        """A row whose matcher failed at its mask: by another one, if it gets one."""
        grammar = row.state.grammar
        while grammar is not None and grammar.matcher is not None and grammar.error is None:
            grammar.fail(_answer(row))
            if grammar.error is None:
                self._fill([(grammar.matcher, index)], bits)
                if not grammar.matcher.is_error():
                    return

    def _forced(self, bits: np.ndarray) -> np.ndarray:
        if self._grammars is None or self._grammars.tokenizer is None:
            return np.zeros(len(bits), dtype=np.int32)
        if self._not_ends is None:
            self._not_ends = np.full(bits.shape[1], -1, dtype=np.int32)
            for end in self._grammars.tokenizer.eos_tokens:
                self._not_ends.view(np.uint32)[end // 32] &= np.uint32(0xFFFFFFFF ^ (1 << end % 32))
        others: np.ndarray = np.any(bits & self._not_ends, axis=1)
        return (~others).astype(np.int32)


def _answer(row: "ScheduledRow") -> np.ndarray:
    """Its tokens so far, [n] int64."""
    return row.state.token_ids[row.state.num_prompt : row.end]
