"""The worker's copy of the requests it was told of, and the inputs of a step made from it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from octavo_server.grammar_store import GrammarStore
from octavo_server.ipc import SamplingParams
from octavo_server.step import NewRequest, SchedulerOutput
from octavo_server.worker.grammar import RequestGrammar
from octavo_server.worker.logits_processors import History, needs_history
from octavo_server.worker.models.interface import ForwardBatch
from octavo_server.worker.transfer import upload_together


class RequestState:
    """One request on the worker. Its arrays are as long as it can become: nothing is copied as it grows.

    `num_tokens` counts what the steps launched so far sample, too; of these the first `num_known` stand in `token_ids`.
    A later one is known on the device alone, in the row `slot` of the tokens that were sampled last. The first
    `num_given` came from the scheduler; the others were sampled in that slot. Of the `num_blocks` pages the first
    `num_sent` stand in the slot's block table on the device (`step_packing`). `pooled`: what `pooling` has made of its
    chunks so far, on the device.
    """

    __slots__ = (
        "block_ids",
        "failed",
        "grammar",
        "history",
        "num_blocks",
        "num_computed",
        "num_given",
        "num_known",
        "num_prompt",
        "num_sent",
        "num_tokens",
        "pooled",
        "pooling",
        "request_id",
        "sampling",
        "slot",
        "token_ids",
    )

    def __init__(self, new: NewRequest, block_size: int, slot: int) -> None:
        self.request_id = new.request_id
        self.sampling: SamplingParams = new.sampling
        self.pooling = new.pooling
        self.pooled: torch.Tensor | None = None
        self.slot = slot
        self.failed = False
        self.grammar: RequestGrammar | None = None
        self.num_prompt = new.num_prompt_tokens
        self.num_computed = new.num_computed_tokens
        self.num_tokens = self.num_known = self.num_given = len(new.token_ids)
        # One more than it may have: where no token is wanted at all (max_tokens 0) one is sampled, and dropped later.
        self.token_ids = np.zeros(max(new.max_tokens_in_all, self.num_tokens) + 1, dtype=np.int64)
        self.token_ids[: self.num_tokens] = new.token_ids
        self.history = History(self.token_ids, self.num_prompt) if needs_history(new.sampling) else None
        self.block_ids = np.zeros(-(-len(self.token_ids) // block_size), dtype=np.int32)
        self.num_blocks = self.num_sent = 0
        self.add_blocks(new.block_ids)

    def add_blocks(self, block_ids: list[int]) -> None:
        """Appends pages to the block table."""
        self.block_ids[self.num_blocks : self.num_blocks + len(block_ids)] = block_ids
        self.num_blocks += len(block_ids)

    def learn(self, position: int, token_id: int) -> None:
        """Takes in a sampled token, those before it being known."""
        self.token_ids[position] = token_id
        self.num_known = position + 1


class ScheduledRow(msgspec.Struct):  # made for each row of each step: three times as fast as a dataclass
    """A request's part in a step: its tokens from `start` up to `end`, which are rows `offset`… of the batch.

    samples: the step computes the request's last token, so that the next one follows, at position `end`.
    pending: its last token is that of a step whose tokens the host has not seen yet.
    wants_prompt_logprobs: never after a preemption in mid-answer, as they were sent with the first token.
    """

    state: RequestState
    start: int
    end: int
    offset: int
    samples: bool
    pending: bool
    wants_prompt_logprobs: bool

    @property
    def wants_hidden(self) -> bool:
        """Whether more is made of its hidden states than the next token."""
        return self.wants_prompt_logprobs or bool(self.state.pooling)

    @property
    def last_index(self) -> int:
        """Row of its last token in the batch."""
        return self.offset + self.end - self.start - 1


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a step computes with, on the device (whose copies may still be under way).

    rows: all of them. forward: the batch; of the tokens at `pending_index` [p] the ids are to be taken from rows
    `pending_slot` [p] of the tokens sampled last. tables: the block tables, on the host. last_index, slot: [s] for each
    row that samples, the place of its last token in the batch and of its next one in the tokens sampled last; int64 all
    four.
    """

    rows: list[ScheduledRow]
    forward: ForwardBatch
    tables: np.ndarray
    pending_index: torch.Tensor
    pending_slot: torch.Tensor
    last_index: torch.Tensor
    slot: torch.Tensor


