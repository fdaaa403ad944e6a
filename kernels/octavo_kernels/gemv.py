# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""One row times a weight in Triton: the reading of the weight, and little else.

    y = x Wᵀ + b,   or, gated,   y = silu(x Gᵀ + a) · (x Uᵀ + c) with W = (G, U), b = (a, c)

Dot products on the ordinary units: a program reads some rows of W in stretches of BLOCK_K, keeps a partial sum in each
lane and adds them up once, at the end. Its first stretch it reads before it waits for x (`programmatic_launch`). To
norm x here, or to add y to the stream, was no faster than the norm's kernel, which overlaps (benchmarks/LOG.md). cuBLAS
reads at 2.67 TB/s where an H100 gives 3.08. Twins: `reference.linear`, and `reference.silu_and_mul` of it.
"""

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl

from octavo_kernels.programmatic_launch import overlap, wait_for_inputs


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
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """[1, in] × [out, in] → [1, out], plus bias [out]. out: where it goes, contiguous, of any floating type."""
    y = x.new_empty(1, len(weight)) if out is None else out
    _launch(x, weight, bias, y, config, gated=False)
    return y


def gated_gemv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, config: GemvConfig = DEFAULT
) -> torch.Tensor:
    """[1, in] × [2 n, in] (gate first) → [1, n]: SwiGLU's first half. bias: [2 n]."""
    y = x.new_empty(1, len(weight) // 2)
    _launch(x, weight, bias, y, config, gated=True)
    return y


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    config: GemvConfig,
    *,
    gated: bool,
) -> None:
    outputs, inputs = y.shape[1], weight.shape[1]
    _gemv_kernel[(triton.cdiv(outputs, config.outputs),)](
        x,
        weight,
        weight if bias is None else bias,
        y,
        outputs,
        weight.stride(0),
        INPUTS=inputs,
        BIAS=bias is not None,
        GATED=gated,
        OUTPUTS=config.outputs,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        **overlap(x.device),
    )


@triton.jit(do_not_specialize=["outputs"])
def _gemv_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    outputs,
    stride_weight,
    INPUTS: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
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
    if BIAS:
        bias = tl.load(bias_ptr + row).to(tl.float32)
        if GATED:
            up_bias = tl.load(bias_ptr + outputs + row).to(tl.float32)
    wait_for_inputs(OVERLAP)
    x = _stretch(x_ptr + k, k, 0, INPUTS, BLOCK_K).to(tl.float32)
    total = w.to(tl.float32) * x[None, :]
    if GATED:
        total_up = up.to(tl.float32) * x[None, :]
    for start in tl.static_range(BLOCK_K, INPUTS, BLOCK_K):
        x = _stretch(x_ptr + k, k, start, INPUTS, BLOCK_K).to(tl.float32)
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
    tl.store(y_ptr + output, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _stretch(at, k, start: tl.constexpr, INPUTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Columns start to start + BLOCK_K; zeros past the last."""
    if start + BLOCK_K <= INPUTS:
        return tl.load(at + start)
    return tl.load(at + start, mask=k < INPUTS - start, other=0.0)


@triton.jit
def silu_times(gate, up, dtype: tl.constexpr):
    """silu(gate) · up of float32 sums, rounded where the twin does: both products, silu, and what is returned."""
    gate = gate.to(dtype).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    return (silu * up.to(dtype).to(tl.float32)).to(dtype)
