# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Attention for long chunks: K and V are first gathered from their pages into one stretch, then read tile by tile.

Gathering moves every key once; the attention of a long chunk reads it once for each tile of rows. So for a prompt of
8192 tokens the copy is some 3 % of the work, and what reads the stretch needs no page table: Triton with tensor
descriptors (the copy engine fetches tiles, no thread holds addresses), or torch's own attention where all requests are
whole prompts of one length; that one is measured, and not chosen by itself: the library makes a plan for each length
it meets. `attention` is what a model calls. The twin of all is `reference_attention.paged_attention`.
"""

import math
from dataclasses import replace
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo_kernels.hopper_attention import hopper_attention, takes_chunks
from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.paged_attention import AttentionConfig, Launch, chunk_config, for_device, paged_attention
from octavo_kernels.shared_prefix_attention import shared_prefix_attention, takes

_ALIGNMENT: Final = 128  # rows of a request's stretch: a multiple of every tile of keys
# Scratch memory of `attention`, taken whole at the first long chunk and kept: it depends on no step's shape, so a
# start-up that measures what a step of the longest chunks takes has seen it. Beyond it, pages are read in place.
SCRATCH_BYTES: Final = 2**28
# What a step must come to for gathering to pay: tokens of its longest chunk, and tokens · keys · query heads. With 32
# heads a prompt of 2048 (1.3e8) gained 4 % of the whole model's time; with 16 (0.7e8) launching one more kernel a layer
# cost more than it brought.
_LEAST_TOKENS: Final = 256
_LEAST_SCORES: Final = 10**8


def attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """As `paged_attention`, by what is known to be fastest: on Hopper a kernel of its own for chunks.

    Prefixes that `metadata.shared` names are read once for all that share them. Elsewhere, and for what these do not
    take, K and V of long chunks are gathered first.
    """
    if takes(metadata, k_cache, sliding_window):
        return shared_prefix_attention(q, k_cache, v_cache, metadata, scale)
    if takes_chunks(q, k_cache, v_cache, metadata, sliding_window):
        out = _single_tokens(q, k_cache, v_cache, metadata, scale)
        return hopper_attention(q, k_cache, v_cache, metadata, scale, out=out)
    most_keys = _most_keys(metadata, k_cache)
    if not _is_long(q, metadata, most_keys):
        return paged_attention(q, k_cache, v_cache, metadata, scale, sliding_window)
    scratch = metadata.workspace.take("gathered", (SCRATCH_BYTES // q.element_size(),), q)
    if math.prod(_stretch(k_cache, metadata, most_keys)) > len(scratch):
        return paged_attention(q, k_cache, v_cache, metadata, scale, sliding_window)
    out = _single_tokens(q, k_cache, v_cache, metadata, scale, sliding_window)
    return gathered_attention(q, k_cache, v_cache, metadata, scale, sliding_window, out=out)


def _single_tokens(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """As `paged_attention` for requests with one token; the other rows may be anything."""
    if metadata.all_chunks or len(q) == len(metadata.block_tables) * (metadata.max_query_len or 0):
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    singles = replace(metadata, max_query_len=1)
    return paged_attention(q, k_cache, v_cache, singles, scale, sliding_window)


def _is_long(q: torch.Tensor, metadata: AttentionMetadata, most_keys: int) -> bool:
    """Whether the step's chunks are work enough, on a device with an engine that copies tiles, in a type it takes."""
    num_tokens, heads, head_dim = q.shape
    if q.dtype == torch.float32 or head_dim % 8 or (metadata.max_query_len or 0) < _LEAST_TOKENS:
        return False
    scores = (num_tokens - len(metadata.block_tables)) * heads * most_keys
    return scores >= _LEAST_SCORES and _copies_tiles(q.device)


