# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Attention of decode steps in which requests share a prefix: its pages are read once for a group, not once for each.

Softmax over a row's keys can be put together from parts: each part leaves its maximum m, its sum of weights and its
mix of values, and parts are merged with the weights 2^(m − max m). So the keys of a group's prefix are taken for all of
its members at once, as a product of many rows, and each member's own keys behind it for itself (Juravsky et al.,
"Hydragen: High-Throughput LLM Inference with Shared Prefixes", 2024; as "cascade inference" in FlashInfer, Ye et al.,
2025). What 64 requests read of a shared prompt shrinks by 64; for their few rows reading was all of the time.

A program has one key head, some requests and a span of keys that all of them see whole. There are two launches:

- **prefixes**: a tile of a group, whose members times the query heads of the key head are the rows of a matrix product
  (`rows`), and a split of the prefix, by the table of the tile's first member;
- **own keys**: a request alone, and a split of its keys behind its prefix, or of all.

A third kernel merges the parts of each row. Grids follow from sizes that the host knows, groups and lengths are read on
the device: a CUDA graph can replay all three while groups come and go.

Keys that no row of a program sees are never loaded, so NaN in other requests' slots has no influence. Which parts there
are depends on the company that a row is in, and so do its bits: not for `--batch-invariant`.
"""

from dataclasses import dataclass, replace
from typing import Final

import torch
import triton
import triton.language as tl

from octavo_kernels.metadata import TILE_MEMBERS, AttentionMetadata
from octavo_kernels.paged_attention import LOG2_E
from octavo_kernels.shared_memory import fitting

_MOST_SPLITS: Final = 16  # of each kind


@dataclass(frozen=True, slots=True)
class PartConfig:
    """How one kind of work is cut: rows and keys of a tile, and programs that there should be at least."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int
    programs: int = 264  # two a processor of an H100
    least_keys: int = 256  # of a split
    ahead: bool = False  # page numbers are loaded a tile ahead

    @property
    def least_tiles(self) -> int:
        return max(1, self.least_keys // self.keys)

    def for_device(self, row_bytes: int, device: torch.device) -> "PartConfig":
        """What of it fits into the device's shared memory."""
        keys, stages = fitting(self.rows, self.keys, self.num_stages, row_bytes, device)
        return replace(self, keys=keys, num_stages=stages)

    def num_splits(self, programs: int, most_keys: int) -> int:
        """Over how many programs keys are split, `programs` being those without."""
        wanted, most = -(-self.programs // programs), -(-most_keys // self.least_keys)
        return max(1, min(wanted, most, _MOST_SPLITS))


@dataclass(frozen=True, slots=True)
class SharedConfig:
    """How the work on prefixes is cut, and that on each request's own keys."""

    prefix: PartConfig
    own: PartConfig


def shared_config(dtype: torch.dtype, block_d: int, group: int) -> SharedConfig:
    """64 rows: the least of Hopper's matrix instructions."""
    rows = max(16, triton.next_power_of_2(group))
    if dtype == torch.float32:
        keys = 32 if block_d <= 128 else 16
        return SharedConfig(PartConfig(max(32, rows), keys, 8, 1), PartConfig(rows, keys, 4, 1))
    if block_d > 128:
        return SharedConfig(PartConfig(max(64, rows), 32, 4, 2), PartConfig(rows, 32, 4, 2))
    return SharedConfig(PartConfig(max(64, rows), 64, 4, 3), PartConfig(rows, 64, 4, 2))


def takes(metadata: AttentionMetadata, k_cache: torch.Tensor, sliding_window: int | None) -> bool:
    """Whether `shared_prefix_attention` is for this step and layer: there may be groups, and no window hides a key."""
    if metadata.shared is None or metadata.max_query_len != 1:
        return False
    return sliding_window is None or sliding_window >= _most_keys(metadata, k_cache)


def shared_prefix_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    config: SharedConfig | None = None,
) -> torch.Tensor:
    """As `paged_attention`, for one token of each request and without a window: [R, heads, d] → [R, heads, d].

    metadata.shared says who shares what. No synchronisation with the device.
    """
    shared = metadata.shared
    num_requests, heads, head_dim = q.shape
    if shared is None or num_requests != len(metadata.block_tables):
        raise ValueError(
            f"shared prefixes are for steps with one token a request: there are {num_requests} rows of q for "
            f"{len(metadata.block_tables)} requests, and {'no' if shared is None else 'some'} groups"
        )
    _, page_size, kv_heads, _ = k_cache.shape
    group, block_d = heads // kv_heads, max(16, triton.next_power_of_2(head_dim))
    if config is None:
        usual, row_bytes = shared_config(q.dtype, block_d, group), block_d * q.element_size()
        config = SharedConfig(*[part.for_device(row_bytes, q.device) for part in (usual.prefix, usual.own)])
    prefix, own, most_keys = config.prefix, config.own, _most_keys(metadata, k_cache)
    of_one_group = -(-num_requests // min(TILE_MEMBERS, prefix.rows // group))
    prefix_splits = prefix.num_splits(of_one_group * kv_heads, most_keys)
    own_splits = own.num_splits(num_requests * kv_heads, most_keys)
    columns = prefix_splits + own_splits
    mix = q.new_empty((num_requests, heads, columns, block_d), dtype=torch.float32)
    stats = q.new_empty((num_requests, heads, columns, 2), dtype=torch.float32)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    per_tile = -(-TILE_MEMBERS // (prefix.rows // group))
    for part, grid, first_column, of_tile in (
        (prefix, (kv_heads, len(shared.tiles) * per_tile, prefix_splits), 0, per_tile),
        (own, (kv_heads, num_requests, own_splits), prefix_splits, 0),
    ):
        _parts_kernel[grid](
            q,
            k_cache,
            v_cache,
            mix,
            stats,
            metadata.context_lens,
            metadata.block_tables,
            shared.lens,
            shared.members,
            shared.tiles,
            scale * LOG2_E,
            columns,
            first_column,
            metadata.block_tables.stride(0),
            *q.stride()[:2],
            *k_cache.stride()[:3],
            *v_cache.stride()[:3],
            GROUP=group,
            HEAD_DIM=head_dim,
            BLOCK_D=block_d,
            PAGE_SIZE=page_size,
            BLOCK_M=part.rows,
            BLOCK_N=part.keys,
            LEAST=part.least_tiles,
            PER_TILE=of_tile,
            AHEAD=part.ahead,
            num_warps=part.num_warps,
            num_stages=part.num_stages,
        )
    _merge_kernel[(num_requests, heads)](
        mix,
        stats,
        out,
        metadata.context_lens,
        shared.lens,
        prefix_splits,
        own_splits,
        *out.stride()[:2],
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        KEYS=prefix.keys,
        LEAST=prefix.least_tiles,
        OWN_KEYS=own.keys,
        OWN_LEAST=own.least_tiles,
        COLUMNS=triton.next_power_of_2(2 * _MOST_SPLITS),  # one kernel for all: an idle moment must not compile
        num_warps=1,
    )
    return out


def _most_keys(metadata: AttentionMetadata, k_cache: torch.Tensor) -> int:
    held = metadata.block_tables.shape[1] * k_cache.shape[1]
    return min(metadata.max_context_len or held, held)


# Sizes and places that vary between steps must not make a kernel of their own.
@triton.jit(
    do_not_specialize=["scale", "columns", "first_column", "stride_table"],
    do_not_specialize_on_alignment=["context_lens_ptr", "tables_ptr", "lens_ptr", "members_ptr", "tiles_ptr"],
)
def _parts_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    mix_ptr,  # [requests, heads, columns, BLOCK_D] float32; a column for each split of prefixes, then of own keys
    stats_ptr,  # [requests, heads, columns, 2] float32: m, and the sum of weights
    context_lens_ptr,
    tables_ptr,
    lens_ptr,
    members_ptr,
    tiles_ptr,
    scale,  # times log2(e): powers of two are what the hardware computes; positive
    columns,
    first_column,
    stride_table,
    stride_qt,
    stride_qh,
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LEAST: tl.constexpr,  # tiles of keys of a split
    PER_TILE: tl.constexpr,  # programs that share a tile of a group; 0: own keys
    AHEAD: tl.constexpr,
):
    """Grid: (kv_heads, tiles of groups · PER_TILE or requests, splits). Neighbours read the same keys if they can."""
    MEMBERS: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0)
    split = tl.program_id(2)
    m_rows = tl.arange(0, BLOCK_M)
    member = m_rows // GROUP
    if PER_TILE > 0:
        tile_ptr = tiles_ptr + tl.program_id(1) // PER_TILE * 2
        before = tl.program_id(1) % PER_TILE * MEMBERS
        first = tl.load(tile_ptr) + before
        count = tl.minimum(tl.load(tile_ptr + 1) - before, MEMBERS)
        if count <= 0:
            return
        leader = tl.load(members_ptr + first)
        request = tl.load(members_ptr + first + member, mask=member < count, other=0).to(tl.int64)
        begin = 0
        end = tl.load(lens_ptr + leader)
    else:
        leader = tl.program_id(1)
        request = (leader + member * 0).to(tl.int64)
        count = 1
        begin = tl.load(lens_ptr + leader)
        end = tl.load(context_lens_ptr + leader)

    first_tile = begin // BLOCK_N
    end_tile = (end + BLOCK_N - 1) // BLOCK_N
    share = _share(end_tile - first_tile, tl.num_programs(2), LEAST)
    first_tile += split * share
    end_tile = tl.minimum(end_tile, first_tile + share)
    if first_tile >= end_tile:  # there are as many programs as the longest context has splits
        return

    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    head = kv_head * GROUP + m_rows % GROUP
    row_mask = member < count
    q = tl.load(
        q_ptr + (request * stride_qt + head * stride_qh)[:, None] + d[None, :],
        mask=row_mask[:, None] & (d[None, :] < HEAD_DIM),
        other=0.0,
    )
    table_ptr = tables_ptr + leader.to(tl.int64) * stride_table
    k_ptr += kv_head.to(tl.int64) * stride_kh
    v_ptr += kv_head.to(tl.int64) * stride_vh
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.full([BLOCK_M], 0.0, tl.float32)
    acc = tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32)
    next_key = first_tile * BLOCK_N + n
    next_page = tl.load(table_ptr + next_key // PAGE_SIZE, mask=(next_key >= begin) & (next_key < end), other=0)
    for tile in range(first_tile, end_tile):
        key = tile * BLOCK_N + n
        shown = (key >= begin) & (key < end)  # at least one of every tile
        if AHEAD:
            page = next_page.to(tl.int64)
            next_key = key + BLOCK_N
            next_page = tl.load(table_ptr + next_key // PAGE_SIZE, mask=next_key < end, other=0)
        else:
            page = tl.load(table_ptr + key // PAGE_SIZE, mask=shown, other=0).to(tl.int64)
        slot = (key % PAGE_SIZE).to(tl.int64)
        loaded = shown[:, None] & (d[None, :] < HEAD_DIM)
        k = tl.load(k_ptr + (page * stride_kp + slot * stride_kt)[:, None] + d[None, :], mask=loaded, other=0.0)
        v = tl.load(v_ptr + (page * stride_vp + slot * stride_vt)[:, None] + d[None, :], mask=loaded, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = tl.where(shown[None, :], scores, float("-inf"))
        m_new = tl.maximum(m, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - m_new[:, None])
        old = tl.exp2(m - m_new)
        total = total * old + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * old[:, None], input_precision="ieee")
        m = m_new
    index = (request * tl.num_programs(0) * GROUP + head) * columns + first_column + split
    tl.store(mix_ptr + index[:, None] * BLOCK_D + d[None, :], acc, mask=row_mask[:, None])
    tl.store(stats_ptr + index * 2, m, mask=row_mask)
    tl.store(stats_ptr + index * 2 + 1, total, mask=row_mask)


@triton.jit
def _share(tiles, splits, LEAST: tl.constexpr):
    """Tiles of keys of each split, if they are divided evenly among at most `splits`; the last one may have fewer."""
    return tl.maximum(LEAST, (tiles + splits - 1) // splits)


@triton.jit(
    do_not_specialize=["prefix_splits", "own_splits"],
    do_not_specialize_on_alignment=["context_lens_ptr", "lens_ptr"],
)
def _merge_kernel(
    mix_ptr,
    stats_ptr,
    out_ptr,
    context_lens_ptr,
    lens_ptr,
    prefix_splits,
    own_splits,
    stride_ot,
    stride_oh,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr,
    LEAST: tl.constexpr,
    OWN_KEYS: tl.constexpr,
    OWN_LEAST: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid: (requests, heads). Merges the parts of a row that there are, all at once."""
    request = tl.program_id(0)
    head = tl.program_id(1)
    shared = tl.load(lens_ptr + request)
    context = tl.load(context_lens_ptr + request)
    prefix_tiles = (shared + KEYS - 1) // KEYS
    own_tiles = (context + OWN_KEYS - 1) // OWN_KEYS - shared // OWN_KEYS
    prefix_share = _share(prefix_tiles, prefix_splits, LEAST)
    own_share = _share(own_tiles, own_splits, OWN_LEAST)
    column = tl.arange(0, COLUMNS)
    d = tl.arange(0, BLOCK_D)
    is_prefix = column < (prefix_tiles + prefix_share - 1) // prefix_share
    own = column - prefix_splits
    there = is_prefix | ((own >= 0) & (own < (own_tiles + own_share - 1) // own_share))
    at = (request * tl.num_programs(1) + head).to(tl.int64) * (prefix_splits + own_splits) + column
    m = tl.load(stats_ptr + at * 2, mask=there, other=float("-inf"))
    total = tl.load(stats_ptr + at * 2 + 1, mask=there, other=0.0)
    acc = tl.load(mix_ptr + at[:, None] * BLOCK_D + d[None, :], mask=there[:, None], other=0.0)
    weight = tl.exp2(m - tl.max(m, 0))
    out = tl.sum(acc * weight[:, None], 0) / tl.sum(total * weight, 0)
    to = out_ptr + request.to(tl.int64) * stride_ot + head * stride_oh + d
    tl.store(to, out.to(out_ptr.dtype.element_ty), mask=d < HEAD_DIM)
