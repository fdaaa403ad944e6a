# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""A linear map whose rows do not see each other, in Triton: what `--batch-invariant` uses instead of cuBLAS.

    y = x Wᵀ + b

cuBLAS picks another kernel, and so another order of summation, for another number of rows. Here no product is split
along the inputs: an element of y is the sum over blocks of BLOCK_K inputs, in order. In general one tile shape serves
every number of rows. On Hopper the shape goes by the number of rows, as its matrix units sum alike, 16 inputs at a
time, whatever the tile: seen to the bit, and checked by `benchmarks/gpu_kernels.py`. The twin is `reference.linear`.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl

from octavo_kernels.programmatic_launch import overlap, wait_for_inputs


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """A tile of y: rows by outputs, summed over block_k inputs at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def linear_config(dtype: torch.dtype, rows: int, hopper: bool) -> LinearConfig:
    """By the number of rows only where tiles were seen to agree to the bit: in 16 bits on Hopper."""
    if dtype == torch.float32:
        return LinearConfig(32, 64, 32, 4, 2)
    if hopper and rows <= 64:
        return LinearConfig(64, 32, 128, 4, 4)  # many programs, each with a small piece of the weight
    if hopper and rows >= 1024:
        return LinearConfig(128, 256, 64, 8, 3)
    return LinearConfig(64, 128, 64, 4, 4)


@cache
def is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


@cache
def num_processors(device: torch.device) -> int:
    """Of a GPU; one where there is none."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def linear_invariant(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """[T, in] × [out, in] → [T, out], plus bias [out]; a row's bits depend on nothing but the row."""
    return linear_tiles(x, weight, bias, linear_config(x.dtype, len(x), is_hopper(x.device)))


def linear_tiles(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, config: LinearConfig
) -> torch.Tensor:
    """[T, in] × [out, in] → [T, out], plus bias [out]. Sums in float32; of float32 no product is cut to TF32."""
    rows, (outputs, inputs) = x.shape[0], weight.shape
    y = x.new_empty(rows, outputs)
    if rows == 0:
        return y
    grid = (triton.cdiv(rows, config.block_m) * triton.cdiv(outputs, config.block_n),)
    _linear_kernel[grid](
        x,
        weight,
        weight if bias is None else bias,
        y,
        rows,
        outputs,
        inputs,
        x.stride(0),
        weight.stride(0),
        WHOLE=inputs % config.block_k == 0,
        BIAS=bias is not None,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **overlap(x.device),
    )
    return y


@triton.jit(do_not_specialize=["rows", "outputs", "inputs"])
def _linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    rows,
    outputs,
    inputs,
    stride_x,
    stride_weight,
    WHOLE: tl.constexpr,  # inputs are a multiple of BLOCK_K
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid: (tiles of rows x tiles of outputs,), those of one piece of the weight next to each other."""
    wait_for_inputs(OVERLAP)
    row_tiles = tl.cdiv(rows, BLOCK_M)
    row = (tl.program_id(0) % row_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = (tl.program_id(0) // row_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Past the last output the last one stands in, and is not stored. Rows past the end are not loaded: thousands of
    # programs that read one row over and over wait for each other, and were seen to take longer than with 64 rows.
    is_row = (row < rows)[:, None]
    x_at = x_ptr + row.to(tl.int64)[:, None] * stride_x + k[None, :]
    w_at = weight_ptr + tl.minimum(output, outputs - 1).to(tl.int64)[:, None] * stride_weight + k[None, :]
    total = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
    for start in range(0, inputs, BLOCK_K):
        if WHOLE:
            x = tl.load(x_at, mask=is_row, other=0.0)
            w = tl.load(w_at)
        else:
            x = tl.load(x_at, mask=is_row & (k[None, :] < inputs - start), other=0.0)
            w = tl.load(w_at, mask=k[None, :] < inputs - start, other=0.0)
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
        x_at += BLOCK_K
        w_at += BLOCK_K
    y = total.to(y_ptr.dtype.element_ty)
    if BIAS:
        # Rounded before and after, as in the twin.
        bias = tl.load(bias_ptr + output, mask=output < outputs, other=0.0)
        y = (y.to(tl.float32) + bias.to(tl.float32)[None, :]).to(y_ptr.dtype.element_ty)
    at = row.to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(y_ptr + at, y, mask=is_row & (output < outputs)[None, :])
