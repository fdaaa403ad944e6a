"""Which tile a product of few rows takes, by the shape of its weight: rules, and what was measured to be better.

Measured in whole decode steps on an H100, one choice after the other (`benchmarks/gpu_decode.py`, benchmarks/LOG.md).
"""

from typing import Final

import torch
import triton

from octavo_kernels.few_rows import FewRowsConfig
from octavo_kernels.gemv import GemvConfig

# By rows and columns of the weight.
ONE_ROW: Final[dict[tuple[int, int], GemvConfig]] = {(4096, 1024): GemvConfig(4, 1024, 4)}
FEW_ROWS: Final[dict[tuple[int, int], FewRowsConfig]] = {
    (4096, 1024): FewRowsConfig(16, 256, 2, 5, ahead=512),
    (6144, 4096): FewRowsConfig(16, 256, 2, 5, ahead=512),
    (4096, 4096): FewRowsConfig(64, 128, 4, 5, splits=4),
    (28672, 4096): FewRowsConfig(32, 128, 4, 5, ahead=256),
    (4096, 14336): FewRowsConfig(64, 128, 4, 5, splits=4, ahead=256),
}
# Of these what is better for so few rows that they fill no more than half a tile.
EIGHT_ROWS: Final[dict[tuple[int, int], FewRowsConfig]] = {
    (4096, 1024): FewRowsConfig(16, 1024, 4, 1, registers=True),
    (1024, 2048): FewRowsConfig(16, 512, 4, 1, splits=4, registers=True),
}
# Up to 128 rows, as far as a kernel that begins to read the weight before its input is there beats the library's; by
# the most rows that a choice is for.
SOME_ROWS: Final[dict[tuple[int, int], dict[int, FewRowsConfig]]] = {
    (4096, 1024): {
        32: FewRowsConfig(64, 128, 4, 4, block_rows=32),
        64: FewRowsConfig(64, 128, 4, 4, block_rows=64),
    },
    (1024, 2048): {
        32: FewRowsConfig(64, 128, 4, 4, splits=4, block_rows=32),
        128: FewRowsConfig(64, 128, 4, 4, splits=4, block_rows=64),
    },
    (1024, 3072): {
        32: FewRowsConfig(64, 128, 4, 4, splits=4, ahead=256, block_rows=32),
        128: FewRowsConfig(64, 128, 4, 4, splits=4, block_rows=64),
    },
    (6144, 1024): {
        32: FewRowsConfig(32, 128, 4, 4, block_rows=32),
        64: FewRowsConfig(32, 128, 4, 4, block_rows=64),
    },
}


def one_row(weight: torch.Tensor) -> GemvConfig:
    """A short row is no work for many warps, of which each waits for the others at the end."""
    outputs, inputs = weight.shape
    if inputs <= 1024:
        rule = GemvConfig(2, triton.next_power_of_2(inputs), 4)
    else:
        rule = GemvConfig(1, 2048 if inputs < 4096 else 1024, 8)
    return ONE_ROW.get((outputs, inputs), rule)


def few_rows(weight: torch.Tensor, rows: int) -> FewRowsConfig:
    """Without splits."""
    return _measured(weight, rows) or FewRowsConfig(32, 128, 4, 6)


def few_rows_of_gates(weight: torch.Tensor, rows: int) -> FewRowsConfig:
    """Of two tiles of the weight a program: one stage fewer fits."""
    return _measured(weight, rows) or FewRowsConfig(32, 128, 4, 5, ahead=512)


def few_rows_in_parts(weight: torch.Tensor, rows: int) -> FewRowsConfig:
    """So many splits that there are some two programs a processor, each with work enough."""
    outputs, inputs = weight.shape
    rule = FewRowsConfig(32, 128, 4, 6, splits=max(1, min(8, 8448 // outputs, inputs // 384)))
    return _measured(weight, rows) or rule


def some_rows(weight: torch.Tensor, rows: int) -> FewRowsConfig | None:
    """For more than few; None where the library is as fast, or it is not known."""
    outputs, inputs = weight.shape
    choices = SOME_ROWS.get((outputs, inputs), {})
    return next((config for most, config in choices.items() if rows <= most), None)


def _measured(weight: torch.Tensor, rows: int) -> FewRowsConfig | None:
    outputs, inputs = weight.shape
    found = EIGHT_ROWS.get((outputs, inputs)) if rows <= 8 else None
    return found or FEW_ROWS.get((outputs, inputs))
