# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Two kernels in Gluon that show what racecheck makes of kernels with divided warps; see `sanitizer_reports`.

In both, two groups of four warps work side by side. In one each has a tile of shared memory of its own, which it writes
and reads with a barrier of its own in between, and a third group of one warp does next to nothing; in the other one
group reads what the other writes, and nothing orders them: a race.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def apart_kernel(out_ptr):
    """Grid: (programs,). Without a race."""
    tiles = gl.allocate_shared_memory(out_ptr.dtype.element_ty, [2, 32, 32], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    gl.warp_specialize(
        [(_turn, (tiles, out_ptr, 0)), (_turn, (tiles, out_ptr, 1)), (_rest, (out_ptr,))], [4, 1], [64, 24]
    )


@gluon.jit
def racing_kernel(out_ptr):
    """Grid: (programs,). With one: what it reads may be anything."""
    tile = gl.allocate_shared_memory(out_ptr.dtype.element_ty, [32, 32], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    gl.warp_specialize([(_write, (tile,)), (_read, (tile, out_ptr))], [4], [64])


@gluon.jit
def _turn(tiles, out_ptr, WHICH: gl.constexpr):
    """Through shared memory from one layout to another: every thread reads what others of its group have written."""
    tile = tiles.index(WHICH)
    _write(tile)
    _read(tile, out_ptr + WHICH * 1024)


@gluon.jit
def _rest(out_ptr):
    """One warp, as our kernels have for fetching: with two equal groups alone racecheck reports nothing."""
    gl.store(out_ptr + gl.program_id(0) * 2048, 0)  # what the first group stores there, too


@gluon.jit
def _write(tile):
    across: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [4, 1], [1, 0])
    row, column = gl.arange(0, 32, gl.SliceLayout(1, across)), gl.arange(0, 32, gl.SliceLayout(0, across))
    tile.store((row[:, None] * 32 + column[None, :]).to(tile.dtype))


@gluon.jit
def _read(tile, out_ptr):
    down: gl.constexpr = gl.BlockedLayout([4, 1], [8, 4], [1, 4], [0, 1])
    row, column = gl.arange(0, 32, gl.SliceLayout(1, down)), gl.arange(0, 32, gl.SliceLayout(0, down))
    gl.store(out_ptr + gl.program_id(0) * 2048 + row[:, None] * 32 + column[None, :], tile.load(down))


def run() -> bool:
    """Runs both; whether the one without a race gave what was written."""
    outs = [torch.zeros(8, 2, 1024, dtype=dtype, device="cuda") for dtype in (torch.bfloat16, torch.int64)]
    for kernel in (racing_kernel, apart_kernel):
        for out in outs:
            kernel[(8,)](out, num_warps=4)
    return all(bool((out == torch.arange(1024, device="cuda").to(out.dtype)).all()) for out in outs)
