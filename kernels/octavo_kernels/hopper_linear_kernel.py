# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The device's side of `hopper_linear`, in Gluon: products of many rows, warps divided by their work.

    y = x Wᵀ,   or, gated,   y = silu(x Gᵀ) · (x Uᵀ) with W = (G, U)

One warp has the copy engine fetch tiles of x and W into shared memory, STAGES of them ahead and on into the program's
next tile of y; GROUPS groups of four warps multiply, each 64 rows by all BLOCK_N outputs, whose sums stay in registers.
The groups need not keep step: while one is at its end, at the sigmoid and the store, the other has the matrix units.

Gated, half of the tile's rows of W are rows of G and the other half those of U for the same outputs, so that what
belongs together lies in one thread, and only the product of the two goes to memory. The rounding in between is that of
`silu_and_mul` behind a product: both are rounded, then silu, then their product.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)


@gluon.jit(do_not_specialize=["row_tiles", "tiles", "blocks", "second"])
def hopper_linear_kernel(
    x_rows, w_rows, y_rows, row_tiles, tiles, blocks, second, GROUPS: gl.constexpr, STAGES: gl.constexpr,
    BAND: gl.constexpr, GATED: gl.constexpr, OVERLAP: gl.constexpr,
):  # fmt: skip
    """Grid: (programs,), each of which takes every so manieth tile of y. blocks: of inputs.

    x_rows, w_rows, y_rows: descriptors of boxes of [64, BLOCK_K], [BLOCK_N / 2, BLOCK_K] and [64, BLOCK_N / 2].
    second: the first row of U in W, gated, else BLOCK_N / 2. BAND: tiles of rows that are gone through together, as
    their x stays in the L2 while W goes by.
    """
    dtype: gl.constexpr = x_rows.dtype
    HALF: gl.constexpr = w_rows.block_type.shape[0]
    BLOCK_K: gl.constexpr = w_rows.block_type.shape[1]
    x_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, BLOCK_K], dtype)
    y_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, HALF], dtype)
    x_tiles = gl.allocate_shared_memory(dtype, [STAGES * GROUPS, 64, BLOCK_K], x_layout)
    w_tiles = gl.allocate_shared_memory(dtype, [STAGES, 2 * HALF, BLOCK_K], x_layout)
    y_tiles = gl.allocate_shared_memory(dtype, [GROUPS, 64, HALF], y_layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(empty.index(i), count=GROUPS)
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    # The tuples stand here in full: in a variable, constants would become values.
    if GROUPS == 1:
        gl.warp_specialize(
            [
                (_multiply, (
                    y_rows, x_tiles, w_tiles, y_tiles, ready, empty, row_tiles, tiles, blocks, BAND, GATED, GROUPS, 0,
                )),
                (_fetch, (
                    x_rows, w_rows, x_tiles, w_tiles, ready, empty, row_tiles, tiles, blocks, second, BAND, GATED,
                    GROUPS, OVERLAP,
                )),
            ],
            [1],
            [24],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_multiply, (
                    y_rows, x_tiles, w_tiles, y_tiles, ready, empty, row_tiles, tiles, blocks, BAND, GATED, GROUPS, 0,
                )),
                (_multiply, (
                    y_rows, x_tiles, w_tiles, y_tiles, ready, empty, row_tiles, tiles, blocks, BAND, GATED, GROUPS, 1,
                )),
                (_fetch, (
                    x_rows, w_rows, x_tiles, w_tiles, ready, empty, row_tiles, tiles, blocks, second, BAND, GATED,
                    GROUPS, OVERLAP,
                )),
            ],
            [4, 1],
            [240, 24],
        )  # fmt: skip


@gluon.jit
def _place(tile, row_tiles, tiles, BAND: gl.constexpr):
    """Which tile of rows and which tile of outputs: along the rows within a band of BAND tiles of them."""
    output_tiles = tiles // row_tiles
    band = tile // (BAND * output_tiles)
    height = gl.minimum(row_tiles - band * BAND, BAND)
    within = tile - band * BAND * output_tiles
    return band * BAND + within % height, within // height


