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

from typing import Final

import torch
import torch.nn.functional as F

ROW_TILE: Final = 16


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """y = x Wᵀ + b, [T, in] × [out, in] → [T, out]; in tiles of rows on a CPU."""
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    num_rows = x.shape[0]
    padding = -num_rows % ROW_TILE
    if padding:
        x = F.pad(x, (0, 0, 0, padding))
    y = x.new_empty(num_rows + padding, weight.shape[0])
    transposed = weight.t()
    for rows, out in zip(torch.split(x, ROW_TILE), torch.split(y, ROW_TILE), strict=True):
        torch.mm(rows, transposed, out=out)
    y = y[:num_rows]
    return y if bias is None else y.add_(bias)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / √(mean(x²) + eps) · w over the last dimension, [..., n] and [n] → [..., n], worked out in float32.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    wide = x.contiguous().to(_working_type(x))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates each head's halves by the angle of its position: [T, heads, d] and two of [T, d / 2] → [T, heads, d].

    Element i turns with element i + d/2, as in Hugging Face's checkpoints. cos and sin are float32; so is the work.
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    first, second = x.to(_working_type(x)).chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """SwiGLU's middle: silu(gate) · up from [T, 2 n] (gate first) → [T, n], where silu(z) = z / (1 + e⁻ᶻ).

    Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    gate, up = x.chunk(2, dim=-1)
    gate = gate.to(_working_type(x))
    return (gate / (1.0 + torch.exp(-gate))).to(x.dtype) * up


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


def _working_type(x: torch.Tensor) -> torch.dtype:
    """float32, or float64 where that is what comes in."""
    return torch.promote_types(x.dtype, torch.float32)
