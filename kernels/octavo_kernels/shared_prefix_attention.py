# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Attention of decode steps in which requests share a prefix: its pages are read once for a group, not once for each.

Softmax over a row's keys can be put together from parts: each part leaves its maximum m, its sum of weights and its
mix of values, and parts are merged with the weights 2^(m − max m). So the keys of a group's prefix are taken for all of
its members at once, as a product of many rows, and each member's own keys behind it for itself (Juravsky et al.,
"Hydragen: High-Throughput LLM Inference with Shared Prefixes", 2024; as "cascade inference" in FlashInfer, Ye et al.,
2025). What 64 requests read of a shared prompt shrinks by 64; for their few rows reading was all of the time.

**One launch for both kinds of parts.** A program has one key head, some requests and a span of keys that all of them
see whole, so that nothing depends on which kind it is but where it finds these:

- a tile of a group: its members times the query heads of the key head are the rows (`BLOCK_M`), its keys a split of the
  prefix, by the table of its first member;
- a request alone: its query heads are the first rows, its keys a split of those behind its prefix, or of all.

A second kernel merges the parts of each row. Grids follow from sizes that the host knows, groups and lengths are read
on the device: a CUDA graph can replay both while groups come and go.

Keys that no row of a program sees are never loaded, so NaN in other requests' slots has no influence. Which parts there
are depends on the company that a row is in, and so do its bits: not for `--batch-invariant`.
"""

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl

from octavo_kernels.metadata import TILE_MEMBERS, AttentionMetadata
from octavo_kernels.paged_attention import LOG2_E

_PROGRAMS: Final = 264  # two a processor of an H100
_MOST_SPLITS: Final = 16
_LEAST_COLUMNS = 1


@dataclass(frozen=True, slots=True)
class SharedConfig:
    """How the work is cut. block_rows: of a tile; a group's tile may take several programs."""

    block_rows: int
    block_keys: int
    num_warps: int
    num_stages: int
    least_keys: int = 256  # of a split
    programs: int = _PROGRAMS  # wanted, of each kind
    own_rows: int = 0  # of a program with a request alone, if these get a launch of their own


