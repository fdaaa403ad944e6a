# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""What changes single logits of a row before it is sampled from, in Triton: exclusions, bias, penalties.

A request that asks for such a thing has *entries* on the device, one for each token that is touched, none twice:

    tokens [capacity], state [capacity], saved [capacity] (only with SAVED), bias [capacity of those biased] float32

one behind the other, 4 bytes each. The state holds how often the answer has the token, and the marks below. Memory does
not grow with the vocabulary. Drawing a token adds it to the entries (`count_token`), so that the next step finds it
without a word of the host. A bad word of several tokens has an entry for its last one, marked NOW as long as the answer
ends with those before it; words and the answer's end are

    tail [k − 1], words [w, k]: the place of the last token's entry, then the k − 1 before it

aligned at the end, ANY standing before the shorter ones. The twin is `octavo_server.worker.logits_processors`.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from octavo_kernels.launching import Launcher, alignment
from octavo_kernels.sampling_table import (
    ADJUSTED,
    BIASED,
    CAPACITY,
    COLUMNS,
    ENTRIES,
    FLAGS,
    FREQUENCY,
    LENGTH,
    MIN_UNTIL,
    NUM_WORDS,
    POSITION,
    PRESENCE,
    REPETITION,
    SAVED,
    WORD_LENGTH,
    WORDED,
    WORDS,
)

COUNT: Final = tl.constexpr((1 << 24) - 1)  # of a token in the answer
SEEN: Final = tl.constexpr(1 << 24)  # in prompt or answer
NEVER: Final = tl.constexpr(1 << 25)  # a bad word by itself
END: Final = tl.constexpr(1 << 26)  # excluded before `min_tokens`
NOW: Final = tl.constexpr(1 << 27)  # would complete a bad word
ANY: Final = tl.constexpr(-2)  # in a word: any token, or none
NO_TOKEN: Final = -1  # in the tail of a short answer

_SPLITS: Final = 8
_BLOCK: Final = tl.constexpr(512)


def adjust(logits: torch.Tensor, slots: torch.Tensor, table: torch.Tensor) -> None:
    """Changes the logits of rows that have entries, [n, vocab] float32, in place. slots: [n] int64."""
    _launch(logits, slots, table, restore=False)


def restore(logits: torch.Tensor, slots: torch.Tensor, table: torch.Tensor) -> None:
    """Puts back what `adjust` changed, of rows with SAVED."""
    _launch(logits, slots, table, restore=True)


def _launch(logits: torch.Tensor, slots: torch.Tensor, table: torch.Tensor, *, restore: bool) -> None:
    _entries(
        (logits.device, logits.dtype, logits.stride(0), restore, alignment(logits, slots)),
        (_SPLITS, len(slots), 1),
        (logits, slots, table, table.view(torch.float32), logits.stride(0)),
        {"WIDTH": COLUMNS, "RESTORE": restore, "num_warps": 4},
    )


def match_words(slots: torch.Tensor, table: torch.Tensor, tokens: torch.Tensor) -> None:
    """Takes in the tokens drawn, [n] int32, and marks the entries of those that would complete a bad word next."""
    key = (slots.device, alignment(slots, tokens))
    _words(key, (len(slots), 1, 1), (slots, table, tokens), {"WIDTH": COLUMNS, "num_warps": 4})


