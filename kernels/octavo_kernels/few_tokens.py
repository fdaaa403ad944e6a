# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Drawing from the k likeliest tokens in Triton, k ≤ 64, without sorting the vocabulary.

The k first tokens, by falling logit and equal ones by rising id, lie in the k groups of 128 whose own first ones come
first: each group that is passed over has k tokens before it. So k rounds of maximum find the groups, of which the pass
before has left the greatest logits, and k more find the tokens among 64 · 128, in one program a row. They come in their
order: min-p and top-p need no more than a cumulative sum. What is kept, and the twin, are as in `truncation`.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from octavo_kernels.launching import Launcher, alignment
from octavo_kernels.sampling import GROUP, SamplingWorkspace
from octavo_kernels.sampling_noise import LOG2_E, log2_noise, position_key
from octavo_kernels.sampling_table import (
    COLUMNS,
    FEW,
    FLAGS,
    INVERSE_TEMPERATURE,
    MIN_P,
    POSITION,
    STREAM,
    TOP_K,
    TOP_P,
)

MOST_FEW: Final = 64
_NOBODY: Final = tl.constexpr(2147483647)


def draw_few(
    logits: torch.Tensor, slots: torch.Tensor, table: torch.Tensor, work: SamplingWorkspace, num_warps: int = 8
) -> None:
    """Draws for the rows with FEW, after `draw_blocks`. logits: [n, vocab]. slots: [n] int64."""
    vocab_size, (blocks, groups) = logits.shape[1], (work.winner.shape[1], work.groups.shape[1])
    _few(
        (logits.device, logits.dtype, logits.stride(0), vocab_size, num_warps, alignment(logits, slots)),
        (len(slots), 1, 1),
        (
            logits,
            slots,
            table,
            table.view(torch.float32),
            work.highest,
            work.groups,
            work.chosen,
            logits.stride(0),
            vocab_size,
            blocks,
            groups,
        ),
        {
            "BLOCKS": triton.next_power_of_2(blocks),
            "GROUPS": triton.next_power_of_2(groups),
            "MOST": MOST_FEW,
            "WIDTH": COLUMNS,
            "num_warps": num_warps,
        },
    )


@triton.jit
def ordered(x):
    """int32 in the order of float32, both zeros being one."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _ranked(x, index):
    """int64: greater for a greater float, and of equal ones for the lower index; its negative ends in the index."""
    return (ordered(x).to(tl.int64) << 32) - index.to(tl.int64)


@triton.jit
def likeliest(at, groups_at, groups, vocab_size, count, GROUPS: tl.constexpr, MOST: tl.constexpr):
    """The `count` greatest of a row's logits, MOST at most: ([MOST] float32, [MOST] int32 ids), in their order.

    at: where the row begins. groups_at: the greatest of each of its groups. Behind `count` stand -inf and the id 0.
    """
    lowest = tl.full([], -9223372036854775808, tl.int64)
    lane = tl.arange(0, MOST)
    index = tl.arange(0, GROUPS)
    leader = tl.load(groups_at + index, mask=index < groups, other=float("-inf"))
    keys = tl.where(index < groups, _ranked(leader, index), lowest)
    chosen = tl.full([MOST], -1, tl.int32)
    before = tl.full([], 9223372036854775807, tl.int64)
    for place in range(0, count):
        before = tl.max(tl.where(keys < before, keys, lowest), 0)
        chosen = tl.where((lane == place) & (before != lowest), (0 - before).to(tl.int32), chosen)
    token = chosen[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    there = (chosen[:, None] >= 0) & (token < vocab_size)
    x = tl.load(at + token, mask=there, other=float("-inf")).to(tl.float32)
    keys = tl.where(there, _ranked(x, token), lowest)
    values = tl.full([MOST], float("-inf"), tl.float32)
    ids = tl.full([MOST], 0, tl.int32)
    before = tl.full([], 9223372036854775807, tl.int64)
    for place in range(0, count):
        before = tl.max(tl.max(tl.where(keys < before, keys, lowest), 1), 0)
        token_id = (0 - before).to(tl.int32)
        bits = ((before + token_id) >> 32).to(tl.int32)
        value = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)
        found = (lane == place) & (before != lowest)
        values = tl.where(found, value, values)
        ids = tl.where(found, token_id, ids)
    return values, ids


@triton.jit
def _few_kernel(
    logits_ptr,
    slots_ptr,
    table_ptr,
    factors_ptr,
    highest_ptr,
    groups_ptr,
    chosen_ptr,
    stride_logits,
    vocab_size,
    blocks,
    groups,
    BLOCKS: tl.constexpr,
    GROUPS: tl.constexpr,
    MOST: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    if slot < 0:
        return
    at, factors = table_ptr + slot * WIDTH, factors_ptr + slot * (2 * WIDTH)
    if (tl.load(at + FLAGS) & FEW) == 0:
        return
    block = tl.arange(0, BLOCKS)
    top = tl.max(tl.load(highest_ptr + row * blocks + block, mask=block < blocks, other=float("-inf")), 0)
    if (top == float("inf")) | (top == float("-inf")):
        return
    count = tl.minimum(tl.load(at + TOP_K).to(tl.int32), vocab_size)
    values, ids = likeliest(
        logits_ptr + row * stride_logits, groups_ptr + row * groups, groups, vocab_size, count, GROUPS, MOST
    )
    scaled = (values - top) * tl.load(factors + INVERSE_TEMPERATURE)
    scaled = tl.where(scaled >= tl.load(factors + MIN_P), scaled, float("-inf"))
    weights = tl.exp(scaled).to(tl.float64)
    total = tl.cumsum(weights, 0)
    top_p = tl.load(factors + TOP_P)
    enough = tl.where(top_p < 1.0, top_p, 2.0).to(tl.float64) * tl.sum(weights, 0)  # a rounded sum must not cut any
    kept = (scaled > float("-inf")) & ((tl.arange(0, MOST) == 0) | (total - weights < enough))
    key = position_key(tl.load(at + STREAM), tl.load(at + POSITION))
    score = tl.where(kept, scaled * LOG2_E - log2_noise(key, ids), float("-inf"))
    winner = tl.min(tl.where(score == tl.max(score, 0), ids, _NOBODY), 0)
    tl.store(chosen_ptr + row, tl.minimum(winner, vocab_size - 1))


_few = Launcher(_few_kernel)
