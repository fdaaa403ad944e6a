"""What the host says of a step to the device, in one stretch of host memory: see `octavo_kernels.step_inputs`.

Of a request's pages only those are sent that its slot's block table on the device lacks; `RequestState.num_sent` counts
them. A step that fails ends its requests, so that nobody counts on pages which it may not have brought. A slot that is
given away begins anew, and what a step under way still reads of it is overwritten behind that step.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch

from octavo_kernels.step_inputs import packed_words, sections
from octavo_server.worker.graph_ladder import GraphShape
from octavo_server.worker.input_batch import RequestState, ScheduledRow
from octavo_server.worker.step_memory import StepMemory, StepMemoryPool

MOST_PAGES: Final = 16_384  # new ones that a packed step takes


class NewPages(NamedTuple):
    """`pages` [n] int32, in host memory, go behind the first `known` of the slot's table."""

    slot: int
    known: int
    pages: torch.Tensor


@dataclass(frozen=True, slots=True)
class GraphInputs:
    """A step of `rows` for the graph of `shape`. memory: with its first `num_words`, see `PackedStep`.

    num_sampling: of its rows, those that sample. before: pages that slots' tables get before the step, as there are
    more than a packed step takes. shared: who shares prefixes, for `SharedBuffers`.
    """

    rows: list[ScheduledRow]
    shape: GraphShape
    num_sampling: int
    memory: StepMemory
    num_words: int
    before: list[NewPages]
    shared: torch.Tensor | None = None


class StepPacker:
    """Packs steps for graphs. scratch_slot: nobody's; rows that fill up a decode graph take it."""

    def __init__(self, scratch_slot: int, pool: StepMemoryPool, *, pinned: bool) -> None:
        """pool: of memory large enough for the largest graph and `MOST_PAGES`."""
        self._scratch_slot = scratch_slot
        self._pool = pool
        self._pinned = pinned
        self._blanks: dict[GraphShape, np.ndarray] = {}
        # The requests of the step packed last, if it only decoded: most often the next one is of the same.
        self._decoding: list[RequestState] | None = None
        self._slots = self._known = np.zeros(0, dtype=np.int32)

    def pack(self, rows: list[ScheduledRow], shape: GraphShape) -> GraphInputs:
        """Says what there is to say of the rows, which fit in; from here on their pages count as sent."""
        count, states = len(rows), [row.state for row in rows]
        go_on = shape.is_decode and states == self._decoding
        before = list[NewPages]()
        new = [index for index, state in enumerate(states) if state.num_blocks > state.num_sent]
        added = [states[index].num_blocks - states[index].num_sent for index in new]
        num_new = sum(added)
        if num_new > MOST_PAGES:
            new, num_new, before, go_on = [], 0, self._send([states[index] for index in new]), False
        if not go_on:
            self._slots = np.array([state.slot for state in states], dtype=np.int32)
            self._known = np.array([state.num_sent for state in states], dtype=np.int32)
            self._decoding = states if shape.is_decode else None
        blank = self._blank(shape)
        memory, num_words = self._pool.take(), len(blank) + num_new
        memory.words[: len(blank)] = blank
        to = sections(memory.words[:num_words], shape.tokens, shape.rows)
        to.start[:count] = [row.start for row in rows]
        to.slot[:count], to.known[:count] = self._slots, self._known
        num_sampling = count
        if shape.is_decode:
            to.sampling[:count] = to.query_start[:count]
            to.token_ids[:count] = -1
            for index, row in enumerate([] if go_on else rows):
                if row.start < row.state.num_given:
                    to.token_ids[index] = row.state.token_ids[row.start]
        elif rows:
            sampling = [index for index, row in enumerate(rows) if row.samples]
            num_sampling = len(sampling)
            to.sampling[:num_sampling] = sampling
            tokens = _token_ids(rows)
            to.token_ids[: len(tokens)] = tokens
            to.query_start[:count] = [row.offset for row in rows]
            to.query_start[count:] = len(tokens)
        if new:
            each = np.zeros(count, dtype=np.int32)
            each[new] = added
            np.cumsum(each, out=to.page_start[1 : count + 1])
            to.page_start[count + 1 :] = num_new
            got = [states[index] for index in new]
            np.concatenate([state.block_ids[state.num_sent : state.num_blocks] for state in got], out=to.pages)
            for state in got:
                state.num_sent = state.num_blocks
            self._known = self._known + each
        return GraphInputs(rows, shape, num_sampling, memory, num_words, before)

    def _blank(self, shape: GraphShape) -> np.ndarray:
        """A step without rows: in a decode graph each row has a token 0 all the same."""
        found = self._blanks.get(shape)
        if found is None:
            found = self._blanks[shape] = np.zeros(packed_words(shape.tokens, shape.rows), dtype=np.int32)
            to = sections(found, shape.tokens, shape.rows)
            to.slot[:], to.known[:], to.sampling[:] = self._scratch_slot, 1, -1
            if shape.is_decode:
                to.query_start[:] = np.arange(shape.rows + 1)
        return found

    def _send(self, states: list[RequestState]) -> list[NewPages]:
        """All pages that are not there yet, one by one: so many come when requests join together on long prefixes."""
        found = []
        for state in states:
            pages = torch.empty(state.num_blocks - state.num_sent, dtype=torch.int32, pin_memory=self._pinned)
            pages.numpy()[:] = state.block_ids[state.num_sent : state.num_blocks]
            found.append(NewPages(state.slot, state.num_sent, pages))
            state.num_sent = state.num_blocks
        return found


def _token_ids(rows: list[ScheduledRow]) -> np.ndarray:
    """Of all tokens of the rows; −1 for one that was sampled in the row's slot, which is always its last one."""
    tokens = np.concatenate([row.state.token_ids[row.start : row.end] for row in rows])
    for row in rows:
        if row.end > row.state.num_given:
            tokens[row.last_index] = -1
    return tokens
