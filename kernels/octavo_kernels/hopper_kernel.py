# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The device's side of `hopper_attention`, in Gluon, Triton's lower language: warps divided by their work.

One or two groups of four warps compute, each for 64 rows; one warp fetches K and V tiles for both, some tiles ahead.
The groups share the tensor cores: while one works out the weights of a tile, the other multiplies. Within a group the
scores of the next tile are under way while the values of the last one are summed up: Shah et al., "FlashAttention-3",
2024. Rows, running maximum, sum and mix are as in `attention_kernel`.

Key tiles are taken from the last to the first: those that need a mask come first. A program takes one tile of rows
after the other, and the fetching warp does not wait for the others to be done with it.
"""

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


@gluon.jit(
    do_not_specialize=["scale", "stride_table", "k_offset", "v_offset", "order"],
    do_not_specialize_on_alignment=["tiles_ptr", "tables_ptr"],
)
def hopper_kernel(
    q_ptr, k_rows, v_rows, out_ptr, tiles_ptr, tables_ptr, scale, stride_table, k_offset, v_offset, order,
    stride_page, stride_head, stride_qt, stride_qh, stride_ot, stride_oh, KV_HEADS: gl.constexpr, GROUP: gl.constexpr,
    GROUPS: gl.constexpr, BLOCK_N: gl.constexpr, PAGE_SIZE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Grid: (programs,). An item of work is a tile of `chunk_tiles` and a key head; a program takes one a round.

    order: 1 if the key heads of a tile follow each other, 0 if the tiles of a key head do; and 2 if every second round
    goes backwards, so that no program has the most work in each where items have less and less.
    k_rows, v_rows: descriptors of [rows, HEAD_DIM], boxes of a piece of a page; the first page's first row is at
    k_offset (v_offset), the next page's is stride_page behind it, the next head's stride_head.
    """
    HEAD_DIM: gl.constexpr = k_rows.block_type.shape[1]
    tiles = gl.load(tiles_ptr)
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, HEAD_DIM], k_rows.dtype)
    q_tiles = gl.allocate_shared_memory(k_rows.dtype, [GROUPS, 64, HEAD_DIM], layout)
    k_tiles = gl.allocate_shared_memory(k_rows.dtype, [STAGES, BLOCK_N, HEAD_DIM], layout)
    v_tiles = gl.allocate_shared_memory(k_rows.dtype, [STAGES, BLOCK_N, HEAD_DIM], layout)
    # Barriers of K's stages, then of V's.
    ready = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], mbarrier.MBarrierLayout())
    cleaned = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(cleaned, count=GROUPS)
    for i in gl.static_range(2 * STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(empty.index(i), count=GROUPS)
    # The tuples stand here in full: in a variable, constants would become values.
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (_compute, (
                    q_ptr, out_ptr, q_tiles, k_tiles, v_tiles, ready, empty, cleaned, tiles_ptr, tiles, order,
                    scale, stride_qt, stride_qh, stride_ot, stride_oh, KV_HEADS, GROUP, GROUPS, 0,
                )),
                (_compute, (
                    q_ptr, out_ptr, q_tiles, k_tiles, v_tiles, ready, empty, cleaned, tiles_ptr, tiles, order,
                    scale, stride_qt, stride_qh, stride_ot, stride_oh, KV_HEADS, GROUP, GROUPS, 1,
                )),
                (_fetch, (
                    k_rows, v_rows, k_tiles, v_tiles, ready, empty, tiles_ptr, tables_ptr, tiles, order,
                    stride_table, k_offset, v_offset, stride_page, stride_head, KV_HEADS, GROUP, GROUPS, PAGE_SIZE,
                )),
            ],
            [4, 1],
            [240, 24],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_compute, (
                    q_ptr, out_ptr, q_tiles, k_tiles, v_tiles, ready, empty, cleaned, tiles_ptr, tiles, order,
                    scale, stride_qt, stride_qh, stride_ot, stride_oh, KV_HEADS, GROUP, GROUPS, 0,
                )),
                (_fetch, (
                    k_rows, v_rows, k_tiles, v_tiles, ready, empty, tiles_ptr, tables_ptr, tiles, order,
                    stride_table, k_offset, v_offset, stride_page, stride_head, KV_HEADS, GROUP, GROUPS, PAGE_SIZE,
                )),
            ],
            [1],
            [24],
        )  # fmt: skip


