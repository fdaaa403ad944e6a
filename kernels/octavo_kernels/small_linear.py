# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Linear maps of few rows in Triton: a decode step at a small batch is the reading of weights, and little else.

    y = x Wᵀ + b

One row takes dot products on the ordinary units: a program reads some rows of W in stretches of BLOCK_K, keeps a
partial sum in each lane and adds them up once, at the end. Two to 16 rows take the matrix units, with the smallest tile
that these have: 16 rows, however few there are (`linear`). cuBLAS reads at 2.67 TB/s where an H100 gives 3.08. The
twin is `reference.linear`.
"""

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from octavo_kernels.linear import LinearConfig, linear_tiles

# Up to so many rows cuBLAS is left aside (measured at 1 and 8, benchmarks/LOG.md); for more rows than one only where
# there are enough outputs to give every processor some.
MOST_ROWS = 16
_LEAST_OUTPUTS: Final = 4096
_TILE: Final = LinearConfig(16, 32, 128, 4, 6)


@dataclass(frozen=True, slots=True)
class GemvConfig:
    """Rows of W a program takes, and how much of them at a time."""

    outputs: int
    block_k: int
    num_warps: int


def gemv_config(inputs: int) -> GemvConfig:
    """A row at a time. A short one is no work for many warps, of which each waits for the others at the end."""
    if inputs <= 1024:
        return GemvConfig(1, min(512, triton.next_power_of_2(inputs)), 2)
    return GemvConfig(1, 1024, 8)


def small_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """[T, in] × [out, in] → [T, out], plus bias [out]: by T one of three implementations. Sums in float32.

    Above `MOST_ROWS` rows, for few outputs, and for float32, where the library is exact and nothing is won, cuBLAS.
    """
    rows = x.shape[0]
    if rows == 0 or rows > MOST_ROWS or x.dtype == torch.float32:
        return F.linear(x, weight, bias)
    if rows == 1:
        return gemv(x, weight, bias)
    if len(weight) < _LEAST_OUTPUTS:
        return F.linear(x, weight, bias)
    return linear_tiles(x, weight, bias, _TILE)


def gemv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, config: GemvConfig | None = None
) -> torch.Tensor:
    """One row: [1, in] × [out, in] → [1, out], plus bias [out]."""
    outputs, inputs = weight.shape
    config = config or gemv_config(inputs)
    y = x.new_empty(1, outputs)
    _gemv_kernel[(triton.cdiv(outputs, config.outputs),)](
        x,
        weight,
        weight if bias is None else bias,
        y,
        outputs,
        inputs,
        weight.stride(0),
        WHOLE=inputs % config.block_k == 0,
        BIAS=bias is not None,
        OUTPUTS=config.outputs,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
    )
    return y


@triton.jit(do_not_specialize=["outputs", "inputs"])
def _gemv_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    outputs,
    inputs,
    stride_weight,
    WHOLE: tl.constexpr,  # inputs are a multiple of BLOCK_K
    BIAS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid: (blocks of outputs,)."""
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.arange(0, BLOCK_K)
    # Past the last output the last one stands in: what comes of it is not stored.
    w_at = weight_ptr + tl.minimum(output, outputs - 1).to(tl.int64)[:, None] * stride_weight + k[None, :]
    total = tl.full([OUTPUTS, BLOCK_K], 0.0, tl.float32)
    for start in range(0, inputs, BLOCK_K):
        if WHOLE:
            x = tl.load(x_ptr + start + k)
            w = tl.load(w_at + start)
        else:
            x = tl.load(x_ptr + start + k, mask=k < inputs - start, other=0.0)
            w = tl.load(w_at + start, mask=k[None, :] < inputs - start, other=0.0)
        total += w.to(tl.float32) * x.to(tl.float32)[None, :]
    y = tl.sum(total, 1).to(y_ptr.dtype.element_ty)
    if BIAS:
        # Rounded before and after, as in the twin.
        bias = tl.load(bias_ptr + output, mask=output < outputs, other=0.0)
        y = (y.to(tl.float32) + bias.to(tl.float32)).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + output, y, mask=output < outputs)
