"""Products of many rows on Hopper, SwiGLU in them: the launch. `hopper_linear_kernel` is what runs on the device."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from octavo_kernels.hopper_linear_kernel import hopper_linear_kernel

_TYPES: Final = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}
_BLOCK_K: Final = 64
_REGISTERS: Final = {1: 232, 2: 168, 3: 128}


@dataclass(frozen=True, slots=True)
class HopperLinearConfig:
    """A tile: groups of 64 rows, by outputs (gated: half of them pairs); stages in shared memory; tiles in a band."""

    groups: int
    outputs: int
    stages: int
    band: int


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def hopper_gated(x: torch.Tensor, weight: torch.Tensor, config: HopperLinearConfig) -> torch.Tensor:
    """[T, in] × [2 n, in] (gate first) → [T, n]: SwiGLU's first half."""
    return _launch(x, weight, x.new_empty(len(x), len(weight) // 2), config, gated=True)


def hopper_linear(x: torch.Tensor, weight: torch.Tensor, config: HopperLinearConfig) -> torch.Tensor:
    """[T, in] × [out, in] → [T, out]."""
    return _launch(x, weight, x.new_empty(len(x), len(weight)), config, gated=False)


def _launch(
    x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, config: HopperLinearConfig, *, gated: bool
) -> torch.Tensor:
    half = config.outputs // 2
    row_tiles = -(-len(x) // (64 * config.groups))
    tiles = row_tiles * -(-y.shape[1] // (half if gated else config.outputs))
    hopper_linear_kernel[(min(tiles, _processors(x.device)),)](
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
    )
    return y


def _rows(x: torch.Tensor, rows: int, columns: int) -> Any:
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], _TYPES[x.dtype])
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, columns], layout)
