# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Two to 16 rows times a weight on the matrix units, the weight straight from memory into their registers, in Gluon.

    y = x Wᵀ + b

As `few_rows`, whose twin is this one's, too. There tiles of W pass through shared memory, and none is asked for before
x is there. Here a lane loads 16 bytes that follow each other in a row of W: in which order the inputs are summed does
not matter, so the matrix instruction may take for its own inputs those that the lane has, if x is dealt out alike. So
nothing is moved between lanes, and a program has its first stretch of W under way before it waits for x, as `gemv` has.
Outputs are the rows of the instruction (m16n8k16), tokens its columns. The warps of a program divide each stretch of
inputs among them, and add up what they have at the end.

For short rows of W: long ones are read as fast through shared memory, and x less often (benchmarks/LOG.md).
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2


@gluon.jit(do_not_specialize=["rows", "outputs"])
def register_rows_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, rows, outputs, stride_x, stride_weight, INPUTS: gl.constexpr,
    SHARE: gl.constexpr, BIAS: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_N: gl.constexpr, STRETCH: gl.constexpr,
    OVERLAP: gl.constexpr,
):  # fmt: skip
    """Grid: (tiles of BLOCK_N outputs, splits of SHARE inputs, which are whole stretches).

    y: [splits, rows, outputs]. BLOCK_T: 8 or 16, at least `rows`. OVERLAP: of `programmatic_launch`, not 0.
    """
    WARPS: gl.constexpr = gl.num_warps()
    BLOCK_K: gl.constexpr = STRETCH // WARPS
    dtype: gl.constexpr = x_ptr.dtype.element_ty
    sums_in: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])
    weights_in: gl.constexpr = gl.DotOperandLayout(0, sums_in, 8)
    tokens_in: gl.constexpr = gl.DotOperandLayout(1, sums_in, 8)
    begin = gl.program_id(1) * SHARE
    end = gl.minimum(INPUTS, begin + SHARE)
    first = gl.program_id(0) * BLOCK_N

    # Past the last output the last one stands in, and is not stored. Rows that are not there are not loaded.
    output = _along(1, BLOCK_N, weights_in)
    w_k = begin + _along(0, WARPS, weights_in) * BLOCK_K + _along(2, BLOCK_K, weights_in)
    w_at = weight_ptr + gl.minimum(first + output, outputs - 1).to(gl.int64) * stride_weight + w_k
    row = _along(2, BLOCK_T, tokens_in)
    x_k = begin + _along(0, WARPS, tokens_in) * BLOCK_K + _along(1, BLOCK_K, tokens_in)
    x_at = x_ptr + row.to(gl.int64) * stride_x + x_k

    w = _piece(w_at, w_k, None, INPUTS, SHARE, STRETCH)
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()
    x = _piece(x_at, x_k, row < rows, INPUTS, SHARE, STRETCH)
    total = gl.full([WARPS, BLOCK_N, BLOCK_T], 0.0, gl.float32, sums_in)
    for start in range(STRETCH, end - begin, STRETCH):
        next_w = _piece(w_at + start, w_k + start, None, INPUTS, SHARE, STRETCH)
        next_x = _piece(x_at + start, x_k + start, row < rows, INPUTS, SHARE, STRETCH)
        total = mma_v2(w, x, total)
        w = next_w
        x = next_x
    y = gl.sum(mma_v2(w, x, total), 0)
    out_in: gl.constexpr = gl.SliceLayout(0, sums_in)
    output = first + gl.arange(0, BLOCK_N, gl.SliceLayout(1, out_in))
    row = gl.arange(0, BLOCK_T, gl.SliceLayout(0, out_in))
    if BIAS:
        # Rounded before and after, as in the twin.
        y = y.to(dtype).to(gl.float32) + gl.load(bias_ptr + gl.minimum(output, outputs - 1)).to(gl.float32)[:, None]
    at = (gl.program_id(1) * rows + row).to(gl.int64)[None, :] * outputs + output[:, None]
    gl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=(row < rows)[None, :] & (output < outputs)[:, None])


@gluon.jit
def _along(DIM: gl.constexpr, SIZE: gl.constexpr, LAYOUT: gl.constexpr):
    """0 to SIZE − 1 along a dimension of three; the others are 1."""
    if DIM == 0:
        found = gl.arange(0, SIZE, gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))[:, None][:, :, None]
    elif DIM == 1:
        found = gl.arange(0, SIZE, gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))[None, :][:, :, None]
    else:
        found = gl.arange(0, SIZE, gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))[None, :][:, None, :]
    return found


@gluon.jit
def _piece(at, k, mask, INPUTS: gl.constexpr, SHARE: gl.constexpr, STRETCH: gl.constexpr):
    """Zeros where there are no such inputs or the mask is not set. mask: None if there is none."""
    if INPUTS % SHARE or SHARE % STRETCH:
        inside = k < INPUTS if mask is None else (k < INPUTS) & mask
        found = gl.load(at, mask=inside, other=0.0)
    elif mask is None:
        found = gl.load(at)
    else:
        found = gl.load(at, mask=mask, other=0.0)
    return found
