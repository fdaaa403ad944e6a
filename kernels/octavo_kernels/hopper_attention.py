# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Attention of whole prompts on Hopper, its warps divided by their work (in Gluon, Triton's lower language).

Two groups of four warps compute, each for 64 rows; one warp fetches K and V tiles for both, some tiles ahead, by the
copy engine. The groups share the tensor cores: while one works out the weights of a tile, the other multiplies. Within
a group the next tile's scores are under way while the last tile's values are added up. After Shah et al.,
"FlashAttention-3", 2024.

The key tiles are taken from the last to the first: only the first ones taken need a mask.
"""

from typing import Final

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.paged_attention import LOG2_E

ROWS: Final = 128  # of a program
_TYPES: Final = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}


def hopper_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    *,
    keys: int = 128,
    stages: int = 2,
    heads_first: bool = False,
    ping_pong: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `prompt_attention`, without a window; d is 64 or 128."""
    num_tokens, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    tiles = num_tokens // (ROWS // group) + len(metadata.block_tables)
    layout = gl.NVMMASharedLayout.get_default_for([keys, head_dim], _TYPES[q.dtype])
    k_rows, v_rows = (
        TensorDescriptor(x, [num_tokens, kv_heads * head_dim], [x.stride(0), 1], [keys, head_dim], layout)
        for x in (k, v)
    )
    grid = (kv_heads, tiles) if heads_first else (tiles, kv_heads)
    _kernel[grid](
        q,
        k_rows,
        v_rows,
        out,
        metadata.query_start,
        scale * LOG2_E,
        len(metadata.block_tables),
        *q.stride()[:2],
        *out.stride()[:2],
        GROUP=group,
        BLOCK_M=ROWS,
        STAGES=stages,
        HEADS_FIRST=heads_first,
        PING_PONG=ping_pong,
        num_warps=4,
        maxnreg=168,
    )
    return out