def shared_config(dtype: torch.dtype, block_d: int, group: int) -> SharedConfig:
    """64 rows: the least of Hopper's matrix instructions."""
    rows = max(16, triton.next_power_of_2(group))
    if dtype == torch.float32:
        return SharedConfig(max(32, rows), 32, 8, 1) if block_d <= 128 else SharedConfig(rows, 16, 8, 1)
    return SharedConfig(max(64, rows), 64 if block_d <= 128 else 32, 4, 3 if block_d <= 128 else 2)


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
    config = config or shared_config(q.dtype, block_d, group)
    most_keys = _most_keys(metadata, k_cache)
    of_one_group = -(-num_requests // min(TILE_MEMBERS, config.block_rows // group))
    shared_splits = _num_splits(config, of_one_group * kv_heads, most_keys)
    own_splits = _num_splits(config, num_requests * kv_heads, most_keys)
    columns = shared_splits + own_splits
    mix = q.new_empty((num_requests, heads, columns, block_d), dtype=torch.float32)
    stats = q.new_empty((num_requests, heads, columns, 2), dtype=torch.float32)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    least = max(1, config.least_keys // config.block_keys)

    def launch(rows: int, tiles: int, requests: int) -> None:
        per_tile = -(-TILE_MEMBERS // (rows // group))
        _parts_kernel[(kv_heads, tiles * per_tile * shared_splits + requests * own_splits)](
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
            tiles * per_tile,
            shared_splits,
            own_splits,
            metadata.block_tables.stride(0),
            *q.stride()[:2],
            *k_cache.stride()[:3],
            *v_cache.stride()[:3],
            GROUP=group,
            HEAD_DIM=head_dim,
            BLOCK_D=block_d,
            PAGE_SIZE=page_size,
            BLOCK_M=rows,
            BLOCK_N=config.block_keys,
            LEAST=least,
            PROGRAMS_OF_TILE=per_tile,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )

    if config.own_rows:
        launch(config.block_rows, len(shared.tiles), 0)
        launch(config.own_rows, 0, num_requests)
    else:
        launch(config.block_rows, len(shared.tiles), num_requests)
    _merge_kernel[(num_requests, heads)](
        mix,
        stats,
        out,
        metadata.context_lens,
        shared.lens,
        shared_splits,
        own_splits,
        *out.stride()[:2],
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_N=config.block_keys,
        LEAST=least,
        COLUMNS=max(triton.next_power_of_2(columns), _LEAST_COLUMNS),
        num_warps=1,
    )
    return out


def _most_keys(metadata: AttentionMetadata, k_cache: torch.Tensor) -> int:
    held = metadata.block_tables.shape[1] * k_cache.shape[1]
    return min(metadata.max_context_len or held, held)


def _num_splits(config: SharedConfig, programs: int, most_keys: int) -> int:
    """Over how many programs keys are split, `programs` being those without; no shorter than they may be."""
    wanted, most = -(-config.programs // programs), -(-most_keys // config.least_keys)
    return max(1, min(wanted, most, _MOST_SPLITS))


# Sizes and places that vary between steps must not make a kernel of their own.
@triton.jit(
    do_not_specialize=["scale", "num_tiles", "shared_splits", "own_splits", "stride_table"],
    do_not_specialize_on_alignment=["context_lens_ptr", "tables_ptr", "lens_ptr", "members_ptr", "tiles_ptr"],
)
def _parts_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    mix_ptr,  # [requests, heads, shared splits + own splits, BLOCK_D] float32
    stats_ptr,  # [requests, heads, shared splits + own splits, 2] float32: m, and the sum of weights
    context_lens_ptr,
    tables_ptr,
    lens_ptr,
    members_ptr,
    tiles_ptr,
    scale,  # times log2(e): powers of two are what the hardware computes; positive
    num_tiles,
    shared_splits,
    own_splits,
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
    PROGRAMS_OF_TILE: tl.constexpr,
):
    """Grid: (kv_heads, tiles · shared splits + requests · own splits). Neighbours read the same keys where they can."""
    PER_PROGRAM: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0)
    work = tl.program_id(1)
    m_rows = tl.arange(0, BLOCK_M)
    member = m_rows // GROUP
    num_shared = num_tiles * shared_splits
    if work < num_shared:
        tile = work % num_tiles
        split = work // num_tiles
        splits = shared_splits
        column = split
        before = tile % PROGRAMS_OF_TILE * PER_PROGRAM
        first = tl.load(tiles_ptr + tile // PROGRAMS_OF_TILE * 2) + before
        count = tl.minimum(tl.load(tiles_ptr + tile // PROGRAMS_OF_TILE * 2 + 1) - before, PER_PROGRAM)
        leader = tl.load(members_ptr + first, mask=count > 0, other=0)
        row_request = tl.load(members_ptr + first + member, mask=member < count, other=0)
        begin = leader * 0
        end = tl.load(lens_ptr + leader, mask=count > 0, other=0)
    else:
        leader = (work - num_shared) // own_splits
        split = (work - num_shared) % own_splits
        splits = own_splits
        column = shared_splits + split
        count = 1
        row_request = leader + member * 0
        begin = tl.load(lens_ptr + leader)
        end = tl.load(context_lens_ptr + leader)

    first_tile = begin // BLOCK_N
    end_tile = (end + BLOCK_N - 1) // BLOCK_N
    share = _share(end_tile - first_tile, splits, LEAST)
    first_tile += split * share
    end_tile = tl.minimum(end_tile, first_tile + share)
    if first_tile >= end_tile:  # there are as many programs as the longest context has splits
        return

    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    head = kv_head * GROUP + m_rows % GROUP
    row_mask = member < count
    request = row_request.to(tl.int64)
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
    for tile_of_keys in range(first_tile, end_tile):
        key = tile_of_keys * BLOCK_N + n
        shown = (key >= begin) & (key < end)  # at least one of every tile
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
    index = (request * tl.num_programs(0) * GROUP + head) * (shared_splits + own_splits) + column
    tl.store(mix_ptr + index[:, None] * BLOCK_D + d[None, :], acc, mask=row_mask[:, None])
    tl.store(stats_ptr + index * 2, m, mask=row_mask)
    tl.store(stats_ptr + index * 2 + 1, total, mask=row_mask)


@triton.jit
def _share(tiles, splits, LEAST: tl.constexpr):
    """Tiles of keys of each split, if they are divided evenly among at most `splits`; the last one may have fewer."""
    return tl.maximum(LEAST, (tiles + splits - 1) // splits)


@triton.jit(
    do_not_specialize=["shared_splits", "own_splits"],
    do_not_specialize_on_alignment=["context_lens_ptr", "lens_ptr"],
)
def _merge_kernel(
    mix_ptr,
    stats_ptr,
    out_ptr,
    context_lens_ptr,
    lens_ptr,
    shared_splits,
    own_splits,
    stride_ot,
    stride_oh,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LEAST: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid: (requests, heads). Merges the parts of a row that there are, all at once."""
    request = tl.program_id(0)
    head = tl.program_id(1)
    shared = tl.load(lens_ptr + request)
    context = tl.load(context_lens_ptr + request)
    prefix_tiles = (shared + BLOCK_N - 1) // BLOCK_N
    own_tiles = (context + BLOCK_N - 1) // BLOCK_N - shared // BLOCK_N
    prefix_share = _share(prefix_tiles, shared_splits, LEAST)
    own_share = _share(own_tiles, own_splits, LEAST)
    column = tl.arange(0, COLUMNS)
    d = tl.arange(0, BLOCK_D)
    is_prefix = column < (prefix_tiles + prefix_share - 1) // prefix_share
    own = column - shared_splits
    there = is_prefix | ((own >= 0) & (own < (own_tiles + own_share - 1) // own_share))
    at = (request * tl.num_programs(1) + head).to(tl.int64) * (shared_splits + own_splits) + column
    m = tl.load(stats_ptr + at * 2, mask=there, other=float("-inf"))
    total = tl.load(stats_ptr + at * 2 + 1, mask=there, other=0.0)
    acc = tl.load(mix_ptr + at[:, None] * BLOCK_D + d[None, :], mask=there[:, None], other=0.0)
    weight = tl.exp2(m - tl.max(m, 0))
    out = tl.sum(acc * weight[:, None], 0) / tl.sum(total * weight, 0)
    to = out_ptr + request.to(tl.int64) * stride_ot + head * stride_oh + d
    tl.store(to, out.to(out_ptr.dtype.element_ty), mask=d < HEAD_DIM)
