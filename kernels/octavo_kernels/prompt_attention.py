# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Attention of whole prompts: K and V are those of the step itself, in the order of its rows, and no page is read.

What a step computes lies in one matrix, [T, (heads + 2 kv_heads) · d]; tensor descriptors fetch a tile of one head's
keys from it as from any matrix. So a request whose first token is in the step needs no copy out of the pages, which
takes as long as a sixth of the attention of a prompt of 512 tokens. The mathematics are `attention_kernel`'s.

A descriptor knows the matrix, not the requests in it: past a request's last key it reads on into the next request. The
scores of such keys are hidden, but 0 · NaN is NaN: their values are read through pointers and a mask.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.paged_attention import LOG2_E, AttentionConfig

_LONG: Final = 4096


def prompt_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
    config: AttentionConfig | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of the requests with two tokens or more in the step, which must all be whole prompts.

    q: [T, heads, d], k, v: [T, kv_heads, d], of the step's rows; views of any stride between tokens that is a multiple
    of 16 bytes, d a power of two. Rows of requests with one token are left as they are. No synchronisation.
    """
    num_tokens, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    config = config or prompt_config(group, metadata.max_query_len or num_tokens)
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    tiles = num_tokens // (config.block_rows // group) + len(metadata.block_tables)
    k_rows, v_rows = (
        TensorDescriptor(x, [num_tokens, kv_heads * head_dim], [x.stride(0), 1], [config.block_keys, head_dim])
        for x in (k, v)
    )
    prompt_kernel[(tiles, kv_heads)](
        q,
        k_rows,
        v_rows,
        v,
        out,
        metadata.query_start,
        scale * LOG2_E,
        len(metadata.block_tables),
        *q.stride()[:2],
        *out.stride()[:2],
        v.stride(0),
        GROUP=group,
        HEAD_DIM=head_dim,
        WINDOW=sliding_window or 0,
        BLOCK_M=config.block_rows,
        BLOCK_N=config.block_keys,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def takes_prompts(q: torch.Tensor, metadata: AttentionMetadata) -> bool:
    """Whether `prompt_attention` computes the step's requests with two tokens or more: what they are, type and size."""
    head_dim = q.shape[2]
    fits = 16 <= head_dim <= 128 and head_dim.bit_count() == 1 and q.dtype != torch.float32
    return metadata.whole_prompts and metadata.max_query_len != 1 and fits


def prompt_config(group: int, longest: int) -> AttentionConfig:
    """Rows, keys, warps and stages by the longest prompt's tokens."""
    rows, *rest = (128, 128, 8, 3) if longest >= _LONG else (64, 64, 4, 3)
    return AttentionConfig(max(rows, triton.next_power_of_2(group)), *rest)


@triton.jit(do_not_specialize=["scale", "num_requests"], do_not_specialize_on_alignment=["query_start_ptr"])
def prompt_kernel(
    q_ptr,
    k_rows,
    v_rows,
    v_ptr,
    out_ptr,
    query_start_ptr,
    scale,
    num_requests,
    stride_qt,
    stride_qh,
    stride_ot,
    stride_oh,
    stride_vt,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid: (tiles of positions, kv_heads), the last tile first: it has the most keys."""
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(1)
    # Request r's tiles are numbered from query_start[r] // BLOCK_Q + r on: room enough for each, and rising in r.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    request = 0
    past = num_requests
    while past - request > 1:
        middle = (request + past) // 2
        if tl.load(query_start_ptr + middle) // BLOCK_Q + middle <= tile:
            request = middle
        else:
            past = middle
    first = tl.load(query_start_ptr + request)
    length = tl.load(query_start_ptr + request + 1) - first
    position = (tile - first // BLOCK_Q - request) * BLOCK_Q
    if position >= length or length == 1:
        return
    count = tl.minimum(BLOCK_Q, length - position)
    m_rows = tl.arange(0, BLOCK_M)
    row = m_rows // GROUP
    head = kv_head * GROUP + m_rows % GROUP
    d = tl.arange(0, HEAD_DIM)
    mask = (row < count)[:, None]
    tokens = (first + position + row).to(tl.int64)
    q = tl.load(q_ptr + tokens[:, None] * stride_qt + head[:, None] * stride_qh + d[None, :], mask=mask, other=0.0)
    row_position = position + tl.minimum(row, count - 1)  # rows that only fill up see what the last one sees
    last = position + count - 1

    n = tl.arange(0, BLOCK_N)
    column = kv_head * HEAD_DIM
    v_head_ptr = v_ptr + first.to(tl.int64) * stride_vt + column
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.full([BLOCK_M], 0.0, tl.float32)
    acc = tl.full([BLOCK_M, HEAD_DIM], 0.0, tl.float32)
    # Tiles that every row sees whole need no mask: those between the window's edge and the first row's position.
    begin = 0
    whole_from = 0
    if WINDOW > 0:
        begin = tl.maximum(0, position - WINDOW + 1) // BLOCK_N
        whole_from = (tl.maximum(0, last - WINDOW + 1) + BLOCK_N - 1) // BLOCK_N
    end = last // BLOCK_N + 1
    whole_to = tl.maximum(begin, (position + 1) // BLOCK_N)
    whole_from = tl.minimum(whole_from, whole_to)
    for phase in tl.static_range(0 if WINDOW > 0 else 1, 3):
        start = begin if phase == 0 else (whole_from if phase == 1 else whole_to)
        stop = whole_from if phase == 0 else (whole_to if phase == 1 else end)
        for block in range(start, stop):
            key = block * BLOCK_N + n
            k = k_rows.load([first + block * BLOCK_N, column])
            if phase == 2:
                v_at = v_head_ptr + key.to(tl.int64)[:, None] * stride_vt + d[None, :]
                v = tl.load(v_at, mask=(key <= last)[:, None], other=0.0)
            else:
                v = v_rows.load([first + block * BLOCK_N, column])
            scores = tl.dot(q, tl.trans(k))
            if phase != 1:
                seen = key[None, :] <= row_position[:, None]
                if WINDOW > 0:
                    seen = seen & (key[None, :] > row_position[:, None] - WINDOW)
                scores = tl.where(seen, scores, float("-inf"))
            m_new = tl.maximum(m, tl.max(scores, 1) * scale)
            finite = m_new
            if phase != 1:
                finite = tl.where(m_new == float("-inf"), 0.0, m_new)
            p = tl.exp2(scores * scale - finite[:, None])
            old = tl.exp2(m - finite)
            total = total * old + tl.sum(p, 1)
            acc = tl.dot(p.to(v.dtype), v, acc * old[:, None])
            m = m_new
    found = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + tokens[:, None] * stride_ot + head[:, None] * stride_oh + d[None, :], found, mask=mask)