@gluon.jit
def _fetch(
    x_rows, w_rows, x_tiles, w_tiles, ready, empty, row_tiles, tiles, blocks, second, BAND: gl.constexpr,
    GATED: gl.constexpr, GROUPS: gl.constexpr, OVERLAP: gl.constexpr,
):  # fmt: skip
    """The fetching warp. Where there is no such row, the copy engine writes zeros.

    What W begins with is fetched before the wait for the kernel that x comes from (`programmatic_launch`).
    """
    STAGES: gl.constexpr = ready.type.shape[0]
    BLOCK_K: gl.constexpr = w_rows.block_type.shape[1]
    _, output_tile = _place(gl.program_id(0), row_tiles, tiles, BAND)
    ahead = gl.minimum(blocks, STAGES)
    for block in range(ahead):
        _fetch_weight(x_rows, w_rows, w_tiles, ready, block, output_tile, block, second, GATED, GROUPS)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    step = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row_tile, output_tile = _place(tile, row_tiles, tiles, BAND)
        row = row_tile * GROUPS * 64
        for block in range(blocks):
            stage = step % STAGES
            if step >= ahead:
                mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
                _fetch_weight(x_rows, w_rows, w_tiles, ready, stage, output_tile, block, second, GATED, GROUPS)
            for group in gl.static_range(GROUPS):
                tma.async_copy_global_to_shared(
                    x_rows, [row + group * 64, block * BLOCK_K], ready.index(stage),
                    x_tiles.index(stage * GROUPS + group),
                )  # fmt: skip
            step += 1


@gluon.jit
def _fetch_weight(
    x_rows, w_rows, w_tiles, ready, stage, output_tile, block, second, GATED: gl.constexpr, GROUPS: gl.constexpr,
):  # fmt: skip
    """Has the rows of W fetched into a stage, whose barrier expects those of x with them."""
    HALF: gl.constexpr = w_rows.block_type.shape[0]
    k = block * w_rows.block_type.shape[1]
    first = output_tile * HALF if GATED else output_tile * 2 * HALF
    bar = ready.index(stage)
    mbarrier.expect(bar, GROUPS * x_rows.block_type.nbytes + 2 * w_rows.block_type.nbytes)
    w_tile = w_tiles.index(stage)
    tma.async_copy_global_to_shared(w_rows, [first, k], bar, w_tile.slice(0, HALF))
    tma.async_copy_global_to_shared(w_rows, [first + second, k], bar, w_tile.slice(HALF, HALF))


@gluon.jit
def _multiply(
    y_rows, x_tiles, w_tiles, y_tiles, ready, empty, row_tiles, tiles, blocks, BAND: gl.constexpr, GATED: gl.constexpr,
    GROUPS: gl.constexpr, WHICH: gl.constexpr,
):  # fmt: skip
    """A multiplying group: rows 64 · WHICH to 64 · WHICH + 63 of each tile."""
    STAGES: gl.constexpr = ready.type.shape[0]
    BLOCK_N: gl.constexpr = w_tiles.type.shape[1]
    HALF: gl.constexpr = BLOCK_N // 2
    sums_in: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    step = 0
    sums = gl.full([64, BLOCK_N], 0.0, gl.float32, sums_in)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row_tile, output_tile = _place(tile, row_tiles, tiles, BAND)
        row = (row_tile * GROUPS + WHICH) * 64
        stage = step % STAGES
        mbarrier.wait(ready.index(stage), step // STAGES & 1)
        going = warpgroup_mma(
            x_tiles.index(stage * GROUPS + WHICH), w_tiles.index(stage).permute((1, 0)), sums, use_acc=False,
            is_async=True,
        )  # fmt: skip
        going = warpgroup_mma_wait(1, deps=[going])
        step += 1
        for _ in range(1, blocks):
            stage = step % STAGES
            mbarrier.wait(ready.index(stage), step // STAGES & 1)
            going = warpgroup_mma(
                x_tiles.index(stage * GROUPS + WHICH), w_tiles.index(stage).permute((1, 0)), going, is_async=True
            )
            going = warpgroup_mma_wait(1, deps=[going])
            mbarrier.arrive(empty.index((step - 1) % STAGES), count=1)
            step += 1
        sums = warpgroup_mma_wait(0, deps=[going])
        mbarrier.arrive(empty.index((step - 1) % STAGES), count=1)
        _store(y_rows, y_tiles.index(WHICH), sums, row, output_tile * (HALF if GATED else BLOCK_N), GATED)
    tma.store_wait(0)


@gluon.jit
def _store(y_rows, y_tile, sums, row, output, GATED: gl.constexpr):
    """Rounds a group's sums and has the copy engine write them; rows and outputs that there are not it leaves out."""
    dtype: gl.constexpr = y_rows.dtype
    HALF: gl.constexpr = sums.shape[1] // 2
    left, right = sums.reshape((64, 2, HALF)).permute((0, 2, 1)).split()
    tma.store_wait(0)
    if GATED:
        gate = left.to(dtype).to(gl.float32)
        silu = (gate / (1.0 + gl.exp(-gate))).to(dtype).to(gl.float32)
        y_tile.store((silu * right.to(dtype).to(gl.float32)).to(dtype))
    else:
        y_tile.store(left.to(dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(y_rows, [row, output], y_tile)
    if not GATED:
        tma.store_wait(0)
        y_tile.store(right.to(dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(y_rows, [row, output + HALF], y_tile)
