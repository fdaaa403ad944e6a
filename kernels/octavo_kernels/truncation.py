# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Drawing from a part of the vocabulary in Triton: min-p, top-k, top-p, without sorting it.

What a row keeps is the beginning of an order: tokens by rising distance d = (M − l) / T from the likeliest, equal ones
by rising id. Of those with d ≤ −log min_p the first k, and of these the first so many that the weights e⁻ᵈ of the ones
before each are less than top_p of the whole.

A small k is for `few_tokens`. For a larger one the last distance is found in eight passes, four of its bits in each, by
counting the tokens below sixteen distances. For top-p no threshold is looked for: from all that may still be kept a
token is drawn with the request's noise; in the next pass the weights before it are summed up, and another one is drawn
from those before it. If the sum is small enough the token is among those kept, and as it wins against more than these
it wins against these. If not, it and all behind it are not kept, and the other one is looked at. Each token looked at
is drawn by its probability, so the chance to be done is top_p for the first one, and what is left shrinks to a part of
it that is uniform between 0 and 1.

Sums are of float64, over the same elements in the same order for each row. The twin is
`octavo_server.worker.sampler.processed_logits`.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from octavo_kernels.launching import Launcher, alignment
from octavo_kernels.sampling import COUNTS_A_ROW, SamplingWorkspace
from octavo_kernels.sampling_noise import HALF, LOG2_E, log2_exponential, position_key, words
from octavo_kernels.sampling_table import (
    COLUMNS,
    CUT,
    FLAGS,
    INVERSE_TEMPERATURE,
    MIN_P,
    POSITION,
    STREAM,
    TOP_K,
    TOP_P,
)

_FAR: Final = tl.constexpr(0x7F800000)  # bits of an infinite distance
_LEVELS: Final = tl.constexpr(8)  # digits of a distance
_COUNTS: Final = tl.constexpr(COUNTS_A_ROW)
_PIVOT_BLOCK: Final = tl.constexpr(1024)
_NOBODY: Final = tl.constexpr(2147483647)


def count_distances(logits: torch.Tensor, slots: torch.Tensor, table: torch.Tensor, work: SamplingWorkspace) -> None:
    """For `draw_cut`, where a row with CUT has a top-k: digit by digit its last distance, in eight passes."""
    rows, blocks, vocab_size = len(slots), work.winner.shape[1], logits.shape[1]
    work.counts[:rows].zero_()
    for level in range(_LEVELS.value):
        _count(
            (logits.device, logits.dtype, logits.stride(0), vocab_size, alignment(logits, slots)),
            (blocks, rows, 1),
            (
                logits,
                slots,
                table,
                table.view(torch.float32),
                work.highest,
                work.counts,
                logits.stride(0),
                vocab_size,
                blocks,
                level,
            ),
            {"BLOCKS": triton.next_power_of_2(blocks), "WIDTH": COLUMNS, "num_warps": 8},
        )


def draw_cut(
    logits: torch.Tensor, slots: torch.Tensor, table: torch.Tensor, work: SamplingWorkspace, num_warps: int = 16
) -> None:
    """Draws for the rows with CUT, after `draw_blocks`. logits: [n, vocab]. slots: [n] int64."""
    vocab_size, blocks = logits.shape[1], work.winner.shape[1]
    _cut(
        (logits.device, logits.dtype, logits.stride(0), vocab_size, num_warps, alignment(logits, slots)),
        (len(slots), 1, 1),
        (
            logits,
            slots,
            table,
            table.view(torch.float32),
            work.highest,
            work.counts,
            work.chosen,
            logits.stride(0),
            vocab_size,
            blocks,
        ),
        {"BLOCKS": triton.next_power_of_2(blocks), "WIDTH": COLUMNS, "num_warps": num_warps},
    )


