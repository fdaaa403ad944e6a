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
    inputs in shared memory. band: tiles of rows that are gone through together.
    """

    groups: int
    outputs: int
    stages: int
    band: int = 16


# What was fastest on an H100 in layers of 4096 and 1024 inputs (benchmarks/LOG.md).
_LEAST: Final = HopperLinearConfig(1, 128, 8)
_FEW: Final = HopperLinearConfig(1, 256, 5)
_SOME: Final = HopperLinearConfig(2, 128, 6)
_MANY: Final = HopperLinearConfig(2, 256, 4)
CONFIGS: Final = (_MANY, _SOME, _FEW, _LEAST)


def hopper_linear_config(rows: int, outputs: int, processors: int) -> HopperLinearConfig:
    """What takes least by the rounds in which the processors go through the tiles, the last one not being full.

    Rows count as multiples of 64, from 129 on of 128, so that few steps ask for what no other did. Tiles of 64 × 128
    take 1.3 times what their part of a large one does, and are for outputs too few for others to fill two rounds.
    """
    if rows > 1024:
        return _MANY
    if rows <= 128:
        usual = _FEW if rows <= 64 else _SOME
        return usual if 4 * _tiles(usual, rows, outputs) >= 3 * processors else _LEAST
    rows = -(-rows // 128) * 128

    def takes_time(config: HopperLinearConfig) -> float:
        rounds = -(-_tiles(config, rows, outputs) // processors)
        return rounds * config.groups * config.outputs * (1.3 if config is _LEAST else 1.0)

    few_tiles = _tiles(_SOME, rows, outputs) < 2 * processors
    return min((_MANY, _SOME, _LEAST) if few_tiles else (_MANY, _SOME), key=takes_time)


def _tiles(config: HopperLinearConfig, rows: int, outputs: int) -> int:
    return -(-rows // (64 * config.groups)) * -(-outputs // config.outputs)


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


def _launch(
    x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, config: HopperLinearConfig | None, *, gated: bool
) -> torch.Tensor:
    if len(x) == 0:
        return y
    processors = num_processors(x.device)
    config = config or hopper_linear_config(len(x), len(weight), processors)
    half = config.outputs // 2
    row_tiles = -(-len(x) // (64 * config.groups))
    tiles = row_tiles * -(-y.shape[1] // (half if gated else config.outputs))
    hopper_linear_kernel[(min(tiles, processors),)](
        _rows(x, 64, _BLOCK_K),
        _rows(weight, half, _BLOCK_K),
        _rows(y, 64, half),
        row_tiles,
        tiles,
        -(-x.shape[1] // _BLOCK_K),
        len(weight) // 2 if gated else half,
        GROUPS=config.groups,
        STAGES=config.stages,
        BAND=config.band,
        GATED=gated,
        num_warps=4,
        maxnreg=_REGISTERS[config.groups],
        **overlap(x.device),
    )
    return y


def _rows(x: torch.Tensor, rows: int, columns: int) -> Any:
    """What the copy engine is told of a matrix: boxes of so many rows and columns."""
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], _TYPES[x.dtype])
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, columns], layout)
