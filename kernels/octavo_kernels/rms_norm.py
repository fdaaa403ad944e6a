# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""RMSNorm in Triton, the sum with the residual stream in the same pass; its twin is `reference.add_rms_norm`.

    s = x + residual;   y = s / √(mean(s²) + eps) · w

One program a row, whose elements it holds in registers: x and the residual are read once, s and y written once. x may
come in parts, which are added up first (`few_rows`). The work is in float32; x and s are rounded to the type of the
residual before they are used, and the quotient before it meets the weight, as in the twin. The order in which a row is
summed goes by the number of warps, and that by the number of rows, unless a row's bits must depend on it alone.
Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from octavo_kernels.programmatic_launch import overlap, wait_for_inputs
from octavo_kernels.residual import Norm, Residual

_FEW: Final = 64


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / √(mean(x²) + eps) · w over the last dimension: [T, n] and [n] → [T, n]; rows of any stride."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(x, None, (weight, eps), y)
    return y


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of x + residual, and x + residual: [T, n] each. The sum is written over the residual.

    x: [T, n], or its parts, [parts, T, n] of any type, contiguous, which are added in order and rounded.
    """
    y = torch.empty_like(residual, memory_format=torch.contiguous_format)
    _launch(x, residual, (weight, eps), y)
    return y, residual


def norm_residual(residual: Residual, norm: Norm, *, invariant: bool = False) -> torch.Tensor:
    """[T, n]: the norm of the stream; what was pending has then been added.

    invariant: a row's bits depend on nothing but the row.
    """
    y = torch.empty_like(residual.hidden, memory_format=torch.contiguous_format)
    if residual.pending is None:
        _launch(residual.hidden, None, norm, y, invariant)
    else:
        _launch(residual.pending, residual.hidden, norm, y, invariant)
        residual.pending = None
    return y


def _launch(
    x: torch.Tensor, residual: torch.Tensor | None, norm: Norm, y: torch.Tensor, invariant: bool = False
) -> None:
    (rows, width), (weight, eps) = y.shape, norm
    if rows == 0:
        return
    block = triton.next_power_of_2(width)
    _rms_norm_kernel[(rows,)](
        x,
        x if residual is None else residual,
        weight,
        y,
        eps,
        x.stride(-2),
        x.stride(0),
        0 if residual is None else residual.stride(0),
        y.stride(0),
        WIDTH=width,
        BLOCK=block,
        ADD=residual is not None,
        PARTS=len(x) if x.dim() == 3 else 1,
        num_warps=_warps(_FEW if invariant else rows, block),
        **overlap(x.device),
    )


def _warps(rows: int, block: int) -> int:
    """Of few rows each takes as long as its way to memory: many threads, each with few elements."""
    return max(1, min(16, block // (128 if rows <= _FEW else 512)))


@triton.jit(do_not_specialize=["eps", "stride_part"])
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    eps,
    stride_x,
    stride_part,
    stride_residual,
    stride_y,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    PARTS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    wait_for_inputs(OVERLAP)
    x_at = x_ptr + row * stride_x + column
    x = tl.load(x_at, mask=mask, other=0.0).to(tl.float32)
    for _ in tl.static_range(1, PARTS):
        x_at += stride_part
        x += tl.load(x_at, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        at = residual_ptr + row * stride_residual + column
        total = (x.to(dtype).to(tl.float32) + tl.load(at, mask=mask, other=0.0).to(tl.float32)).to(dtype)
        tl.store(at, total, mask=mask)
        x = total.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / WIDTH + eps)
    normed = (x * scale).to(dtype).to(tl.float32)
    tl.store(y_ptr + row * stride_y + column, (normed * weight).to(dtype), mask=mask)
