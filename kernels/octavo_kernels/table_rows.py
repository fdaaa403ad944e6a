# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Rows of the sampling table that requests bring that join, read by a kernel out of pinned host memory.

A copy takes memory on both sides, its call, and an operation that puts the rows where they belong; on a host that was
idle until now that is half a millisecond before a prompt's first token. The device reads the host's pinned memory by
itself, 128 bytes a row in one request over the bus, and puts it into its place: one launch.
"""

import torch
import triton
import triton.language as tl

from octavo_kernels.launching import Launcher
from octavo_kernels.sampling_table import COLUMNS


def write_rows(table: torch.Tensor, rows: torch.Tensor) -> None:
    """table[rows[i, 0]] = rows[i, 1:]. table: [slots, COLUMNS] int64.

    rows: [n, 1 + COLUMNS] int64, contiguous, in pinned memory on the host, which stays as it is until the device is
    through. Of a slot that stands in two of them it is not said which one wins.
    """
    if len(rows) > 0:
        _write(table.device, (len(rows), 1, 1), (table, rows), {"COLUMNS": COLUMNS, "num_warps": 1})


@triton.jit
def _write_kernel(table_ptr, rows_ptr, COLUMNS: tl.constexpr):
    """Grid: (rows,)."""
    row_ptr = rows_ptr + tl.program_id(0) * (1 + COLUMNS)
    column = tl.arange(0, COLUMNS)
    tl.store(table_ptr + tl.load(row_ptr) * COLUMNS + column, tl.load(row_ptr + 1 + column))


_write = Launcher(_write_kernel)
