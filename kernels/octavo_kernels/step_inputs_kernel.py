# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""A step's inputs from a few words about each row, in Triton; its twin and definition is `step_inputs.expand_step`.

A program takes some tokens of a row, the first of them also what there is once a row: its block table is copied from
its slot's, and new pages are put behind that. Whoever needs a new page takes it from the packed step, never from the
slot's table, which another program may be writing.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from octavo_kernels.step_inputs import ExpandedStep, SlotState

_TOKENS: Final = 128  # of a program
_PAGES: Final = 512  # at a time


def expand_step(memory: torch.Tensor, state: SlotState, out: ExpandedStep, longest: int) -> None:
    """As the twin, but that `longest` is taken on trust. The grid follows from sizes alone; nothing is read back."""
    tokens, rows = len(out.token_ids), len(out.context_lens)
    _expand_kernel[(rows + 1, triton.cdiv(max(longest, tokens - rows), _TOKENS))](
        memory,
        state.last,
        state.tables,
        *out,
        tokens,
        rows,
        state.tables.stride(0),
        out.block_tables.stride(0),
        state.scratch_page,
        PAGE_SIZE=state.page_size,
        TOKENS=_TOKENS,
        PAGES=_PAGES,
    )


# Graphs of all sizes share one compiled kernel.
@triton.jit(
    do_not_specialize=["tokens", "rows", "stride_table", "stride_out", "scratch_page"],
)
def _expand_kernel(
    memory_ptr,
    last_ptr,
    tables_ptr,
    token_ids_ptr,
    positions_ptr,
    slot_mapping_ptr,
    context_lens_ptr,
    block_tables_ptr,
    last_index_ptr,
    sampled_slot_ptr,
    draw_slot_ptr,
    tokens,
    rows,
    stride_table,
    stride_out,
    scratch_page,
    PAGE_SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
    PAGES: tl.constexpr,
):
    """Grid: (rows + 1, blocks of a row's tokens); the last row is the tokens that are nobody's."""
    row = tl.program_id(0)
    query_start_ptr = memory_ptr + tokens
    start_ptr = query_start_ptr + rows + 1
    slot_ptr = start_ptr + rows
    known_ptr = slot_ptr + rows
    page_start_ptr = known_ptr + rows
    sampling_ptr = page_start_ptr + rows + 1
    draws_ptr = sampling_ptr + rows
    pages_ptr = draws_ptr + 1
    first = tl.load(query_start_ptr + row)
    i = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    if row == rows:
        at = first + i
        beyond = at < tokens
        zero = tl.zeros([TOKENS], tl.int64)
        tl.store(token_ids_ptr + at, zero, mask=beyond)
        tl.store(positions_ptr + at, zero, mask=beyond)
        tl.store(slot_mapping_ptr + at, zero + scratch_page.to(tl.int64) * PAGE_SIZE, mask=beyond)
        return
    count = tl.load(query_start_ptr + row + 1) - first
    if tl.program_id(1) * TOKENS >= tl.maximum(count, 1):
        return
    start = tl.load(start_ptr + row)
    slot = tl.load(slot_ptr + row)
    known = tl.load(known_ptr + row)
    page_start = tl.load(page_start_ptr + row)
    new_ptr = pages_ptr + page_start - known  # a new page's place by its place in the table
    table_ptr = tables_ptr + slot.to(tl.int64) * stride_table
    if tl.program_id(1) == 0:
        tl.store(context_lens_ptr + row, start + count)
        sampling = tl.load(sampling_ptr + row)
        # Behind the rows that sample −1 stands there, and the first query_start is 0.
        last_index = tl.load(query_start_ptr + sampling + 1) - 1
        tl.store(last_index_ptr + row, tl.maximum(last_index, 0).to(tl.int64))
        sampled_slot = tl.load(slot_ptr + sampling, mask=sampling >= 0, other=-1).to(tl.int64)
        tl.store(sampled_slot_ptr + row, sampled_slot)
        tl.store(draw_slot_ptr + row, tl.where(tl.load(draws_ptr) > 0, sampled_slot, -1))
        length = known + tl.load(page_start_ptr + row + 1) - page_start
        out_ptr = block_tables_ptr + row.to(tl.int64) * stride_out
        for begin in range(0, length, PAGES):
            column = begin + tl.arange(0, PAGES)
            is_new = (column >= known) & (column < length)
            old = tl.load(table_ptr + column, mask=column < known, other=0)
            new = tl.load(new_ptr + column, mask=is_new, other=0)
            tl.store(out_ptr + column, tl.where(is_new, new, old), mask=column < length)
            tl.store(table_ptr + column, new, mask=is_new)
    mask = i < count
    position = start + i
    given = tl.load(memory_ptr + first + i, mask=mask, other=0).to(tl.int64)
    last = tl.load(last_ptr + slot + tl.zeros([TOKENS], tl.int32), mask=given < 0, other=0)
    column = position // PAGE_SIZE
    old = tl.load(table_ptr + column, mask=mask & (column < known), other=0)
    new = tl.load(new_ptr + column, mask=mask & (column >= known), other=0)
    page = tl.where(column < known, old, new).to(tl.int64)
    at = first + i
    tl.store(token_ids_ptr + at, tl.where(given < 0, last, given), mask=mask)
    tl.store(positions_ptr + at, position.to(tl.int64), mask=mask)
    tl.store(slot_mapping_ptr + at, page * PAGE_SIZE + position % PAGE_SIZE, mask=mask)
