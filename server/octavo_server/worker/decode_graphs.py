"""Decode steps as graphs: from token ids to logits in one launch, for a ladder of batch sizes.

A graph repeats the same kernels with the same grids on the same memory. So all that varies from step to step goes into
fixed buffers on the device: two copies from pinned memory, behind whatever runs there, and no allocation, no kernel
that depends on a length. How attention divides the keys follows from the graph's size and the longest context there can
be; contexts themselves are read on the device.

A batch takes the smallest graph that it fits into. Rows beyond it compute the token 0 as the first of a request whose
one page, the scratch page, is nobody's: they write to no page that is in use, and nothing of theirs is read.

Token ids are taken from one array, in which the tokens sampled last stand before those that the host knows: so the
host need not know the tokens of the step before. Sampling is not part of the graph.
"""

import logging
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from octavo_server.worker.graph_recorder import Recorder
from octavo_server.worker.input_batch import ScheduledRow, block_tables
from octavo_server.worker.models.interface import ForwardBatch

_log = logging.getLogger(__name__)

MOST_ROWS: Final = 256
_RUNG: Final = 8


def ladder(largest: int) -> list[int]:
    """Batch sizes that have a graph: 1, 2, 4, 8, then each multiple of 8, and `largest` itself."""
    return [*(size for size in (1, 2, 4, *range(_RUNG, largest, _RUNG)) if size < largest), largest]


def capture_order(largest: int) -> tuple[list[int], list[int]]:
    """The ladder in two parts: what a start waits for, and what is left for later.

    The largest first: its memory is the pool, in which the others find room. Then the powers of two, so that from the
    start no batch is filled up to more than twice its size, or to the largest.
    """
    sizes = ladder(largest)
    first = [largest, *(size for size in sizes[:-1] if size & (size - 1) == 0)]
    return first, [size for size in sizes if size not in first]


def input_words(largest: int) -> int:
    """Of 8 bytes, that the inputs of the largest graph take, tables aside."""
    return _section_ends(largest)[-1]


@dataclass(frozen=True, slots=True)
class GraphLimits:
    """Fixed sizes of the buffers.

    largest: rows. width: pages in a block table. scratch_page: of the KV cache, nobody's.
    """

    largest: int
    width: int
    block_size: int
    vocab_size: int
    scratch_page: int


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """A step for the graph of `size` rows, in host memory (pinned on CUDA), `rows` first. tables: of `rows` alone."""

    rows: list[ScheduledRow]
    size: int
    tables: np.ndarray
    packed: torch.Tensor
    padded_tables: torch.Tensor


class _Sections(NamedTuple):
    """What stands in the packed inputs for each row: int64, the last one int32.

    token_ids: if the host knows it. source: where its token is. slot: where the next one goes, among the tokens sampled
    last.
    """

    token_ids: Any
    source: Any
    positions: Any
    slot_mapping: Any
    slot: Any
    context_lens: Any