@triton.jit
def _distance(at, token, vocab_size, top, inverse, min_p):
    """([B] float32 scaled logits, [B] int32 the bits of their distances), infinite for what is excluded."""
    x = tl.load(at + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
    scaled = (x - top) * inverse
    scaled = tl.where(scaled >= min_p, scaled, float("-inf"))
    return scaled, tl.abs(scaled).to(tl.int32, bitcast=True)


@triton.jit
def _prefix(counts_at, count, levels):
    """Of the `count`-th distance the first `levels` digits of four bits, and how many tokens are below them."""
    prefix, before = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    for level in range(0, levels):
        found = tl.load(counts_at + level * 16 + tl.arange(0, 16))
        prefix = prefix * 16 + tl.sum((found < count).to(tl.int32), 0) - 1
        before = tl.max(tl.where(found < count, found, 0), 0)
    return prefix, before


@triton.jit(do_not_specialize=["level"])
def _count_kernel(
    logits_ptr,
    slots_ptr,
    table_ptr,
    factors_ptr,
    highest_ptr,
    counts_ptr,
    stride_logits,
    vocab_size,
    blocks,
    level,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Grid: (blocks, rows). Sixteen distances divide those that begin as the `count`-th: how many are below each?"""
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    if slot < 0:
        return
    table, factors = table_ptr + slot * WIDTH, factors_ptr + slot * (2 * WIDTH)
    count = tl.load(table + TOP_K)
    if ((tl.load(table + FLAGS) & CUT) == 0) | (count <= 0) | (count >= vocab_size):
        return
    block = tl.arange(0, BLOCKS)
    top = tl.max(tl.load(highest_ptr + row * blocks + block, mask=block < blocks, other=float("-inf")), 0)
    inverse, min_p = tl.load(factors + INVERSE_TEMPERATURE), tl.load(factors + MIN_P)
    counts_at = counts_ptr + row * _COUNTS
    prefix, _before = _prefix(counts_at, count.to(tl.int32), level)
    pivot = (prefix.to(tl.int64) * 16 + tl.arange(0, 16)) << (28 - 4 * level)
    pivot = tl.minimum(pivot, _FAR + 1).to(tl.int32)
    below = tl.zeros([_PIVOT_BLOCK, 16], tl.int32)
    for part in range(0, 2 * HALF // _PIVOT_BLOCK):
        token = tl.program_id(0) * (2 * HALF) + part * _PIVOT_BLOCK + tl.arange(0, _PIVOT_BLOCK)
        _scaled, bits = _distance(logits_ptr + row * stride_logits, token, vocab_size, top, inverse, min_p)
        bits = tl.where(token < vocab_size, bits, _NOBODY)
        below += (bits[:, None] < pivot[None, :]).to(tl.int32)
    tl.atomic_add(counts_at + level * 16 + tl.arange(0, 16), tl.sum(below, 0), sem="relaxed")


@triton.jit
def _last_of_top_k(at, vocab_size, top, inverse, min_p, count, counts_at):
    """(bits of the distance, id) of the `count`-th token in the order; there are more than so many."""
    prefix, before = _prefix(counts_at, count, _LEVELS)
    # Of those at this distance the first `count - before` are kept.
    last, seen = tl.full([], -1, tl.int32), before
    for start in range(0, vocab_size, _PIVOT_BLOCK):
        token = start + tl.arange(0, _PIVOT_BLOCK)
        _, bits = _distance(at, token, vocab_size, top, inverse, min_p)
        equal = ((bits == prefix) & (token < vocab_size)).to(tl.int32)
        more = tl.sum(equal, 0)
        if (seen < count) & (seen + more >= count):
            rank = seen + tl.cumsum(equal, 0)
            last = tl.max(tl.where((equal > 0) & (rank <= count), token, -1), 0)
        seen += more
    return prefix, last


@triton.jit
def _draw_before(at, vocab_size, top, inverse, min_p, key, end_bits, end_token):
    """Of the tokens before (end_bits, end_token): (their weight, then the bits and the id of the one drawn)."""
    lane = tl.arange(0, HALF)
    weight = tl.zeros([HALF], tl.float64)
    best = tl.full([HALF], float("-inf"), tl.float32)
    best_token = tl.full([HALF], _NOBODY, tl.int32)
    for start in range(0, vocab_size, 2 * HALF):
        high, low = words(key, start // 2 + lane)
        for second in tl.static_range(2):
            token = start + second * HALF + lane
            scaled, bits = _distance(at, token, vocab_size, top, inverse, min_p)
            inside = (bits < end_bits) | ((bits == end_bits) & (token < end_token))
            scaled = tl.where(inside, scaled, float("-inf"))
            weight += tl.exp(scaled).to(tl.float64)
            score = scaled * LOG2_E - log2_exponential(low if second else high)
            better = score > best
            best = tl.where(better, score, best)
            best_token = tl.where(better, token, best_token)
    winner = tl.min(tl.where(best == tl.max(best, 0), best_token, _NOBODY), 0)
    _, bits = _distance(at, tl.minimum(winner, vocab_size - 1), vocab_size, top, inverse, min_p)
    return tl.sum(weight, 0), bits, winner


@triton.jit
def _cut_kernel(
    logits_ptr,
    slots_ptr,
    table_ptr,
    factors_ptr,
    highest_ptr,
    counts_ptr,
    chosen_ptr,
    stride_logits,
    vocab_size,
    blocks,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    if slot < 0:
        return
    table, factors = table_ptr + slot * WIDTH, factors_ptr + slot * (2 * WIDTH)
    if (tl.load(table + FLAGS) & CUT) == 0:
        return
    block = tl.arange(0, BLOCKS)
    top = tl.max(tl.load(highest_ptr + row * blocks + block, mask=block < blocks, other=float("-inf")), 0)
    if (top == float("inf")) | (top == float("-inf")):
        return
    at = logits_ptr + row * stride_logits
    inverse, min_p = tl.load(factors + INVERSE_TEMPERATURE), tl.load(factors + MIN_P)
    key = position_key(tl.load(table + STREAM), tl.load(table + POSITION))
    top_k = tl.load(table + TOP_K)
    bits, token = tl.full([], _FAR, tl.int32), tl.full([], 0, tl.int32)
    if (top_k > 0) & (top_k < vocab_size):
        bits, token = _last_of_top_k(
            at, vocab_size, top, inverse, min_p, top_k.to(tl.int32), counts_ptr + row * _COUNTS
        )
        token += 1
    total, bits, token = _draw_before(at, vocab_size, top, inverse, min_p, key, bits, token)
    top_p = tl.load(factors + TOP_P)
    enough = top_p.to(tl.float64) * total
    looking = top_p < 1.0
    while looking:
        before, next_bits, next_token = _draw_before(at, vocab_size, top, inverse, min_p, key, bits, token)
        looking = (before > 0.0) & (before >= enough)
        if looking:
            bits, token = next_bits, next_token
    tl.store(chosen_ptr + row, tl.minimum(token, vocab_size - 1))


_count, _cut = Launcher(_count_kernel), Launcher(_cut_kernel)
