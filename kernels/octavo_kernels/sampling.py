# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Drawing the next tokens in Triton, in one pass over the logits; the twin is `octavo_server.worker.sampler`.

A row of the logits is divided into blocks of 2 · HALF tokens, so that one row alone keeps the whole device busy. For a
block a program finds

    m = max l,   and the token with the greatest  (l − m) / T · log₂ e − log₂ E     (greedy rows: l itself)

where E is exponential noise that depends on seed, position and token id alone: the token is then one drawn from
softmax(l / T). A second, tiny kernel puts the blocks together: it adds (m − M) / T · log₂ e, with M the row's maximum,
takes the greatest, writes it where the next step looks for it, and counts the position up. Of equal ones the lowest id
wins. Rows that look at a part of the vocabulary only take their token in between, in `few_tokens` or `truncation`.

Parameters and positions are read from the table (`sampling_table`) on the device, the grid depends on the sizes of the
logits alone: a step uploads nothing, and all this can stand in a CUDA graph. A row's result depends on nothing but the
row: each sum and maximum is taken over the same elements in the same order whatever stands beside it.
"""

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl

from octavo_kernels.launching import Launcher, alignment
from octavo_kernels.logit_entries import count_token
from octavo_kernels.sampling_noise import HALF, LOG2_E, log2_exponential, position_key, words
from octavo_kernels.sampling_table import (
    COLUMNS,
    COUNTED,
    CUT,
    FEW,
    FLAGS,
    INVERSE_TEMPERATURE,
    POSITION,
    STREAM,
)

GROUP: Final = tl.constexpr(128)  # tokens of which the greatest logit is kept where somebody looks for the likeliest
BLOCK_TOKENS: Final = 2 * int(HALF)
GROUP_TOKENS: Final = int(GROUP)
COUNTS_A_ROW: Final = 8 * 16


@dataclass(frozen=True, slots=True)
class SamplingWorkspace:
    """What the kernels leave for each other of n rows with b blocks and g groups.

    highest, score: [n, b] float32, a block's greatest logit (+inf if there is none: a NaN or an infinity) and its
    winner's score. winner: [n, b] int32. groups: [n, g] float32. counts: [n, COUNTS_A_ROW] int32, of
    tokens, and chosen: [n] int32, what was drawn, by `truncation`.
    """

    highest: torch.Tensor
    score: torch.Tensor
    winner: torch.Tensor
    groups: torch.Tensor
    counts: torch.Tensor
    chosen: torch.Tensor

    @classmethod
    def allocate(cls, rows: int, vocab_size: int, device: torch.device) -> "SamplingWorkspace":
        """For up to `rows` rows."""
        blocks, groups = triton.cdiv(vocab_size, BLOCK_TOKENS), triton.cdiv(vocab_size, GROUP_TOKENS)
        return cls(
            torch.empty(rows, blocks, device=device),
            torch.empty(rows, blocks, device=device),
            torch.empty(rows, blocks, dtype=torch.int32, device=device),
            torch.empty(rows, groups, device=device),
            torch.empty(rows, COUNTS_A_ROW, dtype=torch.int32, device=device),
            torch.empty(rows, dtype=torch.int32, device=device),
        )


def draw_blocks(
    logits: torch.Tensor, slots: torch.Tensor, table: torch.Tensor, work: SamplingWorkspace, num_warps: int = 8
) -> None:
    """The first pass. logits: [n, vocab], of any float type. slots: [n] int64, below 0 for rows that are nobody's.

    table: [slots, COLUMNS] int64.
    """
    rows, vocab_size = len(slots), logits.shape[1]
    blocks = work.winner.shape[1]
    _draw(
        (logits.device, logits.dtype, logits.stride(0), vocab_size, num_warps, alignment(logits, slots)),
        (blocks, rows, 1),
        (
            logits,
            slots,
            table,
            table.view(torch.float32),
            work.highest,
            work.score,
            work.winner,
            work.groups,
            logits.stride(0),
            vocab_size,
            work.groups.shape[1],
        ),
        {"WIDTH": COLUMNS, "num_warps": num_warps},
    )


def finish_draw(
    slots: torch.Tensor,
    table: torch.Tensor,
    work: SamplingWorkspace,
    last: torch.Tensor,
    tokens: torch.Tensor,
) -> None:
    """The second pass. last: [slots] int64, the tokens that the next step takes; tokens: [n] int32, what was drawn.

    A row without a distribution gets −1, and some token of the vocabulary in `last`.
    """
    blocks = work.winner.shape[1]
    _finish(
        (slots.device, blocks, alignment(slots, tokens)),
        (len(slots), 1, 1),
        (
            slots,
            table,
            table.view(torch.float32),
            work.highest,
            work.score,
            work.winner,
            work.chosen,
            last,
            tokens,
            blocks,
        ),
        {"BLOCKS": triton.next_power_of_2(blocks), "WIDTH": COLUMNS, "num_warps": 4},
    )


@triton.jit
def _draw_kernel(
    logits_ptr,
    slots_ptr,
    table_ptr,
    factors_ptr,
    highest_ptr,
    score_ptr,
    winner_ptr,
    groups_ptr,
    stride_logits,
    vocab_size,
    groups,
    WIDTH: tl.constexpr,
):
    """Grid: (blocks, rows)."""
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    if slot < 0:
        return
    lane = tl.arange(0, HALF)
    token = block * (2 * HALF) + lane
    at = logits_ptr + row * stride_logits
    first = tl.load(at + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
    second = tl.load(at + token + HALF, mask=token + HALF < vocab_size, other=float("-inf")).to(tl.float32)
    highest = tl.max(tl.maximum(first, second), 0)
    broken = tl.max(((first != first) | (second != second)).to(tl.int32), 0)
    highest = tl.where(broken > 0, float("inf"), highest)
    flags = tl.load(table_ptr + slot * WIDTH + FLAGS)
    inverse = tl.load(factors_ptr + slot * (2 * WIDTH) + INVERSE_TEMPERATURE)
    out = row * tl.num_programs(0) + block
    tl.store(highest_ptr + out, highest)
    if (flags & FEW) != 0:
        group = block * (2 * HALF // GROUP) + tl.arange(0, HALF // GROUP)
        to = groups_ptr + row * groups
        tl.store(to + group, tl.max(tl.reshape(first, [HALF // GROUP, GROUP]), 1), mask=group < groups)
        group += HALF // GROUP
        tl.store(to + group, tl.max(tl.reshape(second, [HALF // GROUP, GROUP]), 1), mask=group < groups)
    if (flags & (FEW | CUT)) == 0:
        if inverse > 0.0:
            # A block of nothing but excluded tokens has no greatest logit that could be subtracted.
            base = tl.where(highest == float("-inf"), 0.0, highest)
            scale = LOG2_E * inverse
            key = position_key(tl.load(table_ptr + slot * WIDTH + STREAM), tl.load(table_ptr + slot * WIDTH + POSITION))
            high, low = words(key, block * HALF + lane)
            first = (first - base) * scale - log2_exponential(high)
            second = (second - base) * scale - log2_exponential(low)
        best = tl.max(tl.maximum(first, second), 0)
        candidate = tl.where(first == best, token, tl.where(second == best, token + HALF, 2147483647))
        tl.store(score_ptr + out, tl.where(inverse > 0.0, best, 0.0))
        tl.store(winner_ptr + out, tl.minimum(tl.min(candidate, 0), vocab_size - 1))


@triton.jit
def _finish_kernel(
    slots_ptr,
    table_ptr,
    factors_ptr,
    highest_ptr,
    score_ptr,
    winner_ptr,
    chosen_ptr,
    last_ptr,
    tokens_ptr,
    blocks,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    if slot < 0:
        return
    block = tl.arange(0, BLOCKS)
    there = block < blocks
    at = row * blocks + block
    highest = tl.load(highest_ptr + at, mask=there, other=float("-inf"))
    top = tl.max(highest, 0)
    usable = (top != float("inf")) & (top != float("-inf"))
    flags = tl.load(table_ptr + slot * WIDTH + FLAGS)
    if (flags & (FEW | CUT)) != 0:
        token = tl.load(chosen_ptr + row)
    else:
        inverse = tl.load(factors_ptr + slot * (2 * WIDTH) + INVERSE_TEMPERATURE)
        scale = tl.where(inverse > 0.0, LOG2_E * inverse, 1.0)
        score = tl.load(score_ptr + at, mask=there, other=float("-inf"))
        score = tl.where(highest == float("-inf"), float("-inf"), (highest - top) * scale + score)
        winner = tl.load(winner_ptr + at, mask=there, other=2147483647)
        token = tl.min(tl.where(score == tl.max(score, 0), winner, 2147483647), 0)
    token = tl.where(usable, token, 0)
    tl.store(last_ptr + slot, token.to(tl.int64))
    tl.store(tokens_ptr + row, tl.where(usable, token, -1))
    position = tl.load(table_ptr + slot * WIDTH + POSITION)
    tl.store(table_ptr + slot * WIDTH + POSITION, position + 1)
    if (flags & COUNTED) != 0:
        count_token(table_ptr + slot * WIDTH, token)


_draw, _finish = Launcher(_draw_kernel), Launcher(_finish_kernel)