@gluon.jit
def _fetch(k_rows, v_rows, k_tiles, v_tiles, ready, empty, first, column, end):
    """The fetching warp. ready, empty: barriers of K's stages, then V's."""
    STAGES: gl.constexpr = k_tiles.type.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.type.shape[1]
    for i in range(end):
        row = first + (end - 1 - i) * BLOCK_N
        stage = i % STAGES
        phase = (i // STAGES & 1) ^ 1
        mbarrier.wait(empty.index(stage), phase)
        mbarrier.expect(ready.index(stage), k_rows.block_type.nbytes)
        tma.async_copy_global_to_shared(k_rows, [row, column], ready.index(stage), k_tiles.index(stage))
        mbarrier.wait(empty.index(STAGES + stage), phase)
        mbarrier.expect(ready.index(STAGES + stage), v_rows.block_type.nbytes)
        tma.async_copy_global_to_shared(v_rows, [row, column], ready.index(STAGES + stage), v_tiles.index(stage))


@gluon.jit
def _compute(
    q_ptr, out_ptr, q_tiles, k_tiles, v_tiles, ready, empty, turn, scale, first, length, position, kv_head, end, whole,
    stride_qt, stride_qh, stride_ot, stride_oh, GROUP: gl.constexpr, WHICH: gl.constexpr, PING_PONG: gl.constexpr,
):  # fmt: skip
    """A computing group, the rows from 64 · WHICH on. end: key tiles; whole: those that every row sees whole."""
    STAGES: gl.constexpr = k_tiles.type.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.type.shape[1]
    HEAD_DIM: gl.constexpr = k_tiles.type.shape[2]
    dtype: gl.constexpr = q_tiles.dtype
    scores_in: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    mix_in: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    weights_in: gl.constexpr = gl.DotOperandLayout(0, mix_in, 2)
    lines: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])

    row_l = WHICH * 64 + gl.arange(0, 64, gl.SliceLayout(1, lines))
    column_l = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, lines))
    token_l = (first + position + row_l // GROUP).to(gl.int64)
    head_l = kv_head * GROUP + row_l % GROUP
    there = ((row_l // GROUP < BLOCK_Q_OF(GROUP)) & (position + row_l // GROUP < length))[:, None]
    q_at = q_ptr + (token_l * stride_qt + head_l * stride_qh)[:, None] + column_l[None, :]
    q_tile = q_tiles.index(WHICH)
    q_tile.store(gl.load(q_at, mask=there, other=0.0))
    fence_async_shared()

    row = WHICH * 64 + gl.arange(0, 64, gl.SliceLayout(1, scores_in))
    row_position = gl.minimum(position + row // GROUP, length - 1)
    n = gl.arange(0, BLOCK_N, gl.SliceLayout(0, scores_in))
    nothing = gl.full([64, BLOCK_N], 0.0, gl.float32, scores_in)
    acc = gl.full([64, HEAD_DIM], 0.0, gl.float32, mix_in)
    m = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, scores_in))
    total = gl.full([64], 0.0, gl.float32, gl.SliceLayout(1, scores_in))

    # The first tile, the one with the last keys.
    mbarrier.wait(ready.index(0), 0)
    scores = warpgroup_mma(q_tile, k_tiles.index(0).permute((1, 0)), nothing, use_acc=False)
    mbarrier.arrive(empty.index(0), count=1)
    scores = gl.where(((end - 1) * BLOCK_N + n)[None, :] <= row_position[:, None], scores, float("-inf"))
    m, total, old, p = _weigh(scores, m, total, scale, True)
    weights = gl.convert_layout(p.to(dtype), weights_in)
    mbarrier.wait(ready.index(STAGES), 0)
    if end * BLOCK_N > length:
        # Rows of the tile that are another request's: 0 · NaN is NaN.
        v_lines: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
        v_row = (end - 1) * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(1, v_lines))
        v = v_tiles.index(0).load(v_lines)
        v_tiles.index(0).store(gl.where((v_row < length)[:, None], v, 0.0))
        fence_async_shared()

    for i in range(1, end):
        stage = i % STAGES
        before = (i - 1) % STAGES
        if PING_PONG:
            mbarrier.wait(turn.index(WHICH), (i - 1) & 1)
        mbarrier.wait(ready.index(stage), i // STAGES & 1)
        next_scores = warpgroup_mma(q_tile, k_tiles.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(ready.index(STAGES + before), (i - 1) // STAGES & 1)
        next_acc = warpgroup_mma(weights, v_tiles.index(before), acc, is_async=True)
        if PING_PONG:
            mbarrier.arrive(turn.index(1 - WHICH), count=1)
        scores = warpgroup_mma_wait(1, deps=[next_scores])
        mbarrier.arrive(empty.index(stage), count=1)
        tile = end - 1 - i
        if tile >= whole:
            scores = gl.where((tile * BLOCK_N + n)[None, :] <= row_position[:, None], scores, float("-inf"))
        m, total, old, p = _weigh(scores, m, total, scale, True)
        next_weights = gl.convert_layout(p.to(dtype), weights_in)
        acc, weights = warpgroup_mma_wait(0, deps=[next_acc, weights])
        mbarrier.arrive(empty.index(STAGES + before), count=1)
        acc = acc * gl.convert_layout(old, gl.SliceLayout(1, mix_in))[:, None]
        weights = next_weights

    last = (end - 1) % STAGES
    mbarrier.wait(ready.index(STAGES + last), (end - 1) // STAGES & 1)
    acc = warpgroup_mma(weights, v_tiles.index(last), acc)
    acc = acc / gl.convert_layout(total, gl.SliceLayout(1, mix_in))[:, None]
    q_tile.store(acc.to(dtype))
    out_at = out_ptr + (token_l * stride_ot + head_l * stride_oh)[:, None] + column_l[None, :]
    gl.store(out_at, q_tile.load(lines), mask=there)


@gluon.constexpr_function
def BLOCK_Q_OF(group):
    return ROWS // group


@gluon.jit
def _weigh(scores, m, total, scale, MASKED: gl.constexpr):
    """m and total with the scores taken in, what sums under the old m are to be multiplied by, and exp(scores − m)."""
    m_new = gl.maximum(m, gl.max(scores, 1) * scale)
    finite = m_new
    if MASKED:
        finite = gl.where(m_new == float("-inf"), 0.0, m_new)
    p = gl.exp2(scores * scale - finite[:, None])
    old = gl.exp2(m - finite)
    return m_new, total * old + gl.sum(p, 1), old, p


@gluon.jit(do_not_specialize=["scale", "num_requests"], do_not_specialize_on_alignment=["query_start_ptr"])
def _kernel(
    q_ptr, k_rows, v_rows, out_ptr, query_start_ptr, scale, num_requests, stride_qt, stride_qh, stride_ot, stride_oh,
    GROUP: gl.constexpr, BLOCK_M: gl.constexpr, STAGES: gl.constexpr, HEADS_FIRST: gl.constexpr,
    PING_PONG: gl.constexpr,
):  # fmt: skip
    """Grid: (tiles of positions, kv_heads), the last tile first; the other way round if HEADS_FIRST."""
    BLOCK_Q: gl.constexpr = BLOCK_M // GROUP
    BLOCK_N: gl.constexpr = k_rows.block_type.shape[0]
    HEAD_DIM: gl.constexpr = k_rows.block_type.shape[1]
    if HEADS_FIRST:
        kv_head = gl.program_id(0)
        tile = gl.num_programs(1) - 1 - gl.program_id(1)
    else:
        kv_head = gl.program_id(1)
        tile = gl.num_programs(0) - 1 - gl.program_id(0)
    request = 0
    past = num_requests
    while past - request > 1:
        middle = (request + past) // 2
        if gl.load(query_start_ptr + middle) // BLOCK_Q + middle <= tile:
            request = middle
        else:
            past = middle
    first = gl.load(query_start_ptr + request)
    length = gl.load(query_start_ptr + request + 1) - first
    position = (tile - first // BLOCK_Q - request) * BLOCK_Q
    if (position < length) & (length > 1):
        last = gl.minimum(position + BLOCK_Q, length) - 1
        end = last // BLOCK_N + 1
        whole = (position + 1) // BLOCK_N

        q_tiles = gl.allocate_shared_memory(
            k_rows.dtype, [2, 64, HEAD_DIM], gl.NVMMASharedLayout.get_default_for([64, HEAD_DIM], k_rows.dtype)
        )
        k_tiles = gl.allocate_shared_memory(k_rows.dtype, [STAGES, BLOCK_N, HEAD_DIM], k_rows.layout)
        v_tiles = gl.allocate_shared_memory(k_rows.dtype, [STAGES, BLOCK_N, HEAD_DIM], v_rows.layout)
        ready = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], mbarrier.MBarrierLayout())
        empty = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], mbarrier.MBarrierLayout())
        turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
        for i in gl.static_range(2 * STAGES):
            mbarrier.init(ready.index(i), count=1)
            mbarrier.init(empty.index(i), count=2)
        for i in gl.static_range(2):
            mbarrier.init(turn.index(i), count=1)
        if PING_PONG:
            mbarrier.arrive(turn.index(0), count=1)
        column = kv_head * HEAD_DIM
        gl.warp_specialize(
            [
                (
                    _compute,
                    (
                        q_ptr, out_ptr, q_tiles, k_tiles, v_tiles, ready, empty, turn, scale, first, length, position,
                        kv_head, end, whole, stride_qt, stride_qh, stride_ot, stride_oh, GROUP, 0, PING_PONG,
                    ),
                ),
                (
                    _compute,
                    (
                        q_ptr, out_ptr, q_tiles, k_tiles, v_tiles, ready, empty, turn, scale, first, length, position,
                        kv_head, end, whole, stride_qt, stride_qh, stride_ot, stride_oh, GROUP, 1, PING_PONG,
                    ),
                ),
                (_fetch, (k_rows, v_rows, k_tiles, v_tiles, ready, empty, first, column, end)),
            ],
            [4, 1],
            [240, 24],
        )  # fmt: skip
