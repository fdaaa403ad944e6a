# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""One row times a weight in Triton: the reading of the weight, and little else.

    y = x Wᵀ + b,   or, gated,   y = silu(x Gᵀ + a) · (x Uᵀ + c) with W = (G, U), b = (a, c)

x may be normed first (RMSNorm), and y added to what is there. Dot products on the ordinary units: a program reads some
rows of W in stretches of BLOCK_K, keeps a partial sum in each lane and adds them up once, at the end. Its first stretch
it reads before it waits for x (`programmatic_launch`); the norm of one row every program works out for itself, which
takes less than another kernel. cuBLAS reads at 2.67 TB/s where an H100 gives 3.08. Twins: `reference.norm_linear`,
`reference.norm_gated_linear`, `reference.linear_add`; rounding between the steps is theirs.
"""

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl

from octavo_kernels.programmatic_launch import overlap, wait_for_inputs
from octavo_kernels.residual import Linear, Norm

_PLAIN: Final = 0
_GATED: Final = 1
_ADD: Final = 2


@dataclass(frozen=True, slots=True)
class GemvConfig:
    """Outputs of a program, and how much of their rows of W it takes at a time."""

    outputs: int
    block_k: int
    num_warps: int


DEFAULT: Final = GemvConfig(1, 1024, 8)


def gemv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    config: GemvConfig = DEFAULT,
    *,
    norm: Norm | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """[1, in] × [out, in] → [1, out], plus bias [out]. out: where it goes, contiguous, of any floating type."""
    y = x.new_empty(1, len(weight)) if out is None else out
    _launch(x, norm, (weight, bias), y, _PLAIN, config)
    return y


def gated_gemv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    config: GemvConfig = DEFAULT,
    *,
    norm: Norm | None = None,
) -> torch.Tensor:
    """[1, in] × [2 n, in] (gate first) → [1, n]: SwiGLU's first half. bias: [2 n]."""
    y = x.new_empty(1, len(weight) // 2)
    _launch(x, norm, (weight, bias), y, _GATED, config)
    return y


def gemv_add(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    total: torch.Tensor,
    config: GemvConfig = DEFAULT,
) -> None:
    """As `gemv`; what comes out is added to total, [1, out] contiguous."""
    _launch(x, None, (weight, bias), total, _ADD, config)


def _launch(
    x: torch.Tensor,
    norm: Norm | None,
    linear: Linear,
    y: torch.Tensor,
    end: int,
    config: GemvConfig,
) -> None:
    weight, bias = linear
    norm_weight, eps = norm or (x, 0.0)
    outputs, inputs = y.shape[1], weight.shape[1]
    _gemv_kernel[(triton.cdiv(outputs, config.outputs),)](
        x,
        norm_weight,
        eps,
        weight,
        weight if bias is None else bias,
        y,
        outputs,
        weight.stride(0),
        INPUTS=inputs,
        NORM=norm is not None,
        BIAS=bias is not None,
        GATED=end == _GATED,
        ADD=end == _ADD,
        OUTPUTS=config.outputs,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        **overlap(x.device),
    )


@triton.jit(do_not_specialize=["eps", "outputs"])
def _gemv_kernel(
    x_ptr,
    norm_ptr,
    eps,
    weight_ptr,
    bias_ptr,
    y_ptr,
    outputs,
    stride_weight,
    INPUTS: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid: (blocks of outputs,)."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.arange(0, BLOCK_K)
    # Past the last output the last one stands in: what comes of it is not stored.
    row = tl.minimum(output, outputs - 1).to(tl.int64)
    w_at = weight_ptr + row[:, None] * stride_weight + k[None, :]
    up_at = w_at + outputs.to(tl.int64) * stride_weight
    w = _stretch(w_at, k[None, :], 0, INPUTS, BLOCK_K)
    if GATED:
        up = _stretch(up_at, k[None, :], 0, INPUTS, BLOCK_K)
    if NORM:
        norm = _stretch(norm_ptr + k, k, 0, INPUTS, BLOCK_K)
    if BIAS:
        bias = tl.load(bias_ptr + row).to(tl.float32)
        if GATED:
            up_bias = tl.load(bias_ptr + outputs + row).to(tl.float32)
    wait_for_inputs(OVERLAP)
    if ADD:
        before = tl.load(y_ptr + row).to(tl.float32)
    x = _stretch(x_ptr + k, k, 0, INPUTS, BLOCK_K).to(tl.float32)
    if NORM:
        squares = x * x
        for start in tl.static_range(BLOCK_K, INPUTS, BLOCK_K):
            more = _stretch(x_ptr + k, k, start, INPUTS, BLOCK_K).to(tl.float32)
            squares += more * more
        scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / INPUTS + eps)
        x = _normed(x, scale, norm, dtype)
    total = w.to(tl.float32) * x[None, :]
    if GATED:
        total_up = up.to(tl.float32) * x[None, :]
    for start in tl.static_range(BLOCK_K, INPUTS, BLOCK_K):
        x = _stretch(x_ptr + k, k, start, INPUTS, BLOCK_K).to(tl.float32)
        if NORM:
            x = _normed(x, scale, _stretch(norm_ptr + k, k, start, INPUTS, BLOCK_K), dtype)
        total += _stretch(w_at, k[None, :], start, INPUTS, BLOCK_K).to(tl.float32) * x[None, :]
        if GATED:
            total_up += _stretch(up_at, k[None, :], start, INPUTS, BLOCK_K).to(tl.float32) * x[None, :]
    mask = output < outputs
    y = tl.sum(total, 1)
    if BIAS:
        # Rounded before and after, as in the twin.
        y = y.to(dtype).to(tl.float32) + bias
    if GATED:
        up_sum = tl.sum(total_up, 1)
        if BIAS:
            up_sum = up_sum.to(dtype).to(tl.float32) + up_bias
        y = silu_times(y, up_sum, dtype)
    if ADD:
        y = y.to(dtype).to(tl.float32) + before
    tl.store(y_ptr + output, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _stretch(at, k, start: tl.constexpr, INPUTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Columns start to start + BLOCK_K; zeros past the last."""
    if start + BLOCK_K <= INPUTS:
        return tl.load(at + start)
    return tl.load(at + start, mask=k < INPUTS - start, other=0.0)


@triton.jit
def _normed(x, scale, weight, dtype: tl.constexpr):
    return ((x * scale).to(dtype).to(tl.float32) * weight.to(tl.float32)).to(dtype).to(tl.float32)


@triton.jit
def silu_times(gate, up, dtype: tl.constexpr):
    """silu(gate) · up of float32 sums, rounded where the twin does: both products, silu, and what is returned."""
    gate = gate.to(dtype).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    return (silu * up.to(dtype).to(tl.float32)).to(dtype)
