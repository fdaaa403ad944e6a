# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""SwiGLU's middle in Triton; its twin is `reference.silu_and_mul`.

    y = gate / (1 + e⁻ᵍᵃᵗᵉ) · up

Bound by memory: every element is read once and written once. silu is rounded to the input's type before the product, as
in the twin. Shazeer, "GLU Variants Improve Transformer", 2020.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from octavo_kernels.programmatic_launch import overlap, wait_for_inputs

_BLOCK: Final = 1024


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up from [T, 2 n] (gate first), contiguous → [T, n]."""
    rows, width = x.shape[0], x.shape[1] // 2
    y = x.new_empty(rows, width)
    if rows:
        grid = (rows, triton.cdiv(width, _BLOCK))
        _silu_and_mul_kernel[grid](x, y, x.stride(0), WIDTH=width, BLOCK=_BLOCK, **overlap(x.device))
    return y


@triton.jit
def _silu_and_mul_kernel(x_ptr, y_ptr, stride_x, WIDTH: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """Grid: (rows, blocks of columns)."""
    wait_for_inputs(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < WIDTH
    gate = tl.load(x_ptr + row * stride_x + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * stride_x + WIDTH + column, mask=mask, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(x_ptr.dtype.element_ty).to(tl.float32)
    tl.store(y_ptr + row * WIDTH + column, (silu * up).to(y_ptr.dtype.element_ty), mask=mask)
