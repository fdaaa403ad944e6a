"""Linear maps as a model calls them on a GPU, each with what stands before and behind it, by the number of rows.

One row goes to `gemv`, 2 to `MOST_ROWS` rows to `few_rows`: there the reading of the weights is the work, and a kernel
of our own can begin it before its input is there. Which tile for which shape, `product_choices` says; for some shapes
that holds up to 128 rows. More rows go to cuBLAS, but with SwiGLU behind them, on Hopper, to `hopper_linear`; from
`MANY_ROWS` on cuBLAS also adds the residual stream, so that the norm behind it has half as much to read and write.
Float32, where the library is exact and nothing is won, goes to cuBLAS.
The twins are `reference`'s functions of the same names.
"""

import torch
import torch.nn.functional as F

from octavo_kernels import product_choices as choices
from octavo_kernels.few_rows import FewRowsConfig, few_rows_gated, few_rows_linear, few_rows_parts
from octavo_kernels.gemv import gated_gemv, gemv
from octavo_kernels.hopper_linear import hopper_gated, takes
from octavo_kernels.residual import Linear, Norm, Residual
from octavo_kernels.rms_norm import norm_residual
from octavo_kernels.silu_and_mul import silu_and_mul

MOST_ROWS = 16
MANY_ROWS = 512


def norm_linear(residual: Residual, norm: Norm, linear: Linear) -> torch.Tensor:
    """[T, out]: the linear map of the normed stream."""
    x = norm_residual(residual, norm)
    if (some := _some_rows(x, linear)) is not None:
        return few_rows_linear(x, *linear, some)
    if not _is_small(x):
        return F.linear(x, *linear)
    if len(x) == 1:
        return gemv(x, *linear, choices.one_row(linear[0]))
    return few_rows_linear(x, *linear, choices.few_rows(linear[0], len(x)))


def norm_gated_linear(residual: Residual, norm: Norm, linear: Linear) -> torch.Tensor:
    """[T, n]: SwiGLU's first half of the normed stream; weight [2 n, in], gate first."""
    x = norm_residual(residual, norm)
    if (some := _some_rows(x, linear)) is not None:
        return few_rows_gated(x, *linear, some)
    if len(x) > MOST_ROWS and takes(x, *linear):
        return hopper_gated(x, linear[0])
    if not _is_small(x):
        return silu_and_mul(F.linear(x, *linear))
    if len(x) == 1:
        return gated_gemv(x, *linear, choices.one_row(linear[0]))
    return few_rows_gated(x, *linear, choices.few_rows_of_gates(linear[0], len(x)))


def linear_add(x: torch.Tensor, linear: Linear, residual: Residual) -> None:
    """Adds x Wᵀ + b to a stream where nothing is pending."""
    weight, bias = linear
    if _is_small(x) and len(x) == 1:
        residual.pending = gemv(x, weight, bias, choices.one_row(weight))
    elif bias is None and (some := _some_rows(x, linear)) is not None:
        residual.pending = few_rows_parts(x, weight, some)
    elif bias is None and _is_small(x):
        residual.pending = few_rows_parts(x, weight, choices.few_rows_in_parts(weight, len(x)))
    elif bias is None and len(x) >= MANY_ROWS and x.dtype != torch.float32:
        residual.hidden.addmm_(x, weight.t())
    else:
        residual.pending = F.linear(x, weight, bias)


def logits(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """[n, in] × [vocab, in] → [n, vocab] float32, not rounded in between; into `out` if it is given."""
    if out is None:
        out = x.new_empty(len(x), len(weight), dtype=torch.float32)
    if len(x) == 0:
        return out
    if x.dtype == torch.float32:
        return torch.mm(x, weight.t(), out=out)
    if len(x) == 1:
        return gemv(x, weight, None, choices.one_row(weight), out)
    if len(x) <= MOST_ROWS:
        return few_rows_linear(x, weight, None, choices.few_rows(weight, len(x)), out)
    return torch.mm(x, weight.t(), out_dtype=torch.float32, out=out)


def _some_rows(x: torch.Tensor, linear: Linear) -> FewRowsConfig | None:
    """How `few_rows` takes more rows than `MOST_ROWS`, for the weights of which it is known to be faster."""
    if len(x) <= MOST_ROWS or x.dtype == torch.float32:
        return None
    return choices.some_rows(linear[0], len(x))


def _is_small(x: torch.Tensor) -> bool:
    return 0 < len(x) <= MOST_ROWS and x.dtype != torch.float32
