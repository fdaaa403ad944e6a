"""The worker's copy of the requests it was told of, and the inputs of a forward pass made from it."""

from dataclasses import dataclass

import numpy as np
import torch

from octavo_server.engine.step import NewRequest, SchedulerOutput
from octavo_server.ipc import SamplingParams
from octavo_server.worker.logits_processors import History, SamplingRow, needs_history
from octavo_server.worker.models.interface import ForwardBatch


class RequestState:
    """One request on the worker. Its arrays are as long as it can become: nothing is copied as it grows."""

    __slots__ = (
        "block_ids",
        "history",
        "num_blocks",
        "num_computed",
        "num_prompt",
        "num_tokens",
        "request_id",
        "sampling",
        "token_ids",
    )

    def __init__(self, new: NewRequest, block_size: int) -> None:
        self.request_id = new.request_id
        self.sampling: SamplingParams = new.sampling
        self.num_prompt = new.num_prompt_tokens
        self.num_computed = new.num_computed_tokens
        self.num_tokens = len(new.token_ids)
        # One more than it may have: where no token is wanted at all (max_tokens 0) one is sampled, and dropped later.
        self.token_ids = np.empty(max(new.max_tokens_in_all, self.num_tokens) + 1, dtype=np.int64)
        self.token_ids[: self.num_tokens] = new.token_ids
        self.history = History(self.token_ids, self.num_prompt) if needs_history(self.sampling) else None
        self.block_ids = np.zeros(-(-len(self.token_ids) // block_size), dtype=np.int32)
        self.num_blocks = 0
        self.add_blocks(new.block_ids)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Not so after a preemption in mid-answer: they were sent with the first token."""
        return self.sampling.prompt_logprobs is not None and self.num_tokens == self.num_prompt

    def sampling_row(self) -> SamplingRow:
        """What the sampler must know to draw the next token."""
        return SamplingRow(self.sampling, self.num_tokens, self.num_prompt, self.history)

    def add_blocks(self, block_ids: list[int]) -> None:
        """Appends pages to the block table."""
        self.block_ids[self.num_blocks : self.num_blocks + len(block_ids)] = block_ids
        self.num_blocks += len(block_ids)

    def append(self, token_id: int) -> None:
        """Appends a sampled token."""
        self.token_ids[self.num_tokens] = token_id
        self.num_tokens += 1


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """A request's part in a step: its tokens from `start` up to `end`, which are rows `offset`… of the batch."""

    state: RequestState
    start: int
    end: int
    offset: int

    @property
    def samples(self) -> bool:
        """Whether the step computes the request's last token, so that the next one follows."""
        return self.end == self.state.num_tokens

    @property
    def last_index(self) -> int:
        """Row of its last token in the batch."""
        return self.offset + self.end - self.start - 1


class InputBatch:
    """Keeps the requests' states by what the scheduler says, and builds `ForwardBatch`es from them."""

    def __init__(self, block_size: int, device: torch.device) -> None:
        self.block_size = block_size
        self.device = device
        self.states: dict[str, RequestState] = {}

    def apply(self, output: SchedulerOutput) -> None:
        """Forgets, learns and extends requests, in this order: an id may be forgotten and come back in one step."""
        for request_id in (*output.finished_ids, *output.preempted_ids):
            self.states.pop(request_id, None)
        for new in output.new_requests:
            self.states[new.request_id] = RequestState(new, self.block_size)
        for request_id, block_ids in output.new_block_ids.items():
            self.states[request_id].add_blocks(block_ids)

    def advance(self, num_scheduled_tokens: dict[str, int]) -> list[ScheduledRow]:
        """The rows of a step; from here on their tokens count as computed."""
        rows: list[ScheduledRow] = []
        offset = 0
        for request_id, count in num_scheduled_tokens.items():
            state = self.states[request_id]
            rows.append(ScheduledRow(state, state.num_computed, state.num_computed + count, offset))
            state.num_computed += count
            offset += count
        return rows

    def build(self, rows: list[ScheduledRow]) -> ForwardBatch:
        """The tensors of a forward pass over `rows`."""
        starts = np.array([row.start for row in rows], dtype=np.int64)
        ends = np.array([row.end for row in rows], dtype=np.int64)
        counts = ends - starts
        query_start = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=query_start[1:])
        row_of_token = np.repeat(np.arange(len(rows)), counts)
        positions = np.arange(query_start[-1]) - (query_start[:-1] - starts)[row_of_token]
        block_tables = self._block_tables(rows)
        pages = block_tables[row_of_token, positions // self.block_size].astype(np.int64)
        return ForwardBatch(
            token_ids=self._tensor(np.concatenate([row.state.token_ids[row.start : row.end] for row in rows])),
            positions=self._tensor(positions),
            slot_mapping=self._tensor(pages * self.block_size + positions % self.block_size),
            query_start=self._tensor(query_start.astype(np.int32)),
            context_lens=self._tensor(ends.astype(np.int32)),
            block_tables=self._tensor(block_tables),
        )

    def _block_tables(self, rows: list[ScheduledRow]) -> np.ndarray:
        tables = np.zeros((len(rows), max(row.state.num_blocks for row in rows)), dtype=np.int32)
        for table, row in zip(tables, rows, strict=True):
            table[: row.state.num_blocks] = row.state.block_ids[: row.state.num_blocks]
        return tables

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)