@gluon.jit
def _taken(turn, order):
    """The item that this program takes in its turn."""
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    return turn * programs + gl.where((turn & (order >> 1)) == 0, program, programs - 1 - program)


@gluon.jit
def _turns(items, order):
    """How many items this program takes."""
    whole = items // gl.num_programs(0)
    return whole + (_taken(whole, order) < items).to(gl.int32)


@gluon.jit
def _item(item, tiles_ptr, tiles, order, KV_HEADS: gl.constexpr):
    """The first token, its position, the context, the request and the key head of an item of work."""
    kv_head = gl.where((order & 1) != 0, item % KV_HEADS, item // tiles)
    at = tiles_ptr + 4 + gl.where((order & 1) != 0, item // KV_HEADS, item % tiles) * 4
    return gl.load(at), gl.load(at + 1), gl.load(at + 2), gl.load(at + 3), kv_head


@gluon.jit
def _key_tiles(position, context, BLOCK_Q: gl.constexpr, BLOCK_N: gl.constexpr):
    """How many tiles of keys the rows from `position` on see."""
    return (gl.minimum(position + BLOCK_Q, context) + BLOCK_N - 1) // BLOCK_N


@gluon.jit
def _fetch(
    k_rows, v_rows, k_tiles, v_tiles, ready, empty, tiles_ptr, tables_ptr, tiles, order, stride_table,
    k_offset, v_offset, stride_page, stride_head, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, GROUPS: gl.constexpr,
    PAGE_SIZE: gl.constexpr,
):  # fmt: skip
    """The fetching warp."""
    STAGES: gl.constexpr = k_tiles.type.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.type.shape[1]
    BOX: gl.constexpr = k_rows.block_type.shape[0]
    BLOCK_Q: gl.constexpr = GROUPS * 64 // GROUP
    done = 0  # key tiles of the items before
    for turn in range(_turns(tiles * KV_HEADS, order)):
        _, position, context, request, kv_head = _item(_taken(turn, order), tiles_ptr, tiles, order, KV_HEADS)
        table_ptr = tables_ptr + request.to(gl.int64) * stride_table
        end = _key_tiles(position, context, BLOCK_Q, BLOCK_N)
        for i in range(end):
            stage = (done + i) % STAGES
            phase = ((done + i) // STAGES & 1) ^ 1
            head_row = kv_head * stride_head
            places = _places(
                table_ptr, (end - 1 - i) * BLOCK_N, context, head_row, stride_page, k_rows.shape[0],
                PAGE_SIZE, BLOCK_N, BOX,
            )  # fmt: skip
            for half in gl.static_range(2):
                rows = k_rows if half == 0 else v_rows
                stages = k_tiles if half == 0 else v_tiles
                offset = k_offset if half == 0 else v_offset
                mbarrier.wait(empty.index(half * STAGES + stage), phase)
                bar = ready.index(half * STAGES + stage)
                mbarrier.expect(bar, BLOCK_N // BOX * rows.block_type.nbytes)
                for piece in gl.static_range(BLOCK_N // BOX):
                    to = stages.index(stage).slice(piece * BOX, BOX)
                    tma.async_copy_global_to_shared(rows, [places[piece] + offset, 0], bar, to)
        done += end


@gluon.jit
def _places(
    table_ptr, first_key, context, head_row, stride_page, nowhere, PAGE_SIZE: gl.constexpr, BLOCK_N: gl.constexpr,
    BOX: gl.constexpr,
):  # fmt: skip
    """The rows that a tile's pieces begin with: all pages are asked for before any is waited for.

    Where the request has no page, the row is one that is not there: then the copy engine writes zeros.
    """
    found = ()
    for piece in gl.static_range(BLOCK_N // BOX):
        key = first_key + piece * BOX
        page = gl.load(table_ptr + gl.minimum(key, context - 1) // PAGE_SIZE)
        row = gl.where(key < context, page * stride_page + head_row + key % PAGE_SIZE, nowhere)
        found = found + (row,)  # type: ignore[assignment]  # noqa: RUF005
    return found


@gluon.jit
def _compute(
    q_ptr, out_ptr, q_tiles, k_tiles, v_tiles, ready, empty, cleaned, tiles_ptr, tiles, order, scale, stride_qt,
    stride_qh, stride_ot, stride_oh, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, GROUPS: gl.constexpr,
    WHICH: gl.constexpr,
):  # fmt: skip
    """A computing group: rows 64 · WHICH to 64 · WHICH + 63 of each tile."""
    BLOCK_N: gl.constexpr = k_tiles.type.shape[1]
    HEAD_DIM: gl.constexpr = k_tiles.type.shape[2]
    BLOCK_Q: gl.constexpr = GROUPS * 64 // GROUP
    lines: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    row = WHICH * 64 + gl.arange(0, 64, gl.SliceLayout(1, lines))
    d = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, lines))
    q_tile = q_tiles.index(WHICH)
    done = 0
    cleanings = 0
    for turn in range(_turns(tiles * KV_HEADS, order)):
        first, position, context, _, kv_head = _item(_taken(turn, order), tiles_ptr, tiles, order, KV_HEADS)
        token = (first + row // GROUP).to(gl.int64)
        head = kv_head * GROUP + row % GROUP
        there = ((row // GROUP < BLOCK_Q) & (position + row // GROUP < context))[:, None]
        q_at = q_ptr + (token * stride_qt + head * stride_qh)[:, None] + d[None, :]
        q_tile.store(gl.load(q_at, mask=there, other=0.0))
        fence_async_shared()
        end = _key_tiles(position, context, BLOCK_Q, BLOCK_N)
        mix = _attend(
            q_tile, k_tiles, v_tiles, ready, empty, cleaned, scale, position, context, end, done, cleanings, GROUP,
            GROUPS, WHICH,
        )  # fmt: skip
        done += end
        cleanings += (end * BLOCK_N > context).to(gl.int32)
        q_tile.store(mix.to(q_tile.dtype))
        out_at = out_ptr + (token * stride_ot + head * stride_oh)[:, None] + d[None, :]
        gl.store(out_at, q_tile.load(lines), mask=there)


@gluon.jit
def _attend(
    q_tile, k_tiles, v_tiles, ready, empty, cleaned, scale, position, context, end, done, cleanings,
    GROUP: gl.constexpr, GROUPS: gl.constexpr, WHICH: gl.constexpr,
):  # fmt: skip
    """The mix of values, [64, HEAD_DIM] float32, over key tiles end − 1 to 0."""
    STAGES: gl.constexpr = k_tiles.type.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.type.shape[1]
    HEAD_DIM: gl.constexpr = k_tiles.type.shape[2]
    dtype: gl.constexpr = q_tile.dtype
    scores_in: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    mix_in: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    weights_in: gl.constexpr = gl.DotOperandLayout(0, mix_in, 2)
    row = WHICH * 64 + gl.arange(0, 64, gl.SliceLayout(1, scores_in))
    row_position = gl.minimum(position + row // GROUP, context - 1)
    n = gl.arange(0, BLOCK_N, gl.SliceLayout(0, scores_in))
    whole = (position + 1) // BLOCK_N  # tiles before this one are seen whole by every row
    nothing = gl.full([64, BLOCK_N], 0.0, gl.float32, scores_in)
    mix = gl.full([64, HEAD_DIM], 0.0, gl.float32, mix_in)
    m = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, scores_in))
    total = gl.full([64], 0.0, gl.float32, gl.SliceLayout(1, scores_in))

    stage = done % STAGES
    mbarrier.wait(ready.index(stage), done // STAGES & 1)
    scores = warpgroup_mma(q_tile, k_tiles.index(stage).permute((1, 0)), nothing, use_acc=False)
    mbarrier.arrive(empty.index(stage), count=1)
    scores = gl.where(((end - 1) * BLOCK_N + n)[None, :] <= row_position[:, None], scores, float("-inf"))
    m, total, old, p = _weigh(scores, m, total, scale)
    weights = gl.convert_layout(p.to(dtype), weights_in)
    mbarrier.wait(ready.index(STAGES + stage), done // STAGES & 1)
    if end * BLOCK_N > context:
        # Values past the context's end: 0 · NaN is NaN. Each group clears a part of the tile, and both wait for both.
        PART: gl.constexpr = BLOCK_N // GROUPS
        lines: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
        key = (end - 1) * BLOCK_N + WHICH * PART + gl.arange(0, PART, gl.SliceLayout(1, lines))
        part = v_tiles.index(stage).slice(WHICH * PART, PART)
        v = part.load(lines)
        part.store(gl.where((key < context)[:, None], v, 0.0))
        fence_async_shared()
        mbarrier.arrive(cleaned, count=1)
        mbarrier.wait(cleaned, cleanings & 1)

    for i in range(1, end):
        at = done + i
        stage = at % STAGES
        before = (at - 1) % STAGES
        mbarrier.wait(ready.index(stage), at // STAGES & 1)
        next_scores = warpgroup_mma(q_tile, k_tiles.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(ready.index(STAGES + before), (at - 1) // STAGES & 1)
        next_mix = warpgroup_mma(weights, v_tiles.index(before), mix, is_async=True)
        scores = warpgroup_mma_wait(1, deps=[next_scores])
        mbarrier.arrive(empty.index(stage), count=1)
        tile = end - 1 - i
        if tile >= whole:
            scores = gl.where((tile * BLOCK_N + n)[None, :] <= row_position[:, None], scores, float("-inf"))
        m, total, old, p = _weigh(scores, m, total, scale)
        next_weights = gl.convert_layout(p.to(dtype), weights_in)
        mix, weights = warpgroup_mma_wait(0, deps=[next_mix, weights])
        mbarrier.arrive(empty.index(STAGES + before), count=1)
        mix = mix * gl.convert_layout(old, gl.SliceLayout(1, mix_in))[:, None]
        weights = next_weights

    at = done + end - 1
    mbarrier.wait(ready.index(STAGES + at % STAGES), at // STAGES & 1)
    mix = warpgroup_mma(weights, v_tiles.index(at % STAGES), mix)
    mbarrier.arrive(empty.index(STAGES + at % STAGES), count=1)
    return mix / gl.convert_layout(total, gl.SliceLayout(1, mix_in))[:, None]


@gluon.jit
def _weigh(scores, m, total, scale):
    """m and total with the scores taken in, what sums under the old m are to be multiplied by, and exp(scores − m)."""
    m_new = gl.maximum(m, gl.max(scores, 1) * scale)
    finite = gl.where(m_new == float("-inf"), 0.0, m_new)  # nothing seen yet: −∞ − −∞ is no number
    p = gl.exp2(scores * scale - finite[:, None])
    old = gl.exp2(m - finite)
    return m_new, total * old + gl.sum(p, 1), old, p


@triton.jit(
    do_not_specialize=["num_requests", "positions"],
    do_not_specialize_on_alignment=["query_start_ptr", "context_lens_ptr"],
)
def tiles_kernel(query_start_ptr, context_lens_ptr, found_ptr, num_requests, positions, BLOCK: tl.constexpr):
    """Grid: (1,). Writes how many tiles there are, and from the next row on the tiles, the last one of all first."""
    count = 0
    for first in range(0, num_requests, BLOCK):
        _, _, parts = _parts(query_start_ptr, first + tl.arange(0, BLOCK), num_requests, positions)
        count += tl.sum(parts, 0)
    tl.store(found_ptr, count)
    before = 0
    for first in range(0, num_requests, BLOCK):
        request = first + tl.arange(0, BLOCK)
        start, length, parts = _parts(query_start_ptr, request, num_requests, positions)
        context = tl.load(context_lens_ptr + request, mask=request < num_requests, other=0)
        row = count - (before + tl.cumsum(parts, 0) - parts)
        for part in range(tl.max(parts, 0)):
            at = found_ptr + (row - part) * 4
            offset = part * positions
            tl.store(at, start + offset, mask=part < parts)
            tl.store(at + 1, context - length + offset, mask=part < parts)
            tl.store(at + 2, context, mask=part < parts)
            tl.store(at + 3, request, mask=part < parts)
        before += tl.sum(parts, 0)


@triton.jit
def _parts(query_start_ptr, request, num_requests, positions):
    """First token, length and number of tiles of requests; no tiles of those with less than two tokens."""
    start = tl.load(query_start_ptr + request, mask=request < num_requests, other=0)
    end = tl.load(query_start_ptr + request + 1, mask=request < num_requests, other=0)
    return start, end - start, tl.where(end - start > 1, (end - start + positions - 1) // positions, 0)
