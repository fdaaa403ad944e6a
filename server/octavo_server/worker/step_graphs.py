"""Steps as graphs: from token ids to logits in one launch, for a ladder of sizes (`graph_ladder`).

A graph repeats the same kernels with the same grids on the same memory. So all that varies from step to step goes into
fixed buffers on the device: two copies from pinned memory, behind whatever runs there, and no allocation, no kernel
that depends on a length. How attention divides the work follows from the graph's size and the longest context there can
be; contexts, and which tokens are whose, are read on the device.

A step takes the smallest graph that it fits into. In a decode graph, in which each request has one token, the rows
beyond compute the token 0 as the first of a request whose one page, the scratch page, is nobody's. In a mixed graph the
tokens beyond belong to no request, so that attention leaves them out, and rows beyond have no token; K and V of such
tokens go to the scratch page. Nothing that is theirs is read, and they write to no page that is in use.

Token ids are taken from one array, in which the tokens sampled last stand before those that the host knows: so the
host need not know the tokens of the step before. Sampling is not part of the graph.
"""

import logging
import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch

from octavo_server.worker.graph_ladder import GraphShape, capture_order
from octavo_server.worker.graph_recorder import Recorder
from octavo_server.worker.input_batch import ScheduledRow, StepArrays, arrange
from octavo_server.worker.models.interface import ForwardBatch

_log = logging.getLogger(__name__)

# Computes logits [n, vocab] float32 into the last argument: of the tokens at the places [n] int64, or of all (None).
Forward = Callable[[ForwardBatch, torch.Tensor | None, torch.Tensor], None]


def input_words(tokens: int, rows: int) -> int:
    """Of 8 bytes, that the inputs of the largest graph take, tables aside."""
    return _section_ends(tokens, rows)[-1]


@dataclass(frozen=True, slots=True)
class GraphLimits:
    """Fixed sizes of the buffers.

    rows: of the largest graph. tokens: of the largest mixed one, 0 if there is none. width: pages in a block table.
    scratch_page: of the KV cache, nobody's.
    """

    rows: int
    tokens: int
    width: int
    block_size: int
    vocab_size: int
    scratch_page: int


@dataclass(frozen=True, slots=True)
class GraphInputs:
    """A step for the graph of `shape`, in host memory (pinned on CUDA), `rows` first. tables: of `rows` alone.

    num_sampling: of its rows, those that sample.
    """

    rows: list[ScheduledRow]
    shape: GraphShape
    num_sampling: int
    tables: np.ndarray
    packed: torch.Tensor
    padded_tables: torch.Tensor


class _Sections(NamedTuple):
    """What stands in the packed inputs, int64 but for the last two, which are int32.

    For each token, its id if the host knows it, `source`, where its id is, its position and its slot in the cache. For
    each row that samples, `last`, the place of its last token in the batch (of no use where all have one token), and
    `slot`, where the next one goes, among the tokens sampled last.
    """

    token_ids: Any
    source: Any
    positions: Any
    slot_mapping: Any
    slot: Any
    last: Any
    context_lens: Any
    query_start: Any


