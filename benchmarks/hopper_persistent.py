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
import triton
import triton.language as tl
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

_TYPES: Final = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}


def hopper_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    *,
    step_kv: tuple[torch.Tensor, torch.Tensor] | None = None,
    groups: int = 2,
    keys: int = 128,
    stages: int = 2,
    heads_first: bool = False,
    sort: bool = False,
    programs: int = 132,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `paged_attention` without a window; rows of requests with one token are left as they are.

    d is 64 or 128, a page holds 8 tokens or more, and those of one head are one stretch. step_kv: K and V of the step's
    tokens, if all requests with two tokens or more are whole prompts: then no page is read.
    """
    num_tokens, heads, head_dim = q.shape
    _, page_size, kv_heads, _ = k_cache.shape
    group = heads // kv_heads
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    plan = chunk_tiles(metadata, num_tokens, 64 * groups // group, sort)
    if step_kv is None:
        box = min(page_size, keys)
        k_rows, v_rows = (_page_rows(cache, box) for cache in (k_cache, v_cache))
    else:
        box = keys
        k_rows, v_rows = (
            TensorDescriptor(
                x, [num_tokens, kv_heads * head_dim], [x.stride(0), 1], [box, head_dim], _layout(box, head_dim, x.dtype)
            )
            for x in step_kv
        )
    items = kv_heads * len(plan)
    _hopper_kernel[(min(items, programs),)](
        q,
        k_rows,
        v_rows,
        out,
        plan,
        metadata.block_tables,
        scale * LOG2_E,
        metadata.block_tables.stride(0),
        items,
        kv_heads,
        k_cache.stride(0) // head_dim,
        k_cache.stride(2) // head_dim,
        *q.stride()[:2],
        *out.stride()[:2],
        GROUP=group,
        GROUPS=groups,
        BLOCK_N=keys,
        PAGE_SIZE=page_size if step_kv is None else 0,
        STAGES=stages,
        HEADS_FIRST=heads_first,
        num_warps=4,
        maxnreg=168 if groups == 2 else 128,
    )
    return out


def chunk_tiles(metadata: AttentionMetadata, num_tokens: int, positions: int, sort: bool) -> torch.Tensor:
    """The tiles of so many positions that the step's requests with two tokens or more are cut into, [tiles, 4] int32.

    Of each its first token, that one's position, its request's context and its request; a context of 0 for tiles that
    are not there. Worked out once a step.
    """
    key = ("chunk tiles", positions, sort)
    found: torch.Tensor | None = metadata.plans.get(key)
    if found is None:
        requests = len(metadata.block_tables)
        tiles = num_tokens // positions + requests
        found = metadata.query_start.new_empty(tiles, 4)
        _tiles_kernel[(triton.cdiv(tiles, 128),)](
            metadata.query_start, metadata.context_lens, found, requests, tiles, positions, BLOCK=128
        )
        if sort:
            found = found[found[:, 1].argsort(descending=True)]
        metadata.plans[key] = found
    return found


@triton.jit(
    do_not_specialize=["num_requests", "num_tiles", "positions"],
    do_not_specialize_on_alignment=["query_start_ptr", "context_lens_ptr"],
)
def _tiles_kernel(
    query_start_ptr, context_lens_ptr, found_ptr, num_requests, num_tiles, positions, BLOCK: tl.constexpr
):
    """Grid: blocks of tiles, the last tile of all first: it is likely to have the most keys."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_tiles
    tile = num_tiles - 1 - index
    # Request r's tiles are numbered from query_start[r] // positions + r on: room enough for each, and rising in r.
    request = tl.zeros([BLOCK], tl.int32)
    past = tl.zeros([BLOCK], tl.int32) + num_requests
    for _ in range(31):
        middle = (request + past) // 2
        before = tl.load(query_start_ptr + middle, mask=inside, other=0) // positions + middle <= tile
        request = tl.where(before, middle, request)
        past = tl.where(before, past, middle)
    start = tl.load(query_start_ptr + request, mask=inside, other=0)
    length = tl.load(query_start_ptr + request + 1, mask=inside, other=0) - start
    context = tl.load(context_lens_ptr + request, mask=inside, other=0)
    offset = (tile - start // positions - request) * positions
    there = (offset < length) & (length > 1)
    tl.store(found_ptr + index * 4, start + offset, mask=inside)
    tl.store(found_ptr + index * 4 + 1, tl.where(there, context - length + offset, -1), mask=inside)
    tl.store(found_ptr + index * 4 + 2, tl.where(there, context, 0), mask=inside)
    tl.store(found_ptr + index * 4 + 3, request, mask=inside)


def _page_rows(cache: torch.Tensor, box: int) -> TensorDescriptor:
    """The cache as rows of one head's elements, whoever they belong to: from the first page's to the last one's."""
    pages, page_size, kv_heads, head_dim = cache.shape
    rows = ((pages - 1) * cache.stride(0) + (kv_heads - 1) * cache.stride(2)) // head_dim + page_size
    return TensorDescriptor(
        cache, [rows, head_dim], [head_dim, 1], [box, head_dim], _layout(box, head_dim, cache.dtype)
    )


def _layout(rows: int, columns: int, dtype: torch.dtype) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for([rows, columns], _TYPES[dtype])


@gluon.jit
def _item(item, plan_ptr, items, kv_heads, GROUP: gl.constexpr, GROUPS: gl.constexpr, BLOCK_N: gl.constexpr,
          HEADS_FIRST: gl.constexpr):  # fmt: skip
    """The first token, its position, the context, the request, the key head, and the key tiles of an item of work."""
    if HEADS_FIRST:
        kv_head = item % kv_heads
        at = plan_ptr + item // kv_heads * 4
    else:
        tiles = items // kv_heads
        kv_head = item // tiles
        at = plan_ptr + item % tiles * 4
    first = gl.load(at)
    position = gl.load(at + 1)
    context = gl.load(at + 2)
    request = gl.load(at + 3)
    end = (gl.minimum(position + GROUPS * 64 // GROUP, context) + BLOCK_N - 1) // BLOCK_N
    return first, position, context, request, kv_head, end


@gluon.jit
def _fetch(
    k_rows, v_rows, k_tiles, v_tiles, ready, empty, plan_ptr, tables_ptr, items, kv_heads, stride_table, stride_page,
    stride_head, GROUP: gl.constexpr, GROUPS: gl.constexpr, PAGE_SIZE: gl.constexpr, HEADS_FIRST: gl.constexpr,
):  # fmt: skip
    """The fetching warp. ready, empty: barriers of K's stages, then V's."""
    STAGES: gl.constexpr = k_tiles.type.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.type.shape[1]
    HEAD_DIM: gl.constexpr = k_tiles.type.shape[2]
    BOX: gl.constexpr = k_rows.block_type.shape[0]
    NBYTES: gl.constexpr = BLOCK_N * HEAD_DIM * 2
    count = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        first, position, context, request, kv_head, end = _item(
            item, plan_ptr, items, kv_heads, GROUP, GROUPS, BLOCK_N, HEADS_FIRST
        )
        first = first - position
        table_ptr = tables_ptr + request.to(gl.int64) * stride_table
        for i in range(end):
            tile = end - 1 - i
            stage = (count + i) % STAGES
            phase = ((count + i) // STAGES & 1) ^ 1
            places = _places(
                table_ptr, tile * BLOCK_N, first, kv_head, context, stride_page, stride_head, k_rows.shape[0],
                PAGE_SIZE, BLOCK_N, BOX,
            )  # fmt: skip
            column = kv_head * HEAD_DIM if PAGE_SIZE == 0 else 0
            for half in gl.static_range(2):
                rows = k_rows if half == 0 else v_rows
                tiles = k_tiles if half == 0 else v_tiles
                mbarrier.wait(empty.index(half * STAGES + stage), phase)
                bar = ready.index(half * STAGES + stage)
                mbarrier.expect(bar, NBYTES)
                for piece in gl.static_range(BLOCK_N // BOX):
                    to = tiles.index(stage).slice(piece * BOX, BOX)
                    tma.async_copy_global_to_shared(rows, [places[piece], column], bar, to)
        count += end


@gluon.jit
def _places(
    table_ptr, key, first, kv_head, context, stride_page, stride_head, nowhere,
    PAGE_SIZE: gl.constexpr, BLOCK_N: gl.constexpr, BOX: gl.constexpr,
):  # fmt: skip
    """The rows of K and V that a tile's pieces begin with: all pages are asked for before any is waited for.

    Where the request has no page, the row is one that is not there: then the copy engine writes zeros.
    """
    found = ()
    for piece in gl.static_range(BLOCK_N // BOX):
        at = key + piece * BOX
        if PAGE_SIZE == 0:
            row = first + at
        else:
            page = gl.load(table_ptr + gl.minimum(at, context - 1) // PAGE_SIZE)
            row = gl.where(at < context, page * stride_page + kv_head * stride_head + at % PAGE_SIZE, nowhere)
        found = found + (row,)  # noqa: RUF005
    return found


@gluon.jit
def _compute(
    q_ptr, out_ptr, q_tiles, k_tiles, v_tiles, ready, empty, plan_ptr, scale, items, kv_heads, stride_qt, stride_qh,
    stride_ot, stride_oh, GROUP: gl.constexpr, GROUPS: gl.constexpr, HEADS_FIRST: gl.constexpr, WHICH: gl.constexpr,
):  # fmt: skip
    """A computing group, the rows from 64 · WHICH on.

    first: the token of the tile's first row, which stands at `position`. end: key tiles; whole: those that every row
    sees whole.
    """
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
    q_tile = q_tiles.index(WHICH)
    count = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        first, position, context, _, kv_head, end = _item(
            item, plan_ptr, items, kv_heads, GROUP, GROUPS, BLOCK_N, HEADS_FIRST
        )
        whole = (position + 1) // BLOCK_N
        if context > 0:
            token_l = (first + row_l // GROUP).to(gl.int64)
            head_l = kv_head * GROUP + row_l % GROUP
            there = ((row_l // GROUP < GROUPS * 64 // GROUP) & (position + row_l // GROUP < context))[:, None]
            q_at = q_ptr + (token_l * stride_qt + head_l * stride_qh)[:, None] + column_l[None, :]
            q_tile.store(gl.load(q_at, mask=there, other=0.0))
            fence_async_shared()

            row = WHICH * 64 + gl.arange(0, 64, gl.SliceLayout(1, scores_in))
            row_position = gl.minimum(position + row // GROUP, context - 1)
            n = gl.arange(0, BLOCK_N, gl.SliceLayout(0, scores_in))
            nothing = gl.full([64, BLOCK_N], 0.0, gl.float32, scores_in)
            acc = gl.full([64, HEAD_DIM], 0.0, gl.float32, mix_in)
            m = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, scores_in))
            total = gl.full([64], 0.0, gl.float32, gl.SliceLayout(1, scores_in))

            # The first tile, the one with the last keys.
            stage = count % STAGES
            mbarrier.wait(ready.index(stage), count // STAGES & 1)
            scores = warpgroup_mma(q_tile, k_tiles.index(stage).permute((1, 0)), nothing, use_acc=False)
            mbarrier.arrive(empty.index(stage), count=1)
            scores = gl.where(((end - 1) * BLOCK_N + n)[None, :] <= row_position[:, None], scores, float("-inf"))
            m, total, old, p = _weigh(scores, m, total, scale, True)
            weights = gl.convert_layout(p.to(dtype), weights_in)
            mbarrier.wait(ready.index(STAGES + stage), count // STAGES & 1)
            if end * BLOCK_N > context:
                # Rows of the tile that are not the request's: 0 · NaN is NaN. Both groups write the same.
                v_lines: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
                v_row = (end - 1) * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(1, v_lines))
                v = v_tiles.index(stage).load(v_lines)
                v_tiles.index(stage).store(gl.where((v_row < context)[:, None], v, 0.0))
                fence_async_shared()

            for i in range(1, end):
                at = count + i
                stage = at % STAGES
                before = (at - 1) % STAGES
                mbarrier.wait(ready.index(stage), at // STAGES & 1)
                next_scores = warpgroup_mma(
                    q_tile, k_tiles.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True
                )
                mbarrier.wait(ready.index(STAGES + before), (at - 1) // STAGES & 1)
                next_acc = warpgroup_mma(weights, v_tiles.index(before), acc, is_async=True)
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

            last = (count + end - 1) % STAGES
            mbarrier.wait(ready.index(STAGES + last), (count + end - 1) // STAGES & 1)
            acc = warpgroup_mma(weights, v_tiles.index(last), acc)
            mbarrier.arrive(empty.index(STAGES + last), count=1)
            acc = acc / gl.convert_layout(total, gl.SliceLayout(1, mix_in))[:, None]
            q_tile.store(acc.to(dtype))
            out_at = out_ptr + (token_l * stride_ot + head_l * stride_oh)[:, None] + column_l[None, :]
            gl.store(out_at, q_tile.load(lines), mask=there)
            count += end


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


@gluon.jit(
    do_not_specialize=["scale", "stride_table", "items"], do_not_specialize_on_alignment=["plan_ptr", "tables_ptr"]
)
def _hopper_kernel(
    q_ptr, k_rows, v_rows, out_ptr, plan_ptr, tables_ptr, scale, stride_table, items, kv_heads, stride_page,
    stride_head, stride_qt, stride_qh, stride_ot, stride_oh, GROUP: gl.constexpr, GROUPS: gl.constexpr,
    BLOCK_N: gl.constexpr, PAGE_SIZE: gl.constexpr, STAGES: gl.constexpr, HEADS_FIRST: gl.constexpr,
):  # fmt: skip
    """Grid: (programs,), each of which takes every so manieth item."""
    HEAD_DIM: gl.constexpr = k_rows.block_type.shape[1]
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, HEAD_DIM], k_rows.dtype)
    q_tiles = gl.allocate_shared_memory(k_rows.dtype, [GROUPS, 64, HEAD_DIM], layout)
    k_tiles = gl.allocate_shared_memory(k_rows.dtype, [STAGES, BLOCK_N, HEAD_DIM], layout)
    v_tiles = gl.allocate_shared_memory(k_rows.dtype, [STAGES, BLOCK_N, HEAD_DIM], layout)
    ready = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2 * STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(empty.index(i), count=GROUPS)
    fetching = (
        k_rows, v_rows, k_tiles, v_tiles, ready, empty, plan_ptr, tables_ptr, items, kv_heads, stride_table,
        stride_page, stride_head, GROUP, GROUPS, PAGE_SIZE, HEADS_FIRST,
    )  # fmt: skip
    first_group = (
        q_ptr, out_ptr, q_tiles, k_tiles, v_tiles, ready, empty, plan_ptr, scale, items, kv_heads, stride_qt,
        stride_qh, stride_ot, stride_oh, GROUP, GROUPS, HEADS_FIRST, 0,
    )  # fmt: skip
    second_group = (
        q_ptr, out_ptr, q_tiles, k_tiles, v_tiles, ready, empty, plan_ptr, scale, items, kv_heads, stride_qt,
        stride_qh, stride_ot, stride_oh, GROUP, GROUPS, HEADS_FIRST, 1,
    )  # fmt: skip
    if GROUPS == 2:
        gl.warp_specialize([(_compute, first_group), (_compute, second_group), (_fetch, fetching)], [4, 1], [240, 24])
    else:
        gl.warp_specialize([(_compute, first_group), (_fetch, fetching)], [1], [24])
