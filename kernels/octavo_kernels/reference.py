"""The operations in plain torch: the definition of correct, and what runs on a CPU. Attention: `reference_attention`.

**A row's bits depend on nothing but the row.** The same token gives the same bits alone and among others, in one chunk
or in many. Two things would break that, and both are avoided by construction:

- A matrix product sums in an order that depends on its number of rows (one row, few and many take different paths
  through the library). So linear maps run in tiles of `ROW_TILE` rows, the last one filled up with zeros.
- Element-wise functions may compute the last elements of a tensor, which fill no whole vector register, with another
  routine than the rest; torch does for `sigmoid` and `silu`. So here are only operations that IEEE 754 rounds
  exactly (sum, product, quotient, square root) and `exp`, which torch runs through one routine for all elements.

This holds for one number of threads: it is set once, before the first call, and never changed.
"""

import math
from typing import Final

import torch
import torch.nn.functional as F

from octavo_kernels.residual import Linear, Norm, Residual

ROW_TILE: Final = 16


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight [out, in] in the order in which `linear` reads it fastest; the same weight where there is no better one.

    For float32 on a CPU that is oneDNN's own blocked order (an opaque tensor, that only `linear` can read): a step with
    few rows is bound by reading the weights, and a plain matrix is put into that order anew in each product.
    """
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROW_TILE)
        return packed
    return weight


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """y = x Wᵀ + b, [T, in] × [out, in] → [T, out]; in tiles of rows on a CPU. The weight may be a packed one."""
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    num_rows = x.shape[0]
    padding = -num_rows % ROW_TILE
    if padding:
        x = torch.cat((x, x.new_zeros(padding, x.shape[1])))
    product = _packed_product if weight.is_mkldnn else F.linear
    if len(x) == ROW_TILE:
        y = product(x, weight)[:num_rows]
    else:
        y = torch.cat([product(tile, weight) for tile in torch.split(x, ROW_TILE)])[:num_rows]
    return y if bias is None else y.add_(bias)


def _packed_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return y


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / √(mean(x²) + eps) · w over the last dimension, [..., n] and [n] → [..., n], worked out in float32.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    wide = x.contiguous().to(_working_type(x))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of residual + x, and residual + x, [T, n] each. The residual must not be used again."""
    total = residual + x
    return rms_norm(total, weight, eps), total


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates each head's halves by the angles of its position: [T, heads, d] and two of [T, d] → [T, heads, d].

    Element i turns with element i + d/2, as in Hugging Face's checkpoints, so the halves of cos (and of sin) are alike;
    both are float32, and so is the work.
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    wide = x.to(_working_type(x))
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (wide * cos.unsqueeze(1)).add_(turned.mul_(sin.unsqueeze(1))).to(x.dtype)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """SwiGLU's middle: silu(gate) · up from [T, 2 n] (gate first) → [T, n], where silu(z) = z / (1 + e⁻ᶻ).

    Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    gate, up = x.chunk(2, dim=-1)
    gate = gate.to(_working_type(x))
    return (gate / (1.0 + torch.exp(-gate))).to(x.dtype) * up


def norm_residual(residual: Residual, norm: Norm) -> torch.Tensor:
    """[T, n]: `rms_norm` of the stream; what was pending has then been added."""
    if residual.pending is not None:
        residual.hidden, residual.pending = residual.hidden + residual.pending, None
    return rms_norm(residual.hidden, *norm)


def norm_linear(residual: Residual, norm: Norm, weight_and_bias: Linear) -> torch.Tensor:
    """`linear` of the normed stream, [T, out]."""
    return linear(norm_residual(residual, norm), *weight_and_bias)


def norm_gated_linear(residual: Residual, norm: Norm, weight_and_bias: Linear) -> torch.Tensor:
    """SwiGLU's first half, `silu_and_mul` of `linear` of the normed stream: weight [2 n, in], gate first → [T, n]."""
    return silu_and_mul(linear(norm_residual(residual, norm), *weight_and_bias))


def linear_add(x: torch.Tensor, weight_and_bias: Linear, residual: Residual) -> None:
    """Adds `linear` of x to a stream where nothing is pending."""
    residual.pending = linear(x, *weight_and_bias)


def logits(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """`linear` in float32, [n, in] × [vocab, in] → [n, vocab], into `out` if it is given. The weight may be packed."""
    found = linear(x, weight)
    return found.float() if out is None else out.copy_(found)


def store_kv(
    k: torch.Tensor, v: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    """Writes each token's K and V ([T, kv_heads, d]) into its slot.

    The caches are views [pages, page size, kv_heads, d] of any strides; slot_mapping is [T] int64, a slot being
    page · page size + offset.
    """
    page_size = k_cache.shape[1]
    page = torch.div(slot_mapping, page_size, rounding_mode="floor")
    offset = slot_mapping - page * page_size
    k_cache[page, offset] = k
    v_cache[page, offset] = v


def begin_step(
    embedding: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, token_ids: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """The tokens' embeddings, [T, n], and cos and sin of their positions as `apply_rope` takes them, [T, d] each.

    embedding: [vocab, n]. cos, sin: of every position, [P, d / 2]. token_ids, positions: [T] int64.
    """
    cos, sin = cos[positions], sin[positions]
    return embedding[token_ids], (torch.cat((cos, cos), dim=1), torch.cat((sin, sin), dim=1))


def rotate_and_store(
    qkv: torch.Tensor,
    rope: tuple[torch.Tensor, torch.Tensor],
    norms: tuple[torch.Tensor, torch.Tensor, float] | None,
    cache: tuple[torch.Tensor, torch.Tensor],
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """q [T, heads, d], normed where the model does, and rotated; k, likewise, and v are stored in their slots.

    qkv: [T, heads + 2 kv_heads, d]. rope: cos and sin of the tokens' positions, [T, d] float32. norms: the weights for
    q and k, [d], and eps. cache, slot_mapping: as for `store_kv`.
    """
    kv_heads = cache[0].shape[2]
    heads = qkv.shape[1] - 2 * kv_heads
    if norms is None:
        rotated = apply_rope(qkv[:, : heads + kv_heads], *rope)
        q, k = rotated[:, :heads], rotated[:, heads:]
    else:
        q_norm, k_norm, eps = norms
        q = apply_rope(rms_norm(qkv[:, :heads], q_norm, eps), *rope)
        k = apply_rope(rms_norm(qkv[:, heads : heads + kv_heads], k_norm, eps), *rope)
    store_kv(k, qkv[:, heads + kv_heads :], *cache, slot_mapping)
    return q


def apply_token_mask(logits: torch.Tensor, masks: torch.Tensor, forced: torch.Tensor) -> None:
    """Changes logits [n, vocab] of any float in place: −∞ where a bit of masks [n, words] int32 is not set.

    Bit b of word w stands for token 32·w + b. forced: [n] int32; where it is not 0, allowed tokens have the logit 0.
    """
    bits = masks.contiguous().view(torch.uint8)[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=masks.device)
    allowed = (bits & 1).to(torch.bool).flatten(1)[:, : logits.shape[1]]
    logits.masked_fill_(allowed & (forced != 0)[:, None], 0.0).masked_fill_(~allowed, -math.inf)


def _working_type(x: torch.Tensor) -> torch.dtype:
    """float32, or float64 where that is what comes in."""
    return torch.promote_types(x.dtype, torch.float32)