class StepGraphs:
    """The graphs and their buffers."""

    def __init__(
        self, forward: Forward, recorder: Recorder, limits: GraphLimits, tokens: torch.Tensor, num_slots: int
    ) -> None:
        """tokens: [num_slots + input_words(…)] int64, of which the first are the tokens sampled last."""
        self._forward = forward
        self._recorder = recorder
        self._limits = limits
        self._tokens = tokens
        self._num_slots = num_slots
        device, rows = tokens.device, limits.rows
        self._query_start = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._tables = torch.zeros(rows, limits.width, dtype=torch.int32, device=device)
        self._logits = torch.empty(rows, limits.vocab_size, device=device)
        self._replays: dict[GraphShape, Callable[[], None]] = {}
        self._shapes: list[GraphShape] = []  # of `_replays`, rising
        first, rest = capture_order(limits.tokens, rows)
        self.num_first = len(first)  # that should be there before the first request
        self._pending = [*first, *rest]
        self._longest = 0.0  # seconds that a capture took

    @property
    def num_pending(self) -> int:
        """Graphs that are still to be captured."""
        return len(self._pending)

    @torch.inference_mode()
    def capture_next(self) -> bool:
        """Captures the next graph; True if there are more. No step may be under way on another thread."""
        shape = self._pending.pop(0)
        begin = time.perf_counter()
        self._upload(self._pack([], shape, None))  # the work is done while it is captured: on nobody's page
        self._replays[shape] = self._recorder.record(lambda: self._work(shape))
        insort(self._shapes, shape)
        seconds = time.perf_counter() - begin
        self._longest = max(self._longest, seconds)
        _log.debug("captured the graph of %s in %.0f ms", _told(shape), seconds * 1000)
        if not self._pending:
            _log.info(
                "all %d graphs are captured; the longest kept the engine for %.0f ms",
                *(len(self._shapes), self._longest * 1000),
            )
        return bool(self._pending)

    def capture_rest(self) -> bool:
        """As `capture_next`, but a failure ends it: steps then take the graphs that are there."""
        try:
            return bool(self._pending) and self.capture_next()
        except RuntimeError:
            _log.exception("no further graph is captured; there are those of %s", "; ".join(map(_told, self._shapes)))
            self._pending.clear()
            return False

    def shape_for(self, rows: Sequence[ScheduledRow]) -> GraphShape | None:
        """Of the graph that computes these rows; None if none does."""
        if any(row.wants_prompt_logprobs or row.state.num_blocks > self._limits.width for row in rows):
            return None
        tokens = rows[-1].last_index + 1
        is_decode = tokens == len(rows) and all(row.samples for row in rows)
        fitting = (
            shape
            for shape in self._shapes
            if shape.tokens >= tokens and shape.rows >= len(rows) and shape.is_decode == is_decode
        )
        return next(fitting, None)

    def build(self, rows: list[ScheduledRow]) -> GraphInputs | None:
        """The inputs of a step of these rows, one or more; None if there is no graph for it."""
        shape = self.shape_for(rows)
        return None if shape is None else self._pack(rows, shape, arrange(rows, self._limits.block_size))

    def run(self, inputs: GraphInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Enqueues the step: logits of rows that sample, [n, vocab] float32, and the slots [n] of their next tokens.

        Both are overwritten by the next step.
        """
        self._upload(inputs)
        self._replays[inputs.shape]()
        count = inputs.num_sampling
        return self._logits[:count], self._sections(inputs.shape).slot[:count]

    def _pack(self, rows: list[ScheduledRow], shape: GraphShape, arrays: StepArrays | None) -> GraphInputs:
        limits = self._limits
        packed = self._host((input_words(shape.tokens, shape.rows),), torch.int64)
        packed.numpy()[:] = 0
        to = _sections(packed.numpy(), shape, np.int32)
        to.source[:] = self._num_slots + np.arange(shape.tokens)
        to.slot_mapping[:] = limits.scratch_page * limits.block_size
        to.context_lens[:] = 1
        if arrays is not None:
            tokens, num_sampling = len(arrays.token_ids), len(arrays.slot)
            to.token_ids[:tokens] = arrays.token_ids
            to.source[arrays.pending_index] = arrays.pending_slot
            to.positions[:tokens] = arrays.positions
            to.slot_mapping[:tokens] = arrays.slot_mapping
            to.slot[:num_sampling] = arrays.slot
            to.last[:num_sampling] = arrays.last_index
            to.context_lens[: len(rows)] = arrays.context_lens
            to.query_start[:] = tokens
            to.query_start[: len(rows)] = arrays.query_start[:-1]
        tables = np.zeros((0, 1), dtype=np.int32) if arrays is None else arrays.tables
        padded = self._host((shape.rows, tables.shape[1]), torch.int32)
        padded.numpy()[: len(rows)], padded.numpy()[len(rows) :] = tables, limits.scratch_page
        return GraphInputs(rows, shape, 0 if arrays is None else len(arrays.slot), tables, packed, padded)

    def _host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self._tokens.device.type == "cuda")

    def _upload(self, inputs: GraphInputs) -> None:
        packed, tables = inputs.packed, inputs.padded_tables
        self._tokens[self._num_slots : self._num_slots + len(packed)].copy_(packed, non_blocking=True)
        # Columns beyond keep what they had: entries past a request's pages are not read.
        self._tables[: len(tables), : tables.shape[1]].copy_(tables, non_blocking=True)

    def _sections(self, shape: GraphShape) -> _Sections:
        return _sections(self._tokens[self._num_slots :], shape, torch.int32)

    def _work(self, shape: GraphShape) -> None:
        """What is captured: everything in it is a kernel on a buffer that stays."""
        limits, inputs = self._limits, self._sections(shape)
        batch = ForwardBatch(
            self._tokens.index_select(0, inputs.source),
            inputs.positions,
            inputs.slot_mapping,
            self._query_start[: shape.rows + 1] if shape.is_decode else inputs.query_start,
            inputs.context_lens,
            self._tables[: shape.rows],
            # Of a mixed step nothing is known that will hold for the next one, too: no kernel may count on it.
            max_query_len=1 if shape.is_decode else None,
            max_context_len=limits.width * limits.block_size,
        )
        self._forward(batch, None if shape.is_decode else inputs.last, self._logits[: shape.rows])


def _told(shape: GraphShape) -> str:
    return f"{shape.rows} rows" if shape.is_decode else f"{shape.tokens} tokens of {shape.rows} rows"


def _section_ends(tokens: int, rows: int) -> list[int]:
    """Four words for each token, two for each row, and then int32, for each row two and one."""
    return list(accumulate([tokens] * 4 + [rows] * 2 + [rows + 1]))


def _sections(memory: Any, shape: GraphShape, int32: Any) -> _Sections:
    """Views of packed inputs, a numpy array or a tensor of int64."""
    ends = _section_ends(shape.tokens, shape.rows)
    *int64, rest = (memory[start:end] for start, end in zip([0, *ends], ends, strict=False))
    halves = rest.view(int32)
    return _Sections._make([*int64, halves[: shape.rows], halves[shape.rows : 2 * shape.rows + 1]])
