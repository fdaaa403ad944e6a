"""Linear maps as a model calls them with `--batch-invariant`: `small_linear`'s, whose rows do not see each other."""

import torch

from octavo_kernels.linear import linear_invariant
from octavo_kernels.rms_norm import add_rms_norm
from octavo_kernels.silu_and_mul import silu_and_mul


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """[T, in] × [out, in] → [T, out], plus bias [out]."""
    return linear_invariant(x, weight, bias)


def gated_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """SwiGLU's first half: [T, in] × [2 n, in] (gate first) → [T, n]."""
    return silu_and_mul(linear_invariant(x, weight, bias))


def linear_add_rms_norm(
    x: torch.Tensor,
    weight_and_bias: tuple[torch.Tensor, torch.Tensor | None],
    residual: torch.Tensor,
    norm: tuple[torch.Tensor, float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of residual + (x Wᵀ + b), and that sum, [T, out] each; the sum is written over the residual."""
    return add_rms_norm(linear_invariant(x, *weight_and_bias), residual, *norm)


def logits(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """[n, in] × [vocab, in] → [n, vocab] float32, into `out` if it is given."""
    found = linear_invariant(x, weight)
    return found.float() if out is None else out.copy_(found)
