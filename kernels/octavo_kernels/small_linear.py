"""Linear maps as a model calls them on a GPU, each with what comes next to it, by the number of rows.

One row goes to `gemv`, 2 to `MOST_ROWS` rows to `few_rows`: there the reading of the weights is the work, and a kernel
of our own can begin it before its input is there. More rows, and float32, where the library is exact and nothing is
won, go to cuBLAS. Which tile for which shape: what was fastest on an H100 (benchmarks/LOG.md).
"""

import torch
import torch.nn.functional as F

from octavo_kernels.few_rows import FewRowsConfig, few_rows_gated, few_rows_linear, few_rows_parts
from octavo_kernels.gemv import gated_gemv, gemv
from octavo_kernels.rms_norm import add_rms_norm
from octavo_kernels.silu_and_mul import silu_and_mul

MOST_ROWS = 16


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """[T, in] × [out, in] → [T, out], plus bias [out]. Sums in float32."""
    if not _is_small(x):
        return F.linear(x, weight, bias)
    if len(x) == 1:
        return gemv(x, weight, bias)
    return few_rows_linear(x, weight, bias, few_rows_config(len(weight)))


def gated_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """SwiGLU's first half: [T, in] × [2 n, in] (gate first) → [T, n]."""
    if not _is_small(x):
        return silu_and_mul(F.linear(x, weight, bias))
    if len(x) == 1:
        return gated_gemv(x, weight, bias)
    return few_rows_gated(x, weight, bias, gated_config())


def linear_add_rms_norm(
    x: torch.Tensor,
    weight_and_bias: tuple[torch.Tensor, torch.Tensor | None],
    residual: torch.Tensor,
    norm: tuple[torch.Tensor, float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of residual + (x Wᵀ + b), and that sum, [T, out] each; the sum is written over the residual."""
    weight, bias = weight_and_bias
    if bias is None and _is_small(x) and len(x) > 1:
        return add_rms_norm(few_rows_parts(x, weight, split_config(len(weight))), residual, *norm)
    return add_rms_norm(linear(x, weight, bias), residual, *norm)


def logits(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """[n, in] × [vocab, in] → [n, vocab] float32, not rounded in between; into `out` if it is given."""
    if out is None:
        out = x.new_empty(len(x), len(weight), dtype=torch.float32)
    if len(x) == 0:
        return out
    if x.dtype == torch.float32:
        return torch.mm(x, weight.t(), out=out)
    if len(x) == 1:
        return gemv(x, weight, out=out)
    if len(x) <= MOST_ROWS:
        return few_rows_linear(x, weight, None, few_rows_config(len(weight)), out)
    return torch.mm(x, weight.t(), out_dtype=torch.float32, out=out)


def few_rows_config(outputs: int) -> FewRowsConfig:
    return FewRowsConfig(32, 128, 4, 6)


def gated_config() -> FewRowsConfig:
    return FewRowsConfig(32, 128, 4, 5)


def split_config(outputs: int) -> FewRowsConfig:
    """For few outputs: so many splits that every processor has two programs."""
    return FewRowsConfig(32, 128, 4, 6, max(1, min(8, 8448 // outputs)))


def _is_small(x: torch.Tensor) -> bool:
    return 0 < len(x) <= MOST_ROWS and x.dtype != torch.float32