class InputBatch:
    """Keeps the requests' states by what the scheduler says, and builds the inputs of steps from them."""

    def __init__(
        self, block_size: int, device: torch.device, num_slots: int, grammars: GrammarStore | None = None
    ) -> None:
        """num_slots: requests that there can be at a time. grammars: theirs; None if no request may have one."""
        self._grammars = grammars
        self.block_size = block_size
        self.device = device
        self.states: dict[str, RequestState] = {}
        self._free_slots = list(range(num_slots - 1, -1, -1))

    def apply(self, output: SchedulerOutput) -> None:
        """Forgets, learns and extends requests, in this order: an id may be forgotten and come back in one step.

        A slot may be given away while a step of its last owner is under way: steps write in the order of their launch.
        """
        for request_id in (*output.finished_ids, *output.preempted_ids):
            if state := self.states.pop(request_id, None):
                self._free_slots.append(state.slot)
        for new in output.new_requests:
            state = RequestState(new, self.block_size, self._free_slots.pop())
            self.states[new.request_id] = state
            if new.sampling.grammar and self._grammars is not None:
                state.grammar = RequestGrammar(*self._grammars.matcher(new.sampling.grammar))
        for request_id, block_ids in output.new_block_ids.items():
            self.states[request_id].add_blocks(block_ids)

    def advance(self, num_scheduled_tokens: dict[str, int]) -> list[ScheduledRow]:
        """The rows of a step; from here on their tokens count as computed, and those they sample as tokens."""
        rows: list[ScheduledRow] = []
        offset = 0
        for request_id, count in num_scheduled_tokens.items():
            state = self.states[request_id]
            start, end = state.num_computed, state.num_computed + count
            samples, pending = end == state.num_tokens and not state.pooling, end > state.num_known
            if end - pending > state.num_known:
                raise RuntimeError(f"step {request_id}: more than one of its tokens is not known yet")
            prompt_logprobs = state.sampling.prompt_logprobs is not None and state.num_tokens == state.num_prompt
            rows.append(ScheduledRow(state, start, end, offset, samples, pending, prompt_logprobs))
            state.num_computed = end
            state.num_tokens += samples
            offset += count
        return rows

    def build(self, rows: list[ScheduledRow]) -> StepInputs:
        """The inputs of a step with `rows`, one or more."""
        arrays = arrange(rows, self.block_size)
        token_ids, positions, slot_mapping, query_start, context_lens, tables, *indices = upload_together(
            arrays, self.device
        )
        forward = ForwardBatch(
            token_ids,
            positions,
            slot_mapping,
            query_start,
            context_lens,
            tables,
            max_query_len=int(np.diff(arrays.query_start).max()),
            max_context_len=int(arrays.context_lens.max()),
        )
        return StepInputs(rows, forward, arrays.tables, *indices)


class StepArrays(NamedTuple):
    """What a step computes with, in host memory: see `ForwardBatch` and `StepInputs`."""

    token_ids: np.ndarray
    positions: np.ndarray
    slot_mapping: np.ndarray
    query_start: np.ndarray
    context_lens: np.ndarray
    tables: np.ndarray
    pending_index: np.ndarray
    pending_slot: np.ndarray
    last_index: np.ndarray
    slot: np.ndarray


def arrange(rows: list[ScheduledRow], block_size: int) -> StepArrays:
    """The arrays of a step with `rows`, one or more."""
    starts = np.array([row.start for row in rows], dtype=np.int64)
    ends = np.array([row.end for row in rows], dtype=np.int64)
    query_start = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(ends - starts, out=query_start[1:])
    row_of_token = np.repeat(np.arange(len(rows)), ends - starts)
    positions = np.arange(query_start[-1]) - (query_start[:-1] - starts)[row_of_token]
    tables = block_tables(rows)
    pages = tables[row_of_token, positions // block_size].astype(np.int64)
    pending, sampling = [row for row in rows if row.pending], [row for row in rows if row.samples]
    return StepArrays(
        np.concatenate([row.state.token_ids[row.start : row.end] for row in rows]),
        positions,
        pages * block_size + positions % block_size,
        query_start.astype(np.int32),
        ends.astype(np.int32),
        tables,
        _int64(row.last_index for row in pending),
        _int64(row.state.slot for row in pending),
        _int64(row.last_index for row in sampling),
        _int64(row.state.slot for row in sampling),
    )


def block_tables(rows: list[ScheduledRow]) -> np.ndarray:
    """[R, B] int32: the pages of each row's request, one row or more, padded with 0."""
    tables = np.zeros((len(rows), max(row.state.num_blocks for row in rows)), dtype=np.int32)
    for table, row in zip(tables, rows, strict=True):
        table[: row.state.num_blocks] = row.state.block_ids[: row.state.num_blocks]
    return tables


def _int64(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, dtype=np.int64)
