# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Attention over a paged KV cache in Triton; its twin and definition is `reference_attention.paged_attention`.

    o = Σⱼ pⱼ vⱼ / Σⱼ pⱼ,   pⱼ = exp(q · kⱼ · scale − maxⱼ(q · kⱼ · scale)),   j over the positions that q may see

A program works on some positions of one request and the query heads of one key head: they read the same K and V, so
they are the rows of one matrix product. It takes keys in tiles counted from position 0 and keeps a running maximum m,
sum l and mix acc (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al.,
"FlashAttention", 2022).

- **Decode**: requests with one token. Their rows are few and their keys many, so the keys are split over programs,
  which leave (m, total, acc) behind; a second kernel merges these ("Flash-Decoding", Dao et al., 2023). The grid is
  made from sizes that the host knows, so that a CUDA graph can replay it while contexts grow; a split without keys
  leaves at once.
- **Chunks**: requests with more tokens, cut into tiles of positions. A tile's program finds its request by bisection.

Both kernels are launched over the whole batch and each leaves the other's requests alone, so the order of requests does
not matter and nothing is read back from the device.

What other requests left in the cache has no influence, NaN included: keys that no row of a tile sees are never loaded.

**Batch invariance** (`invariant=True`): a row's bits depend on nothing but the row and its own keys, by construction:

- both kernels have one tile shape (rows, keys, warps), so a product sums alike whatever the row stands among; a tile
  that a row does not see multiplies by one and adds zeros;
- keys are split at fixed positions, and splits are merged from the first to the last by the same function, in decode
  by the second kernel, in chunks by the program itself;
- products and sums are not contracted (`enable_fp_fusion=False`), as two kernels could be contracted differently.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl

from octavo_kernels.metadata import AttentionMetadata

LOG2_E: Final = 1.4426950408889634
INVARIANT_SPLIT: Final = 1024  # keys; a multiple of every BLOCK_N


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """How the work is cut. Rows are positions times query heads of a key head."""

    block_rows: int
    block_keys: int
    num_warps: int
    num_stages: int
    programs: int = 528  # decode: keys are split until there are so many programs
    min_split: int = 256  # decode: but no shorter than so many keys
    split: int = 0  # keys of a split at fixed positions; 0: a context is divided evenly


def decode_config(dtype: torch.dtype, block_d: int, group: int) -> AttentionConfig:
    """For one token a request."""
    rows = max(16, triton.next_power_of_2(group))
    if dtype == torch.float32:
        return AttentionConfig(rows, 32 if block_d <= 128 else 16, 4, 1)
    return AttentionConfig(rows, 64 if block_d <= 128 else 32, 4, 3)


def chunk_config(dtype: torch.dtype, block_d: int, group: int) -> AttentionConfig:
    """For many tokens a request."""
    rows = max(16, triton.next_power_of_2(group))
    if dtype == torch.float32:
        return AttentionConfig(*_fp32_shape(block_d, rows), 8, 1)
    if block_d > 128:
        return AttentionConfig(max(64, rows), 32, 4, 2)
    return AttentionConfig(max(128, rows), 64, 8, 3)


def _fp32_shape(block_d: int, rows: int) -> tuple[int, int]:
    """Rows and keys of a tile: exact products are done by the ordinary units, out of registers."""
    return (max(32, rows), 32) if block_d <= 128 else (rows, 16)


def invariant_config(dtype: torch.dtype, block_d: int, group: int) -> AttentionConfig:
    """The one shape for decode and chunks alike. 64 rows: the least of Hopper's matrix instructions."""
    rows = max(16, triton.next_power_of_2(group))
    if dtype == torch.float32:
        return AttentionConfig(*_fp32_shape(block_d, rows), 8, 1, split=INVARIANT_SPLIT)
    return AttentionConfig(max(64, rows), 64 if block_d <= 128 else 32, 4, 2, split=INVARIANT_SPLIT)


def _configs(dtype: torch.dtype, block_d: int, group: int, invariant: bool) -> tuple[AttentionConfig, AttentionConfig]:
    if invariant:
        return (invariant_config(dtype, block_d, group),) * 2
    return decode_config(dtype, block_d, group), chunk_config(dtype, block_d, group)


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
    *,
    configs: tuple[AttentionConfig, AttentionConfig] | None = None,
    invariant: bool = False,
) -> torch.Tensor:
    """Causal attention of every row of q over its own request's pages: [T, heads, d] → [T, heads, d].

    k_cache, v_cache: [pages, page size, kv_heads, d], views of any strides but for the last, which is 1; page size is a
    power of two, heads a multiple of kv_heads. float16, bfloat16 or float32, in which products are exact to the type.
    With a sliding window of w tokens, a token sees itself and the w − 1 before it. No synchronisation with the device.
    configs: other ways to cut the work, of decode and of chunks, than the built-in ones.
    """
    num_tokens, heads, head_dim = q.shape
    _, page_size, kv_heads, _ = k_cache.shape
    num_requests, table_width = metadata.block_tables.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if num_tokens == 0:
        return out
    group, block_d = heads // kv_heads, max(16, triton.next_power_of_2(head_dim))
    decode, chunk = configs or _configs(q.dtype, block_d, group, invariant)
    most_keys = min(metadata.max_context_len or table_width * page_size, table_width * page_size)
    launch = _Launch(q, k_cache, v_cache, out, metadata, scale, sliding_window or 0, group, block_d)
    launch.decode(decode, num_requests, kv_heads, most_keys, invariant)
    if (metadata.max_query_len or num_tokens) > 1:
        launch.chunks(chunk, num_tokens, num_requests, kv_heads, invariant)
    return out


