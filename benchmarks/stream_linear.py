# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""An experiment: a linear map of few rows that shares the reading of its weight evenly among the processors.

    y = x Wᵀ,  worked out as yᵀ = W xᵀ

With sides exchanged, outputs are the rows of the matrix instruction (64 on Hopper, always filled) and tokens its
columns (8 at least): no part of the instruction is wasted on rows that are not there. Tiles of both come through tensor
descriptors. The work, tiles times blocks of inputs, is cut into as many equal stretches as there are programs, across
the borders of tiles ("Stream-K", Osama et al., 2023): with as many programs as tiles that is a tile each, with a
multiple of it split-K, with as many as fit on the device at once no processor waits for another. Parts of a tile are
summed in the order of the inputs, by the program that comes last: the same bits every time.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """A tile of W and of tokens, and how many programs there are: a number a processor, or 0 for a tile each."""

    block_o: int
    block_t: int
    block_k: int
    num_warps: int
    num_stages: int
    each: int

    def __str__(self) -> str:
        programs = f"{self.each}/SM" if self.each else "tiles"
        return f"{self.block_o}x{self.block_t}x{self.block_k} w{self.num_warps} s{self.num_stages} {programs}"


@cache
def scratch(size: int, tiles: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for parts of tiles, and for each tile how many are there; the kernel leaves zeros behind."""
    return torch.empty(size, device=device), torch.zeros(tiles, dtype=torch.int32, device=device)


def stream_linear(x: torch.Tensor, weight: torch.Tensor, config: StreamConfig, processors: int = 132) -> torch.Tensor:
    """[T, in] × [out, in] → [T, out]; `in` is a multiple of 8. Sums in float32."""
    (rows, inputs), outputs = x.shape, len(weight)
    y = x.new_empty(rows, outputs)
    tiles = triton.cdiv(outputs, config.block_o) * triton.cdiv(rows, config.block_t)
    programs = min(config.each * processors or tiles, tiles * triton.cdiv(inputs, config.block_k))
    room = 2 * programs * config.block_o * config.block_t if config.each else 1
    parts, counts = scratch(room, tiles, x.device)
    _stream_kernel[(programs,)](
        TensorDescriptor.from_tensor(weight, [config.block_o, config.block_k]),
        TensorDescriptor.from_tensor(x, [config.block_t, config.block_k]),
        y,
        parts,
        counts,
        rows,
        outputs,
        inputs,
        BLOCK_O=config.block_o,
        BLOCK_T=config.block_t,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return y


@triton.jit(do_not_specialize=["rows", "outputs", "inputs"])
def _stream_kernel(
    weight,
    x,
    y_ptr,
    parts_ptr,
    counts_ptr,
    rows,
    outputs,
    inputs,
    BLOCK_O: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid: (programs,). A unit is a block of inputs of a tile; a tile's follow each other."""
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    blocks = tl.cdiv(inputs, BLOCK_K)
    row_tiles = tl.cdiv(rows, BLOCK_T)
    units = tl.cdiv(outputs, BLOCK_O) * row_tiles * blocks
    first_unit = program * units // programs
    end_unit = (program + 1) * units // programs
    inside = tl.arange(0, BLOCK_O)[:, None] * BLOCK_T + tl.arange(0, BLOCK_T)[None, :]
    for tile in range(first_unit // blocks, tl.cdiv(end_unit, blocks)):
        begin = tl.maximum(first_unit, tile * blocks) - tile * blocks
        end = tl.minimum(end_unit, (tile + 1) * blocks) - tile * blocks
        output = tile // row_tiles * BLOCK_O
        row = tile % row_tiles * BLOCK_T
        acc = tl.full([BLOCK_O, BLOCK_T], 0.0, tl.float32)
        for block in range(begin, end):
            w = weight.load([output, block * BLOCK_K])
            t = x.load([row, block * BLOCK_K])
            acc = tl.dot(w, tl.trans(t), acc)
        if end - begin == blocks:
            _store(y_ptr, acc, output, row, rows, outputs, BLOCK_O, BLOCK_T)
        else:
            # A program has a part of its first tile at most, and one of its last.
            place = program * 2 + (tile != first_unit // blocks).to(tl.int32)
            tl.store(parts_ptr + place * BLOCK_O * BLOCK_T + inside, acc)
            tl.debug_barrier()
            first = ((tile * blocks + 1) * programs - 1) // units  # the program that has the tile's first unit
            last = ((tile + 1) * blocks * programs - 1) // units
            there = tl.atomic_add(counts_ptr + tile, 1, sem="acq_rel")
            if there == last - first:
                total = tl.full([BLOCK_O, BLOCK_T], 0.0, tl.float32)
                for part in range(first, last + 1):
                    of = part * 2 + (tile != part * units // programs // blocks).to(tl.int32)
                    total += tl.load(parts_ptr + of * BLOCK_O * BLOCK_T + inside, cache_modifier=".cg")
                tl.store(counts_ptr + tile, 0)
                _store(y_ptr, total, output, row, rows, outputs, BLOCK_O, BLOCK_T)


@triton.jit
def _store(y_ptr, tile, output, row, rows, outputs, BLOCK_O: tl.constexpr, BLOCK_T: tl.constexpr):
    o = output + tl.arange(0, BLOCK_O)
    t = row + tl.arange(0, BLOCK_T)
    at = y_ptr + t.to(tl.int64)[:, None] * outputs + o[None, :]
    tl.store(at, tl.trans(tile).to(y_ptr.dtype.element_ty), mask=(t < rows)[:, None] & (o < outputs)[None, :])
