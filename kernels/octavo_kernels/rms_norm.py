# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""RMSNorm in Triton, the sum with the residual stream in the same pass; its twin is `reference.add_rms_norm`.

    s = x + residual;   y = s / √(mean(s²) + eps) · w

One program a row, whose elements it holds in registers: x and the residual are read once, s and y written once. The
work is in float32; s is rounded to the input's type before it is squared, and the quotient before it meets the
weight, as in the twin. A row's bits depend on nothing but the row.
Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
"""

import torch
import triton
import triton.language as tl


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / √(mean(x²) + eps) · w over the last dimension: [T, n] and [n] → [T, n]; rows of any stride."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(x, None, weight, None, y, eps)
    return y


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of x + residual, and x + residual: [T, n] each. The sum is written over the residual."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(x, residual, weight, residual, y, eps)
    return y, residual


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    total: torch.Tensor | None,
    y: torch.Tensor,
    eps: float,
) -> None:
    rows, width = x.shape
    if rows == 0:
        return
    block = triton.next_power_of_2(width)
    _rms_norm_kernel[(rows,)](
        x,
        x if residual is None else residual,
        weight,
        x if total is None else total,
        y,
        eps,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        y.stride(0),
        WIDTH=width,
        BLOCK=block,
        ADD=residual is not None,
        num_warps=max(1, min(16, block // 512)),
    )


@triton.jit(do_not_specialize=["eps"])
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    total_ptr,
    y_ptr,
    eps,
    stride_x,
    stride_residual,
    stride_y,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
):
    """Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row * stride_x + column, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        at = row * stride_residual + column
        x = (x + tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)).to(x_ptr.dtype.element_ty)
        tl.store(total_ptr + at, x, mask=mask)
        x = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / WIDTH + eps)
    normed = (x * scale).to(x_ptr.dtype.element_ty).to(tl.float32)
    tl.store(y_ptr + row * stride_y + column, (normed * weight).to(y_ptr.dtype.element_ty), mask=mask)
