# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Log-probabilities of chosen tokens, their ranks and the likeliest tokens in Triton, without sorting the vocabulary.

One pass in blocks of tokens: each leaves its greatest logit m, Σ exp(l − m), how many logits exceed the chosen token's,
and the greatest of each group of 128. Then a program a row puts them together:

    log p = l − M − log Σ_b e^(m_b − M) Σ exp(l − m_b)

and finds the likeliest tokens among the groups as `few_tokens` does. The twin is `octavo_server.worker.logprobs`.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from octavo_kernels.few_tokens import likeliest
from octavo_kernels.launching import Launcher, alignment
from octavo_kernels.sampling import BLOCK_TOKENS, GROUP, GROUP_TOKENS

MOST_LIKELIEST: Final = 32


def logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the rows [w] int64 of logits [n, vocab], and of tokens [n] int32: (ids, values, ranks).

    ids: [w, 1 + count] int64, the token itself, then the likeliest ones. values: as many, float32. ranks: [w] int64,
    from 1. A token below 0 stands for none. count: 0 to MOST_LIKELIEST and at most the vocabulary's size.
    """
    vocab_size, device = logits.shape[1], logits.device
    blocks, groups = triton.cdiv(vocab_size, BLOCK_TOKENS), triton.cdiv(vocab_size, GROUP_TOKENS)
    stats = torch.empty(3, len(rows), blocks, device=device)
    leaders = torch.empty(len(rows), groups, device=device)
    key = (logits.device, logits.dtype, tokens.dtype, logits.stride(0), vocab_size, alignment(logits, tokens, rows))
    _stats(
        (*key, count > 0),
        (blocks, len(rows), 1),
        (logits, tokens, rows, stats, leaders, logits.stride(0), vocab_size, groups, stats.stride(0)),
        {"GROUPED": count > 0, "BLOCK": BLOCK_TOKENS, "num_warps": 8},
    )
    ids = torch.empty(len(rows), 1 + count, dtype=torch.int64, device=device)
    values = torch.empty(len(rows), 1 + count, device=device)
    ranks = torch.empty(len(rows), dtype=torch.int64, device=device)
    _merge(
        key,
        (len(rows), 1, 1),
        (
            logits,
            tokens,
            rows,
            stats,
            leaders,
            ids,
            values,
            ranks,
            logits.stride(0),
            vocab_size,
            blocks,
            groups,
            stats.stride(0),
            count,
        ),
        {
            "BLOCKS": triton.next_power_of_2(blocks),
            "GROUPS": triton.next_power_of_2(groups),
            "MOST": MOST_LIKELIEST,
            "num_warps": 8,
        },
    )
    return ids, values, ranks


@triton.jit(do_not_specialize=["groups", "stride_stats"])
def _stats_kernel(
    logits_ptr,
    tokens_ptr,
    rows_ptr,
    stats_ptr,
    leaders_ptr,
    stride_logits,
    vocab_size,
    groups,
    stride_stats,
    GROUPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (blocks, rows)."""
    block, index = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = tl.load(rows_ptr + index)
    at = logits_ptr + row * stride_logits
    chosen = tl.load(at + tl.maximum(tl.load(tokens_ptr + row), 0)).to(tl.float32)
    token = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(at + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
    highest = tl.max(x, 0)
    weights = tl.exp(x - tl.where(highest == float("-inf"), 0.0, highest))
    to = stats_ptr + index * tl.num_programs(0) + block
    tl.store(to, highest)
    tl.store(to + stride_stats, tl.sum(weights, 0))
    tl.store(to + 2 * stride_stats, tl.sum((x > chosen).to(tl.int32), 0).to(tl.float32))
    if GROUPED:
        group = block * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
        leader = tl.max(tl.reshape(x, [BLOCK // GROUP, GROUP]), 1)
        tl.store(leaders_ptr + index * groups + group, leader, mask=group < groups)


@triton.jit(do_not_specialize=["count", "groups", "blocks", "stride_stats"])
def _logprobs_kernel(
    logits_ptr,
    tokens_ptr,
    rows_ptr,
    stats_ptr,
    leaders_ptr,
    ids_ptr,
    values_ptr,
    ranks_ptr,
    stride_logits,
    vocab_size,
    blocks,
    groups,
    stride_stats,
    count,
    BLOCKS: tl.constexpr,
    GROUPS: tl.constexpr,
    MOST: tl.constexpr,
):
    """Grid: (rows,)."""
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + index)
    at = logits_ptr + row * stride_logits
    token = tl.maximum(tl.load(tokens_ptr + row), 0)
    chosen = tl.load(at + token).to(tl.float32)
    block = tl.arange(0, BLOCKS)
    from_ = stats_ptr + index * blocks + block
    highest = tl.load(from_, mask=block < blocks, other=float("-inf"))
    top = tl.max(highest, 0)
    weights = tl.load(from_ + stride_stats, mask=block < blocks, other=0.0)
    normalizer = top + tl.log(tl.sum(tl.exp(highest - top) * weights, 0))
    above = tl.load(from_ + 2 * stride_stats, mask=block < blocks, other=0.0)
    tl.store(ranks_ptr + index, tl.sum(above.to(tl.int32), 0).to(tl.int64) + 1)
    out = index * (count + 1)
    tl.store(ids_ptr + out, token.to(tl.int64))
    tl.store(values_ptr + out, chosen - normalizer)
    if count > 0:
        values, ids = likeliest(at, leaders_ptr + index * groups, groups, vocab_size, count, GROUPS, MOST)
        lane = tl.arange(0, MOST)
        tl.store(ids_ptr + out + 1 + lane, ids.to(tl.int64), mask=lane < count)
        tl.store(values_ptr + out + 1 + lane, values - normalizer, mask=lane < count)


_stats, _merge = Launcher(_stats_kernel), Launcher(_logprobs_kernel)
