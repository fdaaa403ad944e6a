# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""QK-norm, RoPE and the store of K and V into pages, in one Triton kernel: all between the qkv product and attention.

Each head of q and k is normed where the model does (RMSNorm over the head), then its halves turn by the angles of the
token's position; k and v go to the token's slot. A program holds some heads of one token; every element is read once
and written once. The twin is `reference.rotate_and_store`; rounding between the steps is the twin's.
Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from octavo_kernels.programmatic_launch import overlap, wait_for_inputs

_HEADS: Final = 8  # at most, in a program


def rotate_and_store(
    qkv: torch.Tensor,
    rope: tuple[torch.Tensor, torch.Tensor],
    norms: tuple[torch.Tensor, torch.Tensor, float] | None,
    cache: tuple[torch.Tensor, torch.Tensor],
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """q [T, heads, d], normed and rotated; k, likewise, and v are stored in the cache.

    qkv: [T, heads + 2 kv_heads, d], each token's q, k and v heads. rope: cos and sin of the tokens' positions,
    [T, d / 2] float32. norms: the weights for q and k, [d], and eps. cache: K and V, [pages, page size, kv_heads, d] of
    any strides but the last, which is 1. slot_mapping: [T] int64; a slot is page · page size + offset.
    """
    tokens, all_heads, head_dim = qkv.shape
    k_cache, v_cache = cache
    _, page_size, kv_heads, _ = k_cache.shape
    heads = all_heads - 2 * kv_heads
    q = qkv.new_empty(tokens, heads, head_dim)
    if tokens == 0:
        return q
    q_norm, k_norm, eps = norms or (qkv, qkv, 0.0)
    block_heads = min(_HEADS, triton.next_power_of_2(all_heads))
    _rotate_and_store_kernel[(tokens, triton.cdiv(all_heads, block_heads))](
        qkv,
        *rope,
        q_norm,
        k_norm,
        eps,
        q,
        k_cache,
        v_cache,
        slot_mapping,
        *qkv.stride()[:2],
        rope[0].stride(0),
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=head_dim // 2,
        BLOCK_HEADS=block_heads,
        BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
        PAGE_SIZE=page_size,
        NORM=norms is not None,
        num_warps=2,
        **overlap(qkv.device),
    )
    return q


@triton.jit(do_not_specialize=["eps"], do_not_specialize_on_alignment=["slot_ptr"])
def _rotate_and_store_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    eps,
    q_ptr,
    k_ptr,
    v_ptr,
    slot_ptr,
    stride_t,
    stride_h,
    stride_rope,
    stride_kp,
    stride_kt,
    stride_kh,
    stride_vp,
    stride_vt,
    stride_vh,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    NORM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid: (tokens, blocks of heads)."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    i = tl.arange(0, BLOCK_HALF)
    half = i[None, :] < HALF
    wait_for_inputs(OVERLAP)
    slot = tl.load(slot_ptr + token)
    cos = tl.load(cos_ptr + token * stride_rope + i, mask=i < HALF, other=0.0)[None, :]
    sin = tl.load(sin_ptr + token * stride_rope + i, mask=i < HALF, other=0.0)[None, :]
    mask = (head < HEADS + 2 * KV_HEADS)[:, None] & half
    at = qkv_ptr + token * stride_t + head[:, None] * stride_h + i[None, :]
    raw_first = tl.load(at, mask=mask, other=0.0)
    raw_second = tl.load(at + HALF, mask=mask, other=0.0)
    first = raw_first.to(tl.float32)
    second = raw_second.to(tl.float32)
    is_q = (head < HEADS)[:, None]
    is_k = (head >= HEADS)[:, None] & (head < HEADS + KV_HEADS)[:, None]
    is_v = (head >= HEADS + KV_HEADS)[:, None] & mask
    if NORM:
        square = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        scale = (1.0 / tl.sqrt(square / (2 * HALF) + eps))[:, None]
        column = tl.arange(0, BLOCK_HALF)
        q_first = tl.load(q_norm_ptr + column, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
        q_second = tl.load(q_norm_ptr + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
        k_first = tl.load(k_norm_ptr + column, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
        k_second = tl.load(k_norm_ptr + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
        first = (first * scale).to(raw_first.dtype).to(tl.float32) * tl.where(is_q, q_first, k_first)
        second = (second * scale).to(raw_first.dtype).to(tl.float32) * tl.where(is_q, q_second, k_second)
        first = first.to(raw_first.dtype).to(tl.float32)
        second = second.to(raw_first.dtype).to(tl.float32)
    turned_first = (first * cos - second * sin).to(raw_first.dtype)
    turned_second = (second * cos + first * sin).to(raw_first.dtype)
    q_at = q_ptr + (token * HEADS + head[:, None]) * (2 * HALF) + i[None, :]
    tl.store(q_at, turned_first, mask=is_q & half)
    tl.store(q_at + HALF, turned_second, mask=is_q & half)
    page = slot // PAGE_SIZE
    offset = slot % PAGE_SIZE
    k_at = k_ptr + page * stride_kp + offset * stride_kt + (head - HEADS)[:, None] * stride_kh + i[None, :]
    tl.store(k_at, turned_first, mask=is_k & half)
    tl.store(k_at + HALF, turned_second, mask=is_k & half)
    v_at = v_ptr + page * stride_vp + offset * stride_vt + (head - HEADS - KV_HEADS)[:, None] * stride_vh + i[None, :]
    tl.store(v_at, raw_first, mask=is_v)
    tl.store(v_at + HALF, raw_second, mask=is_v)
