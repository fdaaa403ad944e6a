"""Linear maps as a model calls them with `--batch-invariant`: `small_linear`'s, whose rows do not see each other."""

import torch

from octavo_kernels.linear import linear_invariant
from octavo_kernels.residual import Linear, Norm, Residual
from octavo_kernels.rms_norm import norm_residual
from octavo_kernels.silu_and_mul import silu_and_mul


def norm_linear(residual: Residual, norm: Norm, linear: Linear) -> torch.Tensor:
    """[T, out]: the linear map of the normed stream."""
    return linear_invariant(norm_residual(residual, norm), *linear)


def norm_gated_linear(residual: Residual, norm: Norm, linear: Linear) -> torch.Tensor:
    """[T, n]: SwiGLU's first half of the normed stream; weight [2 n, in], gate first."""
    return silu_and_mul(linear_invariant(norm_residual(residual, norm), *linear))


def linear_add(x: torch.Tensor, linear: Linear, residual: Residual) -> None:
    """Adds x Wᵀ + b to a stream where nothing is pending."""
    residual.pending = linear_invariant(x, *linear)


def logits(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """[n, in] × [vocab, in] → [n, vocab] float32, into `out` if it is given."""
    found = linear_invariant(x, weight)
    return found.float() if out is None else out.copy_(found)
