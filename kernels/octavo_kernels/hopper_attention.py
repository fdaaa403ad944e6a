"""Attention of chunks on Hopper: the launch, and the tiles of a step. `hopper_kernel` is what runs on the device.

K and V come out of their pages by the copy engine, a piece of a page at a time: nothing is gathered first. What
`takes_chunks` leaves goes to `gathered_attention` and `paged_attention`; their twin is this one's, too.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from octavo_kernels.hopper_kernel import hopper_kernel, tiles_kernel
from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.paged_attention import LOG2_E

_TYPES: Final = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}


@dataclass(frozen=True, slots=True)
class HopperConfig:
    """How the work is cut.

    groups: of 64 rows (positions times query heads of a key head) in a tile; 1 or 2. keys: of a tile. stages: tiles of
    K and of V in shared memory. programs: on each processor, each taking one tile after the other; 0: as many as there
    can be tiles. heads_first: the key heads of a tile follow each other; otherwise the tiles of a key head do.
    backwards: every second round of programs goes that way.
    """

    groups: int
    keys: int
    stages: int
    programs: int
    heads_first: bool
    backwards: bool = False


# What was fastest on an H100 for 32 query heads, 8 key heads of 128 in bf16, pages of 16 (benchmarks/LOG.md).
_ONE: Final = HopperConfig(2, 128, 2, 1, heads_first=True, backwards=True)
_SEVERAL: Final = HopperConfig(2, 128, 2, 1, heads_first=False, backwards=True)
_SHORT: Final = HopperConfig(1, 64, 3, 2, heads_first=False)
CONFIGS: Final = (_ONE, _SEVERAL, _SHORT)
_FEW_TOKENS: Final = 256  # of a step: large tiles of these are fewer than the processors, however long contexts are


def hopper_config(longest: int, most_keys: int, num_tokens: int) -> HopperConfig:
    """By the longest chunk's tokens, the longest context, and the step's tokens: whether it is nearly all one chunk."""
    if most_keys <= 1024 or num_tokens <= _FEW_TOKENS:
        return _SHORT
    return _ONE if 2 * longest >= num_tokens else _SEVERAL


def takes_chunks(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, metadata: AttentionMetadata, window: int | None
) -> bool:
    """Whether `hopper_attention` computes the step's chunks, if it has any: what types, sizes and places it bears."""
    if q.dtype not in _TYPES or window is not None or not _is_hopper(q.device):
        return False
    if metadata.max_query_len == 1 or len(q) < 2:
        return False
    return q.shape[1] // k_cache.shape[2] <= 64 and all(_has_rows(cache) for cache in (k_cache, v_cache))


def _has_rows(cache: torch.Tensor) -> bool:
    """Whether its memory is rows of one head's elements that the copy engine can fetch, those of a page in order."""
    head_dim, page_size = cache.shape[3], cache.shape[1]
    places = (cache.stride(0), cache.stride(2), cache.storage_offset())
    in_rows = cache.stride(1) == head_dim and not any(place % head_dim for place in places)
    return head_dim in (64, 128) and page_size >= 8 and in_rows and cache.untyped_storage().data_ptr() % 16 == 0


@cache
def _is_hopper(device: torch.device) -> bool:
    """Its matrix instructions are in no other generation."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def hopper_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    config: HopperConfig | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `paged_attention` without a window, but rows of requests with one token are left as they are.

    For steps that `takes_chunks` takes. out: where the result goes, contiguous.
    """
    num_tokens, heads, head_dim = q.shape
    _, page_size, kv_heads, _ = k_cache.shape
    group = heads // kv_heads
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    if config is None:
        most_keys = metadata.max_context_len or metadata.block_tables.shape[1] * page_size
        config = hopper_config(metadata.max_query_len or num_tokens, most_keys, num_tokens)
    tiles = chunk_tiles(metadata, num_tokens, 64 * config.groups // group)
    box = min(page_size, config.keys)
    most = kv_heads * (len(tiles) - 1)
    programs = min(most, config.programs * _processors(q.device) or most)
    hopper_kernel[(programs,)](
        q,
        _rows(k_cache, metadata, box),
        _rows(v_cache, metadata, box),
        out,
        tiles,
        metadata.block_tables,
        scale * LOG2_E,
        metadata.block_tables.stride(0),
        k_cache.storage_offset() // head_dim,
        v_cache.storage_offset() // head_dim,
        config.heads_first + 2 * config.backwards,
        k_cache.stride(0) // head_dim,
        k_cache.stride(2) // head_dim,
        *q.stride()[:2],
        *out.stride()[:2],
        KV_HEADS=kv_heads,
        GROUP=group,
        GROUPS=config.groups,
        BLOCK_N=config.keys,
        PAGE_SIZE=page_size,
        STAGES=config.stages,
        num_warps=4,
        maxnreg=168 if config.groups == 2 else 128,
    )
    return out


def chunk_tiles(metadata: AttentionMetadata, num_tokens: int, positions: int) -> torch.Tensor:
    """The tiles of so many positions that the step's requests with two tokens or more are cut into.

    [1 + most, 4] int32. The first row begins with how many there are. Of each: its first token, that one's position,
    its request's context, and its request. The last come first, as they are likely to have the most keys. Worked out
    once a step.
    """
    key = ("chunk tiles", positions)
    found: torch.Tensor | None = metadata.plans.get(key)
    if found is None:
        requests = len(metadata.block_tables)
        most = num_tokens // positions + min(requests, num_tokens // 2)
        found = metadata.plans[key] = metadata.query_start.new_empty(1 + most, 4)
        tiles_kernel[(1,)](metadata.query_start, metadata.context_lens, found, requests, positions, BLOCK=128)
    return found


def _rows(cache: torch.Tensor, metadata: AttentionMetadata, box: int) -> Any:
    """All of the memory that a cache is a view of, as rows of d elements: one descriptor for a whole step."""
    storage, head_dim = cache.untyped_storage(), cache.shape[3]
    key = ("rows", storage.data_ptr(), head_dim, box)
    found = metadata.plans.get(key)
    if found is None:
        shape = [storage.nbytes() // cache.element_size() // head_dim, head_dim]
        layout = gl.NVMMASharedLayout.get_default_for([box, head_dim], _TYPES[cache.dtype])
        rows = cache.as_strided(shape, [head_dim, 1], 0)
        found = metadata.plans[key] = TensorDescriptor(rows, shape, [head_dim, 1], [box, head_dim], layout)
    return found
