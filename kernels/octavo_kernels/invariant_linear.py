"""Linear maps as a model calls them with `--batch-invariant`: `small_linear`'s, whose rows do not see each other.

On Hopper many rows go to `hopper_linear`: the matrix units sum alike there, as with any tile of `linear`.
"""

import torch

from octavo_kernels.hopper_linear import hopper_gated, hopper_linear, takes
from octavo_kernels.linear import linear_invariant
from octavo_kernels.residual import Linear, Norm, Residual
from octavo_kernels.rms_norm import norm_residual
from octavo_kernels.silu_and_mul import silu_and_mul

MANY_ROWS = 128


def norm_linear(residual: Residual, norm: Norm, linear: Linear) -> torch.Tensor:
    """[T, out]: the linear map of the normed stream."""
    return linear_of(norm_residual(residual, norm, invariant=True), *linear)


def norm_gated_linear(residual: Residual, norm: Norm, linear: Linear) -> torch.Tensor:
    """[T, n]: SwiGLU's first half of the normed stream; weight [2 n, in], gate first."""
    x = norm_residual(residual, norm, invariant=True)
    if len(x) >= MANY_ROWS and takes(x, *linear):
        return hopper_gated(x, linear[0])
    return silu_and_mul(linear_of(x, *linear))


def linear_add(x: torch.Tensor, linear: Linear, residual: Residual) -> None:
    """Adds x Wᵀ + b to a stream where nothing is pending."""
    residual.pending = linear_of(x, *linear)


def logits(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """[n, in] × [vocab, in] → [n, vocab] float32, into `out` if it is given."""
    found = linear_invariant(x, weight)
    return found.float() if out is None else out.copy_(found)


def linear_of(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """[T, in] × [out, in] → [T, out], plus bias [out]; a row's bits depend on nothing but the row."""
    if len(x) < MANY_ROWS or not takes(x, weight, None):
        return linear_invariant(x, weight, bias)
    y = hopper_linear(x, weight)
    return y if bias is None else y.add_(bias)  # rounded before and after, as in `linear`
