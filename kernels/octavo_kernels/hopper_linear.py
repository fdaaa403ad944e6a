"""Products of many rows on Hopper, SwiGLU in them: the launch. `hopper_linear_kernel` is what runs on the device.

Behind cuBLAS, SwiGLU reads 2 n values a row and writes n, which a product of many rows need never write. The bits are
the same: the matrix units sum 16 inputs at a time in order, whatever the tile, here as in cuBLAS's kernels.
The twins are `reference.gated_linear` and `reference.linear`.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from octavo_kernels.hopper_linear_kernel import hopper_linear_kernel
from octavo_kernels.linear import is_hopper, num_processors
from octavo_kernels.programmatic_launch import overlap

_TYPES: Final = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}
_BLOCK_K: Final = 64
_REGISTERS: Final = {1: 232, 2: 168}  # of a thread: one group and the fetching warps, or two


@dataclass(frozen=True, slots=True)
class HopperLinearConfig:
    """How the work is cut.

    groups: of 64 rows in a tile, 1 or 2. outputs: of a tile, 64 to 256; gated, half as many pairs. stages: of 64
    inputs in shared memory. band: tiles of rows that are gone through together. shares: that the inputs are cut into,
    at most, where parts may be left behind.
    """

    groups: int
    outputs: int
    stages: int
    band: int = 16
    shares: int = 1


# What was fastest on an H100 for 4096 inputs and 14,336 pairs (benchmarks/LOG.md).
_FEW: Final = HopperLinearConfig(1, 256, 5)
_SOME: Final = HopperLinearConfig(2, 128, 6)
_MANY: Final = HopperLinearConfig(2, 256, 4)
CONFIGS: Final = (_FEW, _SOME, _MANY)


def hopper_linear_config(rows: int) -> HopperLinearConfig:
    """Small tiles where large ones would leave processors without work in the last round."""
    if rows <= 128:
        return _FEW
    return _SOME if rows <= 1024 else _MANY


def takes(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether the functions here compute this product: what types, sizes and places the copy engine bears."""
    if x.dtype not in _TYPES or bias is not None or not is_hopper(x.device):
        return False
    return len(weight) % 16 == 0 and all(_has_rows(each) for each in (x, weight))


def _has_rows(x: torch.Tensor) -> bool:
    return x.stride(1) == 1 and x.stride(0) % 8 == 0 and x.data_ptr() % 16 == 0


def hopper_gated(x: torch.Tensor, weight: torch.Tensor, config: HopperLinearConfig | None = None) -> torch.Tensor:
    """[T, in] × [2 n, in] (gate first) → [T, n]: SwiGLU's first half, of what `takes` takes."""
    return _launch(x, weight, x.new_empty(len(x), len(weight) // 2), config, gated=True)


def hopper_linear(x: torch.Tensor, weight: torch.Tensor, config: HopperLinearConfig | None = None) -> torch.Tensor:
    """[T, in] × [out, in] → [T, out], of what `takes` takes."""
    return _launch(x, weight, x.new_empty(len(x), len(weight)), config, gated=False)


def hopper_parts(x: torch.Tensor, weight: torch.Tensor, config: HopperLinearConfig) -> torch.Tensor:
    """[T, in] × [out, in] → [shares, T, out] float32, whose sum over these, in order, is the product."""
    blocks = -(-x.shape[1] // _BLOCK_K)
    shares = -(-blocks // -(-blocks // config.shares))
    return _launch(x, weight, x.new_empty(shares, len(x), len(weight), dtype=torch.float32), config, gated=False)


def _launch(
    x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, config: HopperLinearConfig | None, *, gated: bool
) -> torch.Tensor:
    if len(x) == 0:
        return y
    config = config or hopper_linear_config(len(x))
    half, blocks, shares = config.outputs // 2, -(-x.shape[1] // _BLOCK_K), len(y) if y.dim() == 3 else 1
    row_tiles = -(-len(x) // (64 * config.groups))
    tiles = row_tiles * -(-y.shape[-1] // (half if gated else config.outputs))
    items = shares * tiles
    hopper_linear_kernel[(min(items, num_processors(x.device)),)](
        _rows(x, 64, _BLOCK_K),
        _rows(weight, half, _BLOCK_K),
        y if y.dim() == 3 else _rows(y, 64, half),
        row_tiles,
        tiles,
        items,
        blocks,
        -(-blocks // shares),
        len(weight) // 2 if gated else half,
        GROUPS=config.groups,
        STAGES=config.stages,
        BAND=config.band,
        GATED=gated,
        PARTS=y.dim() == 3,
        num_warps=4,
        maxnreg=_REGISTERS[config.groups],
        **overlap(x.device),
    )
    return y


def _rows(x: torch.Tensor, rows: int, columns: int) -> Any:
    """What the copy engine is told of a matrix: boxes of so many rows and columns."""
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], _TYPES[x.dtype])
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, columns], layout)
