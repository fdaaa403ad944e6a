# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Two to 128 rows times a weight in Triton: decode steps, where the reading of the weight is the work.

    y = x Wᵀ + b,   or, gated,   y = silu(x Gᵀ + a) · (x Uᵀ + c) with W = (G, U), b = (a, c)

The matrix units' smallest tile has 16 rows, however few there are; where there are more than a tile has, other programs
take the same outputs. A program takes some outputs; where these are too
few to give every processor enough to read, their inputs are split over programs as well, which leave their sums behind,
[splits, T, out] float32, for whatever comes next to add up: `rms_norm.add_rms_norm` does. Before it waits for x a
program has the first of its rows of W fetched into the L2 (`programmatic_launch`).
Twins: `reference.linear` and `reference.gated_linear`.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from octavo_kernels.gemv import silu_times
from octavo_kernels.programmatic_launch import fetch, overlap, wait_for_inputs
from octavo_kernels.register_rows import register_rows_kernel

BLOCK_ROWS = 16


@dataclass(frozen=True, slots=True)
class FewRowsConfig:
    """Outputs of a program (gated: pairs), inputs at a time, splits of the inputs, and what is fetched ahead.

    ahead: inputs of each row of W fetched into the L2 before the wait; a multiple of 32.
    block_rows: of a tile, a power of two from 16 on; where there are more rows, more programs take the same outputs.
    registers: not gated by `register_rows`, where launches overlap; it has neither that nor stages.
    """

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    splits: int = 1
    ahead: int = 0
    registers: bool = False
    block_rows: int = BLOCK_ROWS


def few_rows_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    config: FewRowsConfig,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T, in] × [out, in] → [T, out], plus bias [out]. Without splits.

    out: where it goes, contiguous, of any floating type.
    """
    y = x.new_empty(len(x), len(weight)) if out is None else out
    _launch(x, weight, bias, y, replace(config, splits=1), gated=False)
    return y


def few_rows_gated(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, config: FewRowsConfig
) -> torch.Tensor:
    """[T, in] × [2 n, in] (gate first) → [T, n]: SwiGLU's first half. Without splits."""
    y = x.new_empty(len(x), len(weight) // 2)
    _launch(x, weight, bias, y, replace(config, splits=1), gated=True)
    return y


def few_rows_parts(x: torch.Tensor, weight: torch.Tensor, config: FewRowsConfig) -> torch.Tensor:
    """[T, in] × [out, in] → [splits or fewer, T, out] float32, whose sum over these, in order, is the product."""
    splits = triton.cdiv(x.shape[1], _share(x.shape[1], config))
    y = x.new_empty(splits, len(x), len(weight), dtype=torch.float32)
    _launch(x, weight, None, y, config, gated=False)
    return y


def _share(inputs: int, config: FewRowsConfig) -> int:
    """Inputs of a split, a multiple of block_k."""
    share = -(-inputs // config.splits)
    return -(-share // config.block_k) * config.block_k


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    config: FewRowsConfig,
    *,
    gated: bool,
) -> None:
    (rows, inputs), outputs = x.shape, y.shape[-1]
    share = _share(inputs, config)
    grid = (triton.cdiv(outputs, config.block_n), triton.cdiv(inputs, share), triton.cdiv(rows, config.block_rows))
    arguments = (x, weight, weight if bias is None else bias, y, rows, outputs, x.stride(0), weight.stride(0))
    constants = {"INPUTS": inputs, "SHARE": share, "BIAS": bias is not None, **overlap(x.device)}
    if config.registers and constants["OVERLAP"] and not gated:
        register_rows_kernel[grid](
            *arguments,
            **constants,
            BLOCK_T=8 if rows <= 8 else BLOCK_ROWS,
            BLOCK_N=config.block_n,
            STRETCH=config.block_k,
            num_warps=config.num_warps,
        )
        return
    _few_rows_kernel[grid](
        *arguments,
        **constants,
        GATED=gated,
        BLOCK_M=config.block_rows,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        AHEAD=min(config.ahead, share) if inputs % share == 0 and weight.stride(0) % 8 == 0 else 0,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


@triton.jit(do_not_specialize=["rows", "outputs"])
def _few_rows_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,  # [splits, rows, outputs]
    rows,
    outputs,
    stride_x,
    stride_weight,
    INPUTS: tl.constexpr,
    SHARE: tl.constexpr,  # inputs of a split, a multiple of BLOCK_K
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid: (tiles of outputs, splits, tiles of rows)."""
    begin = tl.program_id(1) * SHARE
    end = tl.minimum(INPUTS, begin + SHARE)
    row = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = begin + tl.arange(0, BLOCK_K)
    # Past the last output the last one stands in, and is not stored. Rows that are not there are not loaded.
    is_row = (row < rows)[:, None]
    x_at = x_ptr + row.to(tl.int64)[:, None] * stride_x + k[None, :]
    w_row = tl.minimum(output, outputs - 1).to(tl.int64)
    w_at = weight_ptr + w_row[:, None] * stride_weight + k[None, :]
    up_at = w_at + outputs.to(tl.int64) * stride_weight
    if OVERLAP > 0 and AHEAD > 0:
        first = weight_ptr + w_row * stride_weight + begin
        piece = tl.arange(0, 4)[None, :] * (AHEAD // 4)  # so that each thread has one
        fetch(first[:, None] + piece, AHEAD // 4)
        if GATED:
            fetch(first[:, None] + outputs.to(tl.int64) * stride_weight + piece, AHEAD // 4)
    wait_for_inputs(OVERLAP)
    total = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
    total_up = total
    for start in range(0, end - begin, BLOCK_K):
        x = _tile(x_at + start, k[None, :] + start, is_row, INPUTS, BLOCK_K)
        w = _tile(w_at + start, k[None, :] + start, True, INPUTS, BLOCK_K)
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
        if GATED:
            up = _tile(up_at + start, k[None, :] + start, True, INPUTS, BLOCK_K)
            total_up = tl.dot(x, tl.trans(up), total_up, input_precision="ieee")
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    if BIAS:
        # Rounded before and after, as in the twin.
        total = total.to(dtype).to(tl.float32) + tl.load(bias_ptr + w_row).to(tl.float32)[None, :]
        if GATED:
            up_bias = tl.load(bias_ptr + outputs + w_row).to(tl.float32)[None, :]
            total_up = total_up.to(dtype).to(tl.float32) + up_bias
    if GATED:
        total = silu_times(total, total_up, dtype)
    at = (tl.program_id(1) * rows + row).to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=is_row & (output < outputs)[None, :])


@triton.jit
def _tile(at, k, mask, INPUTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Zeros where there are no such inputs or the mask is not set."""
    if INPUTS % BLOCK_K == 0:
        return tl.load(at, mask=mask, other=0.0)
    return tl.load(at, mask=(k < INPUTS) & mask, other=0.0)