@triton.jit
def _entries_kernel(
    logits_ptr, slots_ptr, table_ptr, factors_ptr, stride_logits, WIDTH: tl.constexpr, RESTORE: tl.constexpr
):
    """Grid: (splits, rows)."""
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    if slot < 0:
        return
    at = table_ptr + slot * WIDTH
    flags = tl.load(at + FLAGS)
    if (flags & (SAVED if RESTORE else ADJUSTED)) == 0:
        return
    factors = factors_ptr + slot * (2 * WIDTH)
    repetition = tl.load(factors + REPETITION)
    presence = tl.load(factors + PRESENCE)
    frequency = tl.load(factors + FREQUENCY)
    capacity = tl.load(at + CAPACITY)
    length = tl.load(at + LENGTH)
    biased = tl.load(at + BIASED)
    early = tl.load(at + POSITION) < tl.load(at + MIN_UNTIL)
    keeps = (flags & SAVED) != 0
    tokens_at = tl.load(at + ENTRIES).to(tl.pointer_type(tl.int32))
    saved_at = (tokens_at + 2 * capacity).to(tl.pointer_type(tl.float32))
    bias_at = saved_at + tl.where(keeps, capacity, 0)
    for start in range(tl.program_id(0) * _BLOCK, length, tl.num_programs(0) * _BLOCK):
        entry = start + tl.arange(0, _BLOCK)
        there = entry < length
        token = tl.load(tokens_at + entry, mask=there, other=0)
        to = logits_ptr + row * stride_logits + token
        if RESTORE:
            tl.store(to, tl.load(saved_at + entry, mask=there, other=0.0), mask=there)
        else:
            state = tl.load(tokens_at + capacity + entry, mask=there, other=0)
            x = tl.load(to, mask=there, other=0.0)
            tl.store(saved_at + entry, x, mask=there & keeps)
            excluded = ((state & (NEVER | NOW)) != 0) | (((state & END) != 0) & early)
            x = tl.where(excluded, float("-inf"), x)
            x += tl.load(bias_at + entry, mask=there & (entry < biased), other=0.0)
            penalized = tl.where(x > 0, x / repetition, x * repetition)
            count = state & COUNT
            penalized -= count.to(tl.float32) * frequency + tl.where(count > 0, presence, 0.0)
            tl.store(to, tl.where((state & SEEN) != 0, penalized, x), mask=there)


@triton.jit
def count_token(at, token):
    """Adds a token of the answer to the entries of the table row that begins at `at`. One program a row."""
    capacity = tl.load(at + CAPACITY)
    length = tl.load(at + LENGTH)
    tokens_at = tl.load(at + ENTRIES).to(tl.pointer_type(tl.int32))
    found = tl.full([_BLOCK], -1, tl.int64)
    for start in range(0, length, _BLOCK):
        entry = start + tl.arange(0, _BLOCK)
        known = tl.load(tokens_at + entry, mask=entry < length, other=-1)
        found = tl.where(known == token, entry, found)
    place = tl.max(found, 0)
    if place >= 0:
        state = tl.load(tokens_at + capacity + place)
        tl.store(tokens_at + capacity + place, (state | SEEN) + 1)
    elif length < capacity:
        tl.store(tokens_at + length, token)
        tl.store(tokens_at + capacity + length, 0 * token + (SEEN + 1))
        tl.store(at + LENGTH, length + 1)


@triton.jit
def _words_kernel(slots_ptr, table_ptr, tokens_ptr, WIDTH: tl.constexpr):
    """Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    if slot < 0:
        return
    at = table_ptr + slot * WIDTH
    if (tl.load(at + FLAGS) & WORDED) == 0:
        return
    token = tl.load(tokens_ptr + row)
    num_words = tl.load(at + NUM_WORDS)
    length = tl.load(at + WORD_LENGTH)
    state_at = tl.load(at + ENTRIES).to(tl.pointer_type(tl.int32)) + tl.load(at + CAPACITY)
    tail_at = tl.load(at + WORDS).to(tl.pointer_type(tl.int32))
    words_at = tail_at + (length - 1)
    for start in range(0, length - 1, _BLOCK):
        place = start + tl.arange(0, _BLOCK)
        moved = tl.load(tail_at + place + 1, mask=place < length - 2, other=0)
        tl.debug_barrier()
        tl.store(tail_at + place, tl.where(place == length - 2, token, moved), mask=place < length - 1)
    tl.debug_barrier()
    # First no entry is marked, then those of the words that match: several words may end with the same token.
    for start in range(0, num_words, _BLOCK):
        word = start + tl.arange(0, _BLOCK)
        there = word < num_words
        entry = tl.load(words_at + word * length, mask=there, other=0)
        state = tl.load(state_at + entry, mask=there, other=0)
        tl.debug_barrier()
        tl.store(state_at + entry, state & ~NOW, mask=there)
    tl.debug_barrier()
    for start in range(0, num_words, _BLOCK):
        word = start + tl.arange(0, _BLOCK)
        there = word < num_words
        matches = there
        for place in range(1, length):
            wanted = tl.load(words_at + word * length + place, mask=there, other=0)
            matches = matches & ((wanted == ANY) | (wanted == tl.load(tail_at + place - 1)))
        entry = tl.load(words_at + word * length, mask=there, other=0)
        state = tl.load(state_at + entry, mask=matches, other=0)
        tl.store(state_at + entry, state | NOW, mask=matches)


_entries, _words = Launcher(_entries_kernel), Launcher(_words_kernel)