def paged_attention_invariant(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """As `paged_attention`; a row's bits depend on nothing but the row and its keys."""
    return paged_attention(q, k_cache, v_cache, metadata, scale, sliding_window, invariant=True)


@dataclass(slots=True)
class _Launch:
    """The arguments that both kernels share."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    out: torch.Tensor
    metadata: AttentionMetadata
    scale: float
    window: int
    group: int
    block_d: int

    def decode(self, config: AttentionConfig, num_requests: int, kv_heads: int, most_keys: int, exact: bool) -> None:
        splits = num_splits(config, num_requests * kv_heads, most_keys)
        heads = kv_heads * self.group
        mix, stats = self.out, self.out
        if splits > 1:
            mix = self.q.new_empty((num_requests, heads, splits, self.block_d), dtype=torch.float32)
            stats = self.q.new_empty((num_requests, heads, splits, 2), dtype=torch.float32)
        _attention_kernel[(num_requests, kv_heads, splits)](
            *self._arguments(mix, stats), **self._constants(config, exact), DECODE=True, PARTIAL=splits > 1
        )
        if splits > 1:
            _merge_kernel[(num_requests, heads)](
                mix,
                stats,
                self.out,
                self.metadata.query_start,
                splits,
                self.out.stride(0),
                self.out.stride(1),
                HEAD_DIM=self.q.shape[2],
                BLOCK_D=self.block_d,
                num_warps=1,
                enable_fp_fusion=not exact,
            )

    def chunks(self, config: AttentionConfig, num_tokens: int, num_requests: int, kv_heads: int, exact: bool) -> None:
        tiles = num_tokens // (config.block_rows // self.group) + num_requests
        _attention_kernel[(tiles, kv_heads, 1)](
            *self._arguments(self.out, self.out), **self._constants(config, exact), DECODE=False, PARTIAL=False
        )

    def _arguments(self, mix: torch.Tensor, stats: torch.Tensor) -> tuple[Any, ...]:
        meta = self.metadata
        return (
            self.q,
            self.k_cache,
            self.v_cache,
            self.out,
            mix,
            stats,
            meta.query_start,
            meta.context_lens,
            meta.block_tables,
            self.scale * LOG2_E,
            len(meta.block_tables),
            meta.block_tables.stride(0),
            *self.q.stride()[:2],
            *self.out.stride()[:2],
            *self.k_cache.stride()[:3],
            *self.v_cache.stride()[:3],
        )

    def _constants(self, config: AttentionConfig, exact: bool) -> dict[str, Any]:
        return {
            "GROUP": self.group,
            "HEAD_DIM": self.q.shape[2],
            "BLOCK_D": self.block_d,
            "PAGE_SIZE": self.k_cache.shape[1],
            "WINDOW": self.window,
            "BLOCK_M": config.block_rows,
            "BLOCK_N": config.block_keys,
            "SPLIT": config.split,
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            "enable_fp_fusion": not exact,
        }


def num_splits(config: AttentionConfig, programs: int, most_keys: int) -> int:
    """Over how many programs the keys of a request and key head are split, `programs` being those without."""
    if config.split:
        return -(-most_keys // config.split)
    wanted = -(-config.programs // programs)
    return max(1, min(wanted, -(-most_keys // config.min_split)))


# Sizes and places that vary between steps must not make a kernel of their own.
@triton.jit(
    do_not_specialize=["scale", "num_requests", "stride_table"],
    do_not_specialize_on_alignment=["query_start_ptr", "context_lens_ptr", "tables_ptr"],
)
def _attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    mix_ptr,  # PARTIAL: [requests, heads, splits, BLOCK_D] float32, acc
    stats_ptr,  # PARTIAL: [requests, heads, splits, 2] float32, m and total
    query_start_ptr,
    context_lens_ptr,
    tables_ptr,
    scale,  # times log2(e): powers of two are what the hardware computes
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
    DECODE: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """Grid: (requests, kv_heads, splits) if DECODE, else (tiles of positions, kv_heads, 1), the last tile first."""
    kv_head = tl.program_id(1)
    if DECODE:
        request = tl.program_id(0)
        first_row = tl.load(query_start_ptr + request)
        count = tl.load(query_start_ptr + request + 1) - first_row
        if count != 1:
            return
        context = tl.load(context_lens_ptr + request)
        position = context - 1
    else:
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
    k_head_ptr = k_ptr + kv_head.to(tl.int64) * stride_kh
    v_head_ptr = v_ptr + kv_head.to(tl.int64) * stride_vh

    if DECODE:
        split = tl.program_id(2)
        if SPLIT > 0:
            begin = tl.maximum(first_tile, split * (SPLIT // BLOCK_N))
            end = tl.minimum(end_tile, (split + 1) * (SPLIT // BLOCK_N))
        else:
            share = (end_tile - first_tile + tl.num_programs(2) - 1) // tl.num_programs(2)
            begin = first_tile + split * share
            end = tl.minimum(end_tile, begin + share)
        m, total, acc = _attend(
            q, k_head_ptr, v_head_ptr, table_ptr, row_position, position, last, begin, end, scale,
            stride_kp, stride_kt, stride_vp, stride_vt,
            HEAD_DIM, BLOCK_D, PAGE_SIZE, WINDOW, BLOCK_M, BLOCK_N, True,
        )  # fmt: skip
    elif SPLIT == 0:
        m, total, acc = _attend(
            q, k_head_ptr, v_head_ptr, table_ptr, row_position, position, last, first_tile, end_tile, scale,
            stride_kp, stride_kt, stride_vp, stride_vt,
            HEAD_DIM, BLOCK_D, PAGE_SIZE, WINDOW, BLOCK_M, BLOCK_N, False,
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
                q, k_head_ptr, v_head_ptr, table_ptr, row_position, position, last, begin, end, scale,
                stride_kp, stride_kt, stride_vp, stride_vt,
                HEAD_DIM, BLOCK_D, PAGE_SIZE, WINDOW, BLOCK_M, BLOCK_N, True,
            )  # fmt: skip
            m_new, old, new = _weights(m, m_split)
            acc = acc * old[:, None] + acc_split * new[:, None]
            total = total * old + sum_split * new
            m = m_new

    if PARTIAL:
        index = (request * tl.num_programs(1) * GROUP + head).to(tl.int64) * tl.num_programs(2) + tl.program_id(2)
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
            if phase == 1:
                page = tl.load(table_ptr + key // PAGE_SIZE).to(tl.int64)
            else:
                shown = (key >= seen_from) & (key <= last)
                page = tl.load(table_ptr + key // PAGE_SIZE, mask=shown, other=0).to(tl.int64)
            slot = (key % PAGE_SIZE).to(tl.int64)
            k_at = k_ptr + (page * stride_kp + slot * stride_kt)[:, None] + d[None, :]
            v_at = v_ptr + (page * stride_vp + slot * stride_vt)[:, None] + d[None, :]
            if phase == 1 and HEAD_DIM == BLOCK_D:
                k = tl.load(k_at)
                v = tl.load(v_at)
            elif phase == 1:
                k = tl.load(k_at, mask=d[None, :] < HEAD_DIM, other=0.0)
                v = tl.load(v_at, mask=d[None, :] < HEAD_DIM, other=0.0)
            else:
                k = tl.load(k_at, mask=shown[:, None] & (d[None, :] < HEAD_DIM), other=0.0)
                v = tl.load(v_at, mask=shown[:, None] & (d[None, :] < HEAD_DIM), other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            if phase != 1:
                seen = key[None, :] <= row_position[:, None]
                if WINDOW > 0:
                    seen = seen & (key[None, :] > row_position[:, None] - WINDOW)
                scores = tl.where(seen, scores, float("-inf"))
            m_new = tl.maximum(m, tl.max(scores, 1))
            finite = m_new
            if phase != 1:
                finite = tl.where(m_new == float("-inf"), 0.0, m_new)  # nothing seen yet: −∞ − −∞ is no number
            p = tl.exp2(scores - finite[:, None])
            old = tl.exp2(m - finite)
            total = total * old + tl.sum(p, 1)
            acc = tl.dot(p.to(v.dtype), v, acc * old[:, None], input_precision="ieee")
            m = m_new
    return m, total, acc


@triton.jit
def _weights(m, m_next):
    """The maximum of both, and the factors that bring sums under m and under m_next to it."""
    m_new = tl.maximum(m, m_next)
    finite = tl.where(m_new == float("-inf"), 0.0, m_new)
    return m_new, tl.exp2(m - finite), tl.exp2(m_next - finite)


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["query_start_ptr"])
def _merge_kernel(
    mix_ptr,
    stats_ptr,
    out_ptr,
    query_start_ptr,
    splits,
    stride_ot,
    stride_oh,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: (requests, heads). Merges a row's splits from the first to the last."""
    request = tl.program_id(0)
    head = tl.program_id(1)
    token = tl.load(query_start_ptr + request)
    if tl.load(query_start_ptr + request + 1) - token != 1:
        return
    d = tl.arange(0, BLOCK_D)
    index = (request * tl.num_programs(1) + head).to(tl.int64) * splits
    m = tl.full([1], float("-inf"), tl.float32)
    total = tl.full([1], 0.0, tl.float32)
    acc = tl.full([BLOCK_D], 0.0, tl.float32)
    for split in range(splits):
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
