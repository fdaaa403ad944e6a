"""The inputs of a step, worked out on the device from a few words about each of its rows; here in plain torch.

The host says where a row's tokens begin, how many they are, which slot its request has, and which pages the request got
since it was spoken of last. All else is on the device already or follows: block tables by slot, the tokens sampled last
by slot, positions, places in the cache. The Triton kernel is `step_inputs_kernel.expand_step`.
"""

from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch


class PackedStep(NamedTuple):
    """What the host says of a step with room for T tokens and R rows, int32, in this order in one stretch of memory.

    token_ids: [T]; −1 for the one that was sampled last in the row's slot. Row r's are those from query_start[r] up to
    query_start[r + 1] ([R + 1]); those from query_start[R] on are nobody's. start: [R], the position of the row's first
    token. slot: [R]. known: [R], pages in the slot's table so far; behind these come pages[page_start[r]] up to
    pages[page_start[r + 1]] ([R + 1]). sampling: [R], first the rows that sample, then −1. draws: [1], whether their
    tokens are drawn where the step is computed.
    """

    token_ids: Any
    query_start: Any
    start: Any
    slot: Any
    known: Any
    page_start: Any
    sampling: Any
    draws: Any
    pages: Any


class SlotState(NamedTuple):
    """What the device keeps of each slot: the token sampled last, [S] int64, and the block table, [≥ S, B] int32.

    page_size: tokens in a page. scratch_page: of the cache, nobody's.
    """

    last: torch.Tensor
    tables: torch.Tensor
    page_size: int
    scratch_page: int


class ExpandedStep(NamedTuple):
    """The inputs of a forward pass, see `ForwardBatch`, and of the rows that sample: [R] int64 all three.

    last_index: the place of the row's last token in the batch. slot: its slot. draw_slot: the same if `draws` says so,
    else −1. Behind the last row that samples they are 0, −1 and −1.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    last_index: torch.Tensor
    slot: torch.Tensor
    draw_slot: torch.Tensor


def packed_words(tokens: int, rows: int) -> int:
    """Of 4 bytes, that a packed step takes before its pages."""
    return _section_ends(tokens, rows)[-1]


def sections(memory: Any, tokens: int, rows: int) -> PackedStep:
    """Views of a packed step, a numpy array or a tensor of int32; the pages are all that is behind it."""
    ends = _section_ends(tokens, rows)
    return PackedStep._make([memory[start:end] for start, end in zip((0, *ends), (*ends, None), strict=True)])


@cache
def _section_ends(tokens: int, rows: int) -> tuple[int, ...]:
    return tuple(accumulate((tokens, rows + 1, rows, rows, rows, rows + 1, rows, 1)))


def expand_step(memory: torch.Tensor, state: SlotState, out: ExpandedStep, longest: int) -> None:
    """Fills `out`, whose lengths are T and R, and adds the new pages to the tables of `state`.

    memory: the packed step. longest: tokens that a row has at most. Tokens that are nobody's are tokens 0 at position
    0, whose K and V go to the scratch page. Of a row's block table only as many entries are written as its request has
    pages. No slot stands in two rows, unless it gets no page in either.
    """
    rows, page_size = len(out.context_lens), state.page_size
    packed = PackedStep._make(part.long() for part in sections(memory, len(out.token_ids), rows))
    counts, added = packed.query_start.diff(), packed.page_start.diff()
    if counts.max() > longest:
        raise ValueError(f"a row has {int(counts.max())} tokens, and may have {longest}")
    row = torch.arange(rows, device=memory.device)
    of_page = row.repeat_interleave(added)
    column = packed.known[of_page] + torch.arange(len(of_page), device=memory.device) - packed.page_start[of_page]
    state.tables[packed.slot[of_page], column] = packed.pages[: len(of_page)].int()
    held = torch.arange(out.block_tables.shape[1], device=memory.device) < (packed.known + added)[:, None]
    out.block_tables.copy_(torch.where(held, state.tables[packed.slot], out.block_tables))
    of_token = row.repeat_interleave(counts)
    used = len(of_token)
    given, slot = packed.token_ids[:used], packed.slot[of_token]
    positions = packed.start[of_token] + torch.arange(used, device=memory.device) - packed.query_start[of_token]
    last = state.last[slot.clamp(max=len(state.last) - 1)]
    page = state.tables[slot, positions // page_size].long()
    for place, values, beyond in (
        (out.token_ids, torch.where(given < 0, last, given), 0),
        (out.positions, positions, 0),
        (out.slot_mapping, page * page_size + positions % page_size, state.scratch_page * page_size),
    ):
        place[:used], place[used:] = values, beyond
    out.context_lens.copy_(packed.start + counts)
    samples = packed.sampling >= 0
    out.last_index.copy_(torch.where(samples, packed.query_start[packed.sampling + 1] - 1, 0))
    out.slot.copy_(torch.where(samples, packed.slot[packed.sampling], -1))
    out.draw_slot.copy_(torch.where(packed.draws > 0, out.slot, -1))