@cache
def _copies_tiles(device: torch.device) -> bool:
    """Hopper and later; the interpreter, on a CPU, plays one."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def _most_keys(metadata: AttentionMetadata, k_cache: torch.Tensor) -> int:
    held = metadata.block_tables.shape[1] * k_cache.shape[1]
    return min(metadata.max_context_len or held, held)


def _stretch(k_cache: torch.Tensor, metadata: AttentionMetadata, longest: int) -> tuple[int, int, int, int, int]:
    """2, kv_heads, R, N, d: the shape of gathered K and V."""
    _, _, kv_heads, head_dim = k_cache.shape
    length = triton.cdiv(longest, _ALIGNMENT) * _ALIGNMENT
    return 2, kv_heads, len(metadata.block_tables), length, head_dim


def gather_pages(
    k_cache: torch.Tensor, v_cache: torch.Tensor, metadata: AttentionMetadata, longest: int
) -> torch.Tensor:
    """K and V of every request with two tokens or more in the step, [2, kv_heads, R, N, d].

    N is `longest` rounded up to a multiple of 128. The rows of a request from its context to the next multiple of 128
    are zeros, as 0 · NaN is NaN; what lies beyond these, and other requests' rows, may be anything.
    """
    page_size, head_dim = k_cache.shape[1], k_cache.shape[3]
    shape = _stretch(k_cache, metadata, longest)
    _, kv_heads, requests, length, _ = shape
    found = metadata.workspace.take("gathered", shape, k_cache.new_empty(0))
    _gather_kernel[(length // _ALIGNMENT, requests, kv_heads)](
        k_cache,
        v_cache,
        found,
        metadata.query_start,
        metadata.context_lens,
        metadata.block_tables,
        metadata.block_tables.stride(0),
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        length,
        PAGE_SIZE=page_size,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK=_ALIGNMENT,
        num_warps=8,
    )
    return found


def gathered_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
    config: AttentionConfig | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `paged_attention`, but rows of requests with one token are left as they are: for chunks, of any lengths.

    Takes scratch memory for R times the longest context. d must be a multiple of 8 (boxes start at 16 bytes).
    out: where the result goes, contiguous.
    """
    num_tokens, heads, head_dim = q.shape
    kv_heads = k_cache.shape[2]
    found = gather_pages(k_cache, v_cache, metadata, _most_keys(metadata, k_cache))
    group, block_d = heads // kv_heads, max(16, triton.next_power_of_2(head_dim))
    longest = metadata.max_query_len or num_tokens
    config = config or for_device(gathered_config(q.dtype, block_d, group, longest), block_d, q)
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    rows = [half.view(-1, head_dim) for half in found]
    k, v = (TensorDescriptor.from_tensor(half, [config.block_keys, block_d]) for half in rows)
    launch = Launch(q, k_cache, v_cache, out, metadata, scale, sliding_window or 0, group, block_d)
    launch.gathered_chunks(config, num_tokens, kv_heads, (k, v, found.shape[3]))
    return out


def gathered_config(dtype: torch.dtype, block_d: int, group: int, longest: int) -> AttentionConfig:
    """As `chunk_config`. Without addresses small tiles lose little; they win up to prompts of 2048 tokens."""
    if dtype == torch.float32 or block_d > 128:
        return chunk_config(dtype, block_d, group, longest)
    block_rows, *rest = (128, 128, 8, 3) if longest >= 4096 else (64, 64, 4, 3)
    return AttentionConfig(max(block_rows, triton.next_power_of_2(group)), *rest)


def whole_prompts(metadata: AttentionMetadata, num_tokens: int) -> bool:
    """Whether the host can tell that every request is a whole prompt, all of one length of two tokens or more.

    The bounds that it knows say so where they are tight: as many tokens as requests of the longest can have, and none
    of them with more in the cache than in the step.
    """
    longest = metadata.max_query_len
    if longest is None or longest < 2 or longest != metadata.max_context_len:
        return False
    return num_tokens == longest * len(metadata.block_tables)


def whole_prompt_attention(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, metadata: AttentionMetadata, scale: float
) -> torch.Tensor:
    """Causal attention over prompts for which `whole_prompts` holds, by torch: cuDNN's kernel where there is one."""
    num_tokens, heads, head_dim = q.shape
    requests = len(metadata.block_tables)
    length = num_tokens // requests
    found = gather_pages(k_cache, v_cache, metadata, length)[:, :, :, :length].transpose(1, 2)
    rows = q.view(requests, length, heads, head_dim).transpose(1, 2)
    out = F.scaled_dot_product_attention(rows, found[0], found[1], is_causal=True, scale=scale, enable_gqa=True)
    return out.transpose(1, 2).reshape(num_tokens, heads, head_dim)


@triton.jit(
    do_not_specialize=["stride_table", "length"],
    do_not_specialize_on_alignment=["query_start_ptr", "context_lens_ptr", "tables_ptr"],
)
def _gather_kernel(
    k_ptr,
    v_ptr,
    found_ptr,
    query_start_ptr,
    context_lens_ptr,
    tables_ptr,
    stride_table,
    stride_kp,
    stride_kt,
    stride_kh,
    stride_vp,
    stride_vt,
    stride_vh,
    length,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (blocks of keys, requests, kv_heads)."""
    request = tl.program_id(1)
    head = tl.program_id(2).to(tl.int64)
    context = tl.load(context_lens_ptr + request)
    if tl.program_id(0) * BLOCK >= context:
        return
    if tl.load(query_start_ptr + request + 1) - tl.load(query_start_ptr + request) < 2:
        return
    key = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, BLOCK_D)
    table_ptr = tables_ptr + request.to(tl.int64) * stride_table
    page = tl.load(table_ptr + key // PAGE_SIZE, mask=key < context, other=0).to(tl.int64)
    slot = (key % PAGE_SIZE).to(tl.int64)
    inside = (d < HEAD_DIM)[None, :]
    mask = (key < context)[:, None] & inside
    k_at = k_ptr + head * stride_kh + (page * stride_kp + slot * stride_kt)[:, None] + d[None, :]
    v_at = v_ptr + head * stride_vh + (page * stride_vp + slot * stride_vt)[:, None] + d[None, :]
    row = (head * tl.num_programs(1) + request) * length + key
    at = found_ptr + row[:, None] * HEAD_DIM + d[None, :]
    half = tl.num_programs(2).to(tl.int64) * tl.num_programs(1) * length * HEAD_DIM
    tl.store(at, tl.load(k_at, mask=mask, other=0.0), mask=inside)
    tl.store(at + half, tl.load(v_at, mask=mask, other=0.0), mask=inside)