class DecodeGraphs:
    """The graphs and their buffers. `forward` computes the logits, [n, vocab] float32, of a batch into its argument."""

    def __init__(
        self,
        forward: Callable[[ForwardBatch, torch.Tensor], None],
        recorder: Recorder,
        limits: GraphLimits,
        tokens: torch.Tensor,
        num_slots: int,
    ) -> None:
        """tokens: [num_slots + input_words(largest)] int64, of which the first are the tokens sampled last."""
        self._forward = forward
        self._recorder = recorder
        self._limits = limits
        self._tokens = tokens
        self._num_slots = num_slots
        device, largest = tokens.device, limits.largest
        self._query_start = torch.arange(largest + 1, dtype=torch.int32, device=device)
        self._tables = torch.zeros(largest, limits.width, dtype=torch.int32, device=device)
        self._logits = torch.empty(largest, limits.vocab_size, device=device)
        self._replays: dict[int, Callable[[], None]] = {}
        self._sizes: list[int] = []  # of `_replays`, rising
        first, rest = capture_order(largest)
        self.num_first = len(first)  # that should be there before the first request
        self._pending = [*first, *rest]

    @property
    def num_pending(self) -> int:
        """Graphs that are still to be captured."""
        return len(self._pending)

    @torch.inference_mode()
    def capture_next(self) -> bool:
        """Captures the next graph; True if there are more. No step may be under way on another thread."""
        size = self._pending.pop(0)
        begin = time.perf_counter()
        self._upload(self._build([], size))  # the work is done while it is captured: on nobody's page
        self._replays[size] = self._recorder.record(lambda: self._work(size))
        insort(self._sizes, size)
        _log.info("captured the decode graph of %d rows in %.0f ms", size, (time.perf_counter() - begin) * 1000)
        return bool(self._pending)

    def capture_rest(self) -> bool:
        """As `capture_next`, but a failure ends it: steps then take the graphs that are there."""
        try:
            return bool(self._pending) and self.capture_next()
        except RuntimeError:
            _log.exception("no further decode graph is captured; there are those of %s rows", self._sizes)
            self._pending.clear()
            return False

    def size_for(self, rows: Sequence[ScheduledRow]) -> int | None:
        """Rows of the graph that computes these; None if none does."""
        place = bisect_left(self._sizes, len(rows))
        if place == len(self._sizes) or not all(self._is_decode(row) for row in rows):
            return None
        return self._sizes[place]

    def build(self, rows: list[ScheduledRow]) -> DecodeInputs | None:
        """The inputs of a step of these rows, one or more; None if there is no graph for it."""
        size = self.size_for(rows)
        return None if size is None else self._build(rows, size)

    def run(self, inputs: DecodeInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Enqueues the step: logits of its rows, [n, vocab] float32, and the slots [n] of their next tokens.

        Both are overwritten by the next step.
        """
        self._upload(inputs)
        self._replays[inputs.size]()
        count = len(inputs.rows)
        return self._logits[:count], self._sections(inputs.size).slot[:count]

    def _is_decode(self, row: ScheduledRow) -> bool:
        if row.end - row.start != 1 or not row.samples or row.wants_prompt_logprobs:
            return False
        return row.state.num_blocks <= self._limits.width

    def _build(self, rows: list[ScheduledRow], size: int) -> DecodeInputs:
        limits, count = self._limits, len(rows)
        tables = block_tables(rows) if rows else np.zeros((0, 1), dtype=np.int32)
        padded = self._host((size, tables.shape[1]), torch.int32)
        padded.numpy()[:count], padded.numpy()[count:] = tables, limits.scratch_page
        packed = self._host((input_words(size),), torch.int64)
        to = _sections(packed.numpy(), size, np.int32)
        packed.numpy()[:] = 0
        ends = np.fromiter((row.end for row in rows), dtype=np.int64, count=count)
        places = ends - 1
        to.token_ids[:count] = [row.state.token_ids[row.start] for row in rows]
        to.slot[:count] = [row.state.slot for row in rows]
        to.source[:] = self._num_slots + np.arange(size)
        pending = np.fromiter((row.pending for row in rows), dtype=bool, count=count)
        np.copyto(to.source[:count], to.slot[:count], where=pending)
        to.positions[:count] = places
        to.slot_mapping[:] = limits.scratch_page * limits.block_size
        pages = tables[np.arange(count), places // limits.block_size].astype(np.int64)
        to.slot_mapping[:count] = pages * limits.block_size + places % limits.block_size
        to.context_lens[:] = 1
        to.context_lens[:count] = ends
        return DecodeInputs(rows, size, tables, packed, padded)

    def _host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self._tokens.device.type == "cuda")

    def _upload(self, inputs: DecodeInputs) -> None:
        packed, tables = inputs.packed, inputs.padded_tables
        self._tokens[self._num_slots : self._num_slots + len(packed)].copy_(packed, non_blocking=True)
        # Columns beyond keep what they had: entries past a request's pages are not read.
        self._tables[: len(tables), : tables.shape[1]].copy_(tables, non_blocking=True)

    def _sections(self, size: int) -> _Sections:
        return _sections(self._tokens[self._num_slots :], size, torch.int32)

    def _work(self, size: int) -> None:
        """What is captured: everything in it is a kernel on a buffer that stays."""
        limits, inputs = self._limits, self._sections(size)
        batch = ForwardBatch(
            self._tokens.index_select(0, inputs.source),
            inputs.positions,
            inputs.slot_mapping,
            self._query_start[: size + 1],
            inputs.context_lens,
            self._tables[:size],
            max_query_len=1,
            max_context_len=limits.width * limits.block_size,
        )
        self._forward(batch, self._logits[:size])


def _section_ends(size: int) -> list[int]:
    return [*(size * number for number in range(1, 6)), 5 * size + -(-size // 2)]


def _sections(memory: Any, size: int, int32: Any) -> _Sections:
    """Views of packed inputs, a numpy array or a tensor of int64, for a graph of `size` rows."""
    ends = _section_ends(size)
    *int64, contexts = (memory[start:end] for start, end in zip([0, *ends], ends, strict=False))
    return _Sections._make([*int64, contexts.view(int32)[:size]])
