# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Attention for long chunks: K and V are first gathered from their pages into one stretch, then read tile by tile.

Gathering moves every key once; the attention of a long chunk reads it once for each tile of rows. So for a prompt of
8192 tokens the copy is some 2 % of the work, and what reads the stretch needs no page table: Triton with tensor
descriptors (the copy engine fetches tiles, no thread holds addresses), or torch's own attention where all requests are
whole prompts of one length. The twin of both is `reference_attention.paged_attention`.
"""

from typing import Final

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.paged_attention import AttentionConfig, Launch, chunk_config

_ALIGNMENT: Final = 128  # rows of a request's stretch: a multiple of every tile of keys


def gather_pages(
    k_cache: torch.Tensor, v_cache: torch.Tensor, metadata: AttentionMetadata, longest: int
) -> torch.Tensor:
    """K and V of every request, [2, kv_heads, R, N, d], N being `longest` rounded up to a multiple of 128.

    The rows of a request from its context to the next multiple of 128 are zeros, as 0 · NaN is NaN; what lies beyond
    these may be anything.
    """
    _, page_size, kv_heads, head_dim = k_cache.shape
    requests = len(metadata.block_tables)
    length = triton.cdiv(longest, _ALIGNMENT) * _ALIGNMENT
    like = k_cache.new_empty(0)
    found = metadata.workspace.take("gathered", (2, kv_heads, requests, length, head_dim), like)
    _gather_kernel[(length // _ALIGNMENT, requests, kv_heads)](
        k_cache,
        v_cache,
        found,
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
) -> torch.Tensor:
    """As `paged_attention`, but rows of requests with one token are left as they are: for chunks, of any lengths.

    Takes scratch memory for R times the longest context. d must be a multiple of 8 (boxes start at 16 bytes).
    """
    num_tokens, heads, head_dim = q.shape
    _, page_size, kv_heads, _ = k_cache.shape
    longest = min(metadata.max_context_len or 2**31, metadata.block_tables.shape[1] * page_size)
    found = gather_pages(k_cache, v_cache, metadata, longest)
    group, block_d = heads // kv_heads, max(16, triton.next_power_of_2(head_dim))
    config = config or chunk_config(q.dtype, block_d, group, metadata.max_query_len or num_tokens)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    rows = [half.view(-1, head_dim) for half in found]
    k, v = (TensorDescriptor.from_tensor(half, [config.block_keys, block_d]) for half in rows)
    launch = Launch(q, k_cache, v_cache, out, metadata, scale, sliding_window or 0, group, block_d)
    launch.gathered_chunks(config, num_tokens, kv_heads, (k, v, found.shape[3]))
    return out


def whole_prompts(metadata: AttentionMetadata, num_tokens: int) -> bool:
    """Whether the host can tell that every request is a whole prompt, all of one length.

    The bounds that it knows say so where they are tight: as many tokens as requests of the longest can have, and none
    of them with more in the cache than in the step.
    """
    longest = metadata.max_query_len
    if longest is None or longest != metadata.max_context_len:
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
    do_not_specialize_on_alignment=["context_lens_ptr", "tables_ptr"],
)
def _gather_kernel(
    k_ptr,
    v_ptr,
    found_ptr,
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
