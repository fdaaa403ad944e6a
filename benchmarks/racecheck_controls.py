# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Two kernels in Gluon that show what racecheck makes of kernels with divided warps; see `sanitizer_reports`.

In both, four warps write a tile of shared memory and four others read it. In one they are ordered by an mbarrier, as
the warps of `hopper_kernel` and `hopper_linear_kernel` are; in the other by nothing, which is a race.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit
def ordered_kernel(out_ptr):
    """Grid: (programs,). Without a race."""
    tile = gl.allocate_shared_memory(out_ptr.dtype.element_ty, [128], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    written = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(written, count=1)
    gl.warp_specialize([(_write, (tile, written)), (_read, (tile, written, out_ptr, True))], [4], [64])


@gluon.jit
def unordered_kernel(out_ptr):
    """Grid: (programs,). With one: what it reads may be anything."""
    tile = gl.allocate_shared_memory(out_ptr.dtype.element_ty, [128], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    written = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(written, count=1)
    gl.warp_specialize([(_write, (tile, written)), (_read, (tile, written, out_ptr, False))], [4], [64])


@gluon.jit
def _write(tile, written):
    tile.store(gl.arange(0, 128, gl.BlockedLayout([1], [32], [4], [0])).to(tile.dtype))
    mbarrier.arrive(written, count=1)


@gluon.jit
def _read(tile, written, out_ptr, ORDERED: gl.constexpr):
    if ORDERED:
        mbarrier.wait(written, 0)
    lines: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    gl.store(out_ptr + gl.program_id(0) * 128 + gl.arange(0, 128, lines), tile.load(lines))


def run() -> bool:
    """Runs both, with stores by the matrix instruction and by the ordinary one; whether the ordered one is right."""
    outs = [torch.zeros(8, 128, dtype=dtype, device="cuda") for dtype in (torch.int32, torch.int64)]
    for kernel in (unordered_kernel, ordered_kernel):
        for out in outs:
            kernel[(8,)](out, num_warps=4)
    return all(bool((out == torch.arange(128, device="cuda")).all()) for out in outs)
