# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The device's side of `paged_attention`, which tells how the work is cut: a program's tiles, and the merge of splits.

K and V come from pages through pointers, or, gathered into one stretch, through tensor descriptors: then the copy
engine fetches whole tiles, and no thread works out addresses.
"""

import triton
import triton.language as tl

from octavo_kernels.programmatic_launch import fetch, let_next_come, wait_for_inputs


# Sizes and places that vary between steps must not make a kernel of their own.
@triton.jit(
    do_not_specialize=["scale", "num_requests", "stride_table"],
    do_not_specialize_on_alignment=["query_start_ptr", "context_lens_ptr", "tables_ptr"],
)
def attention_kernel(
    q_ptr,
    k_ptr,  # as v_ptr; GATHERED: a descriptor of [kv_heads · requests · stride_kp, HEAD_DIM], boxes of BLOCK_N rows
    v_ptr,
    out_ptr,
    mix_ptr,  # PARTIAL: [requests, heads, splits, BLOCK_D] float32, acc
    stats_ptr,  # PARTIAL: [requests, heads, splits, 2] float32, m and total
    query_start_ptr,
    context_lens_ptr,
    tables_ptr,
    scale,  # times log2(e): powers of two are what the hardware computes; positive
    num_requests,
    stride_table,
    stride_qt,
    stride_qh,
    stride_ot,
    stride_oh,
    stride_kp,
    stride_kt,
    stride_kh,
    stride_vp,
    stride_vt,
    stride_vh,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    LEAST: tl.constexpr,  # tiles of a split, where SPLIT is 0
    GATHERED: tl.constexpr,  # K and V are no pages, but one stretch; stride_kp is the rows of a request there
    DECODE: tl.constexpr,
    PARTIAL: tl.constexpr,
    HEADS_FIRST: tl.constexpr,  # DECODE: the order of the grid's first two dimensions is the other way round
    FETCH: tl.constexpr,  # DECODE: pages of a split whose K and V are fetched into the L2 before q is there
    OVERLAP: tl.constexpr,
):
    """Grid: (requests, kv_heads, splits) if DECODE, else (tiles of positions, kv_heads, 1), the last tile first."""
    HEAD_AXIS: tl.constexpr = 0 if HEADS_FIRST else 1
    kv_head = tl.program_id(HEAD_AXIS)
    if DECODE:
        # What the step was given no kernel of it writes: it is there before q.
        request = tl.program_id(1 - HEAD_AXIS)
        first_row = tl.load(query_start_ptr + request)
        count = tl.load(query_start_ptr + request + 1) - first_row
        context = tl.load(context_lens_ptr + request)
        position = context - 1
        begin, end = _split(position, WINDOW, BLOCK_N, SPLIT, LEAST)
        if OVERLAP > 0 and FETCH > 0:  # noqa: SIM102, as the compiler knows this one
            if (begin < end) & (count == 1):
                page = begin * BLOCK_N // PAGE_SIZE + tl.arange(0, FETCH)
                page = tl.minimum(page, tl.minimum(end * BLOCK_N - 1, position) // PAGE_SIZE)
                page = tl.load(tables_ptr + request.to(tl.int64) * stride_table + page).to(tl.int64)
                fetch(k_ptr + page * stride_kp + kv_head.to(tl.int64) * stride_kh, PAGE_SIZE * HEAD_DIM)
                fetch(v_ptr + page * stride_vp + kv_head.to(tl.int64) * stride_vh, PAGE_SIZE * HEAD_DIM)
        wait_for_inputs(OVERLAP)
        if count != 1:
            return
    else:
        wait_for_inputs(OVERLAP)
        # Request r's tiles are numbered from query_start[r] // BLOCK_Q + r on: room enough for each, and rising in r.
        BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
        tile = tl.num_programs(0) - 1 - tl.program_id(0)
        request = 0
        past = num_requests
        while past - request > 1:
            middle = (request + past) // 2
            if tl.load(query_start_ptr + middle) // BLOCK_Q + middle <= tile:
                request = middle
            else:
                past = middle
        first_row = tl.load(query_start_ptr + request)
        length = tl.load(query_start_ptr + request + 1) - first_row
        offset = (tile - first_row // BLOCK_Q - request) * BLOCK_Q
        if offset >= length or length == 1:
            return
        context = tl.load(context_lens_ptr + request)
        position = context - length + offset
        first_row += offset
        count = tl.minimum(BLOCK_Q, length - offset)

    m_rows = tl.arange(0, BLOCK_M)
    row = m_rows // GROUP  # the position, counted from the tile's first
    head = kv_head * GROUP + m_rows % GROUP
    d = tl.arange(0, BLOCK_D)
    row_mask = row < count
    mask = row_mask[:, None] & (d[None, :] < HEAD_DIM)
    tokens = (first_row + row).to(tl.int64)
    q = tl.load(q_ptr + tokens[:, None] * stride_qt + head[:, None] * stride_qh + d[None, :], mask=mask, other=0.0)
    # Rows that only fill up see what the last one sees.
    row_position = position + tl.minimum(row, count - 1)
    last = position + count - 1

    seen_from = 0
    if WINDOW > 0:
        seen_from = tl.maximum(0, position - WINDOW + 1)
    first_tile = seen_from // BLOCK_N
    end_tile = last // BLOCK_N + 1

    table_ptr = tables_ptr + request.to(tl.int64) * stride_table
    first_key = 0
    if GATHERED:
        first_key = (kv_head * num_requests + request) * stride_kp
        k_head_ptr = k_ptr
        v_head_ptr = v_ptr
    else:
        k_head_ptr = k_ptr + kv_head.to(tl.int64) * stride_kh
        v_head_ptr = v_ptr + kv_head.to(tl.int64) * stride_vh

    if DECODE:
        if begin >= end:  # there are as many programs as the longest context has splits
            return
        m, total, acc = _attend(
            q, k_head_ptr, v_head_ptr, table_ptr, first_key, row_position, position, last, begin, end, scale,
            stride_kp, stride_kt, stride_vp, stride_vt,
            HEAD_DIM, BLOCK_D, PAGE_SIZE, WINDOW, BLOCK_M, BLOCK_N, GATHERED, True,
        )  # fmt: skip
    elif SPLIT == 0:
        m, total, acc = _attend(
            q, k_head_ptr, v_head_ptr, table_ptr, first_key, row_position, position, last, first_tile, end_tile, scale,
            stride_kp, stride_kt, stride_vp, stride_vt,
            HEAD_DIM, BLOCK_D, PAGE_SIZE, WINDOW, BLOCK_M, BLOCK_N, GATHERED, False,
        )  # fmt: skip
    else:
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.full([BLOCK_M], 0.0, tl.float32)
        acc = tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32)
        TILES: tl.constexpr = SPLIT // BLOCK_N
        for split in range(first_tile // TILES, (end_tile + TILES - 1) // TILES):
            begin = tl.maximum(first_tile, split * TILES)
            end = tl.minimum(end_tile, (split + 1) * TILES)
            m_split, sum_split, acc_split = _attend(
                q, k_head_ptr, v_head_ptr, table_ptr, first_key, row_position, position, last, begin, end, scale,
                stride_kp, stride_kt, stride_vp, stride_vt,
                HEAD_DIM, BLOCK_D, PAGE_SIZE, WINDOW, BLOCK_M, BLOCK_N, GATHERED, True,
            )  # fmt: skip
            m_new, old, new = _weights(m, m_split)
            acc = acc * old[:, None] + acc_split * new[:, None]
            total = total * old + sum_split * new
            m = m_new

    let_next_come(OVERLAP)
    if PARTIAL:
        index = (request * tl.num_programs(HEAD_AXIS) * GROUP + head).to(tl.int64) * tl.num_programs(2)
        index += tl.program_id(2)
        tl.store(mix_ptr + index[:, None] * BLOCK_D + d[None, :], acc, mask=row_mask[:, None])
        tl.store(stats_ptr + index * 2, m, mask=row_mask)
        tl.store(stats_ptr + index * 2 + 1, total, mask=row_mask)
    else:
        out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + tokens[:, None] * stride_ot + head[:, None] * stride_oh + d[None, :], out, mask=mask)


@triton.jit
def _attend(
    q,
    k_ptr,
    v_ptr,
    table_ptr,
    first_key,
    row_position,
    position,
    last,
    begin,
    end,
    scale,
    stride_kp,
    stride_kt,
    stride_vp,
    stride_vt,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GATHERED: tl.constexpr,
    ALWAYS_MASK: tl.constexpr,  # one loop: few tiles are not worth a pipeline of their own
):
    """m [BLOCK_M], total [BLOCK_M], acc [BLOCK_M, BLOCK_D] of the rows of q over key tiles begin to end."""
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.full([BLOCK_M], 0.0, tl.float32)
    acc = tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    seen_from = 0
    if WINDOW > 0:
        seen_from = tl.maximum(0, position - WINDOW + 1)
    # Tiles that every row sees whole need no mask: those between the window's edge and the first row's position.
    whole_from = begin
    whole_to = tl.maximum(begin, tl.minimum(end, (position + 1) // BLOCK_N))
    if WINDOW > 0:
        whole_from = tl.minimum(end, tl.maximum(begin, (tl.maximum(0, last - WINDOW + 1) + BLOCK_N - 1) // BLOCK_N))
        whole_to = tl.maximum(whole_from, whole_to)
    FIRST: tl.constexpr = 2 if ALWAYS_MASK else (0 if WINDOW > 0 else 1)
    for phase in tl.static_range(FIRST, 3):
        start = begin
        stop = end
        if phase == 0:
            stop = whole_from
        if phase == 1:
            start = whole_from
            stop = whole_to
        if phase == 2 and not ALWAYS_MASK:
            start = whole_to
        for tile in range(start, stop):
            key = tile * BLOCK_N + n
            shown = (key >= seen_from) & (key <= last)
            if GATHERED:
                k = k_ptr.load([first_key + tile * BLOCK_N, 0])
                v = v_ptr.load([first_key + tile * BLOCK_N, 0])
            else:
                page = _pages(table_ptr, tile * BLOCK_N, n, shown, phase == 1, PAGE_SIZE, BLOCK_N)
                slot = n % PAGE_SIZE
                if PAGE_SIZE > BLOCK_N:
                    slot = tile * BLOCK_N % PAGE_SIZE + n
                k_at = k_ptr + (page * stride_kp + slot.to(tl.int64) * stride_kt)[:, None] + d[None, :]
                v_at = v_ptr + (page * stride_vp + slot.to(tl.int64) * stride_vt)[:, None] + d[None, :]
                if phase == 1 and HEAD_DIM == BLOCK_D:
                    k = tl.load(k_at)
                    v = tl.load(v_at)
                elif phase == 1:
                    k = tl.load(k_at, mask=d[None, :] < HEAD_DIM, other=0.0)
                    v = tl.load(v_at, mask=d[None, :] < HEAD_DIM, other=0.0)
                else:
                    k = tl.load(k_at, mask=shown[:, None] & (d[None, :] < HEAD_DIM), other=0.0)
                    v = tl.load(v_at, mask=shown[:, None] & (d[None, :] < HEAD_DIM), other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
            if phase != 1:
                seen = key[None, :] <= row_position[:, None]
                if WINDOW > 0:
                    seen = seen & (key[None, :] > row_position[:, None] - WINDOW)
                scores = tl.where(seen, scores, float("-inf"))
            # The scale meets a row's maximum, and each score in the same instruction as the difference.
            m_new = tl.maximum(m, tl.max(scores, 1) * scale)
            finite = m_new
            if phase != 1:
                finite = tl.where(m_new == float("-inf"), 0.0, m_new)  # nothing seen yet: −∞ − −∞ is no number
            p = tl.exp2(scores * scale - finite[:, None])
            old = tl.exp2(m - finite)
            total = total * old + tl.sum(p, 1)
            acc = tl.dot(p.to(v.dtype), v, acc * old[:, None], input_precision="ieee")
            m = m_new
    return m, total, acc


@triton.jit
def _pages(table_ptr, first, n, shown, whole: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Page numbers of the keys first + n: one for all where a page holds the tile, else one for each."""
    if PAGE_SIZE >= BLOCK_N:
        page = tl.load(table_ptr + first // PAGE_SIZE)  # a tile that is taken has a key that is seen
    elif whole:
        page = tl.load(table_ptr + first // PAGE_SIZE + n // PAGE_SIZE)
    else:
        page = tl.load(table_ptr + first // PAGE_SIZE + n // PAGE_SIZE, mask=shown, other=0)
    return page.to(tl.int64)


@triton.jit
def _split(position, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, LEAST: tl.constexpr):
    """The tiles of keys, begin to end, that this program takes of those that the token at `position` sees."""
    split = tl.program_id(2)
    first_tile = 0
    if WINDOW > 0:
        first_tile = tl.maximum(0, position - WINDOW + 1) // BLOCK_N
    end_tile = position // BLOCK_N + 1
    if SPLIT > 0:
        begin = tl.maximum(first_tile, split * (SPLIT // BLOCK_N))
        end = tl.minimum(end_tile, (split + 1) * (SPLIT // BLOCK_N))
    else:
        share = _share(end_tile - first_tile, tl.num_programs(2), LEAST)
        begin = first_tile + split * share
        end = tl.minimum(end_tile, begin + share)
    return begin, end


@triton.jit
def _share(tiles, splits, LEAST: tl.constexpr):
    """Tiles of each split, if a context's are divided evenly among at most `splits`; the last one may have fewer."""
    return tl.maximum(LEAST, (tiles + splits - 1) // splits)


@triton.jit
def _weights(m, m_next):
    """The maximum of both, and the factors that bring sums under m and under m_next to it."""
    m_new = tl.maximum(m, m_next)
    finite = tl.where(m_new == float("-inf"), 0.0, m_new)
    return m_new, tl.exp2(m - finite), tl.exp2(m_next - finite)


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["query_start_ptr", "context_lens_ptr"])
def merge_kernel(
    mix_ptr,
    stats_ptr,
    out_ptr,
    query_start_ptr,
    context_lens_ptr,
    splits,
    stride_ot,
    stride_oh,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    LEAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid: (requests, heads). Merges a row's splits from the first to the last of those that have keys."""
    request = tl.program_id(0)
    head = tl.program_id(1)
    token = tl.load(query_start_ptr + request)
    count = tl.load(query_start_ptr + request + 1) - token
    context = tl.load(context_lens_ptr + request)
    wait_for_inputs(OVERLAP)
    if count != 1:
        return
    first_tile = 0
    if WINDOW > 0:
        first_tile = tl.maximum(0, context - WINDOW) // BLOCK_N
    end_tile = (context - 1) // BLOCK_N + 1
    if SPLIT > 0:
        TILES: tl.constexpr = SPLIT // BLOCK_N
        first_split = first_tile // TILES
        end_split = (end_tile + TILES - 1) // TILES
    else:
        share = _share(end_tile - first_tile, splits, LEAST)
        first_split = 0
        end_split = (end_tile - first_tile + share - 1) // share
    d = tl.arange(0, BLOCK_D)
    index = (request * tl.num_programs(1) + head).to(tl.int64) * splits
    m = tl.full([1], float("-inf"), tl.float32)
    total = tl.full([1], 0.0, tl.float32)
    acc = tl.full([BLOCK_D], 0.0, tl.float32)
    for split in range(first_split, end_split):
        at = index + split
        m_split = tl.load(stats_ptr + at * 2)
        sum_split = tl.load(stats_ptr + at * 2 + 1)
        acc_split = tl.load(mix_ptr + at * BLOCK_D + d)
        m_new, old, new = _weights(m, m_split)
        acc = acc * old + acc_split * new
        total = total * old + sum_split * new
        m = m_new
    out = (acc / total).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + token.to(tl.int64) * stride_ot + head * stride_oh + d, out, mask=d < HEAD_DIM)
