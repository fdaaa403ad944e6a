"""Grammars of answers, by llguidance: what compiles them in the API process's helper and, once more, in the engine.

Both with the model's own tokenizer and the same limits, so that what compiles there compiles here. The limits are far
below llguidance's own: with those a mask may take a second (seen: `a: "x" | a a | a a a`) and a request's lexer 450 MB.
"""

import itertools
import random
import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from octavo_common.generation_config import read_generation_defaults
from octavo_common.model_config import read_model_config

_SHOWN: Final = 400  # characters of a reason
_PATTERN: Final = re.compile(r"regex parse error:\n +(.*)\n[\s\S]*?\nerror: (.*)")
_IN_OTHER_WORDS: Final = (
    (re.compile(r"oneOf constraints are not supported\..*"), "oneOf where one value may fit two of them: use anyOf"),
    (re.compile(r"Unimplemented keys: \[(.*?)\]"), r"what cannot be held: \1"),
)


def limits(max_lexer_states: int) -> LLParserLimits:
    """Of a step of a request: 10 ms on average for the worst grammars found, 40 at most (benchmarks/grammar_cpu.py).

    max_lexer_states: of a table, about 1 kB each.
    """
    return LLParserLimits(
        max_items_in_row=3_000,  # four for each property of an object that may be left out
        step_max_items=10_000,
        step_lexer_fuel=100_000,
        max_lexer_states=max_lexer_states,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


LIMITS: Final = limits(max_lexer_states=80_000)  # of what counts characters: see `frontend/text/counted_lengths.py`
TRIAL_LIMITS: Final = limits(max_lexer_states=20_000)  # where nobody knows what is counted, in the answer that is tried


class GrammarError(Exception):
    """A grammar cannot be served: one line for people."""


def read_tokenizer(directory: Path) -> LLTokenizer:
    """The model's tokenizer as llguidance has it: some 10 bytes for each byte of its file, and as long as that takes.

    Holds the GIL meanwhile: 1.1 s for 150,000 tokens. Raises ModelConfigError or ValueError.
    """
    model = read_model_config(directory)
    ends = sorted({*model.eos_token_ids, *read_generation_defaults(directory).eos_token_ids})
    return make_tokenizer(directory, model.vocab_size, ends)


def make_tokenizer(directory: Path, vocab_size: int, eos_token_ids: Collection[int]) -> LLTokenizer:
    """The same, the model's configuration being known. Masks have a bit for each row of its embedding, or more."""
    path, ends = str(directory.resolve() / "tokenizer.json"), list(eos_token_ids)
    if not ends:
        raise ValueError("the model has no token that ends an answer")
    try:
        return LLTokenizer(path, n_vocab=vocab_size, eos_token=ends)
    except ValueError as error:
        if "vocab size too small" not in str(error):
            raise
    return LLTokenizer(path, eos_token=ends)  # its last tokens have no row in the embedding, and are never chosen


def compile_grammar(tokenizer: LLTokenizer, grammar: str, bounds: LLParserLimits = LIMITS) -> LLMatcher:
    """A matcher at the beginning of an answer, its first mask computed. Gives the GIL away.

    Raises:
        GrammarError: the grammar is wrong, or needs more than the limits allow.
    """
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=bounds)
    mask = b"" if matcher.is_error() else matcher.compute_bitmask()
    if matcher.is_error() and not matcher.get_error().startswith("NoExtension"):
        raise GrammarError(one_line(matcher.get_error()))
    if matcher.is_error() or not any(mask):
        raise GrammarError("no answer fits it")
    return matcher


def try_answer(matcher: LLMatcher, ends: Collection[int], most: int, seconds: float) -> None:
    """An answer of tokens at random, always the same ones, until it ends, has `most`, or took so much CPU time.

    Raises:
        GrammarError: the matcher came to a limit.
    """
    rng, until = random.Random(0), time.process_time() + seconds
    for number in range(most):
        mask = matcher.compute_bitmask()
        token = None if matcher.is_error() else _any_token(mask, ends, rng)
        if token is not None:
            matcher.consume_token(token)
        if matcher.is_error():
            raise GrammarError(
                f"it needs more than the limits allow, in a trial after {number} tokens of an answer: "
                + one_line(matcher.get_error())
            )
        if token is None or time.process_time() >= until:
            return


def _any_token(mask: bytes, ends: Collection[int], rng: random.Random) -> int | None:
    """One that is in the mask; not quite each as often. None: nothing but the end."""
    left = bytearray(mask)
    for end in ends:
        left[end // 8] &= ~(1 << end % 8) & 0xFF
    start = rng.randrange(len(left))
    found = next((at for at in itertools.chain(range(start, len(left)), range(start)) if left[at]), None)
    return None if found is None else found * 8 + rng.choice([bit for bit in range(8) if left[found] >> bit & 1])


def one_line(text: str) -> str:
    """What llguidance says, in one line of bounded length: without the grammar that was made, and its own options."""
    text = text.replace("<non-verbose/>", "")
    if (pattern := _PATTERN.search(text)) is not None:
        text = f"the pattern {pattern[1][: _SHOWN // 4]}: {pattern[2]}"
    for found, said in _IN_OTHER_WORDS:
        text = found.sub(said, text)
    return " ".join(text.split())[:_SHOWN]
