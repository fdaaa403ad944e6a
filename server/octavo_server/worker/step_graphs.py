"""Steps as graphs: from token ids to logits in one launch, for a ladder of sizes (`graph_ladder`).

A graph repeats the same kernels with the same grids on the same memory. So all that varies from step to step goes into
fixed buffers on the device: one copy from pinned memory, behind whatever runs there, and no allocation, no kernel that
depends on a length. How attention divides the work follows from the graph's size and the longest context there can be;
contexts, and which tokens are whose, are read on the device.

The host says little of a row (`step_packing`): block tables and the tokens sampled last stay on the device, by the
request's slot, and the graph's first kernel works out the rest (`octavo_kernels.step_inputs`).

A step takes the smallest graph that it fits into. In a decode graph, in which each request has one token, the rows
beyond compute the token 0 as the first of a request whose one page, the scratch page, is nobody's. In a mixed graph the
tokens beyond belong to no request, so that attention leaves them out, and rows beyond have no token; K and V of such
tokens go to the scratch page. Nothing that is theirs is read, and they write to no page that is in use.

A decode step in which requests share long prefixes takes a graph of another kind (`shared_prefix`), which is told who
shares what by a second copy. The others are spared what that costs where nothing is shared.

Tokens are drawn in the graph, too, if all rows of the step ask for nothing but a temperature; else the step says so,
no row of the graph's last kernels is anybody's, and they are drawn behind it.
"""

import logging
import time
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter
from typing import Final, NamedTuple

import torch

from octavo_kernels.ops import pick_expand_step
from octavo_kernels.step_inputs import ExpandedStep, SlotState, packed_words, sections
from octavo_server.worker.graph_ladder import GraphShape, capture_order
from octavo_server.worker.graph_recorder import Recorder
from octavo_server.worker.input_batch import ScheduledRow
from octavo_server.worker.models.interface import ForwardBatch
from octavo_server.worker.shared_prefix import PrefixFinder, SharedBuffers
from octavo_server.worker.step_memory import StepMemoryPool
from octavo_server.worker.step_packing import MOST_PAGES, GraphInputs, StepPacker

_log = logging.getLogger(__name__)
_START: Final = attrgetter("start")

# Draws tokens [n] int32 from logits [n, vocab] float32 for slots [n] int64, none where the slot is below 0, −1 where
# there is no distribution, and puts them where the next step takes them.
Draw = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
# Computes logits [n, vocab] float32 into the last argument: of the tokens at the places [n] int64, or of all (None).
Forward = Callable[[ForwardBatch, torch.Tensor | None, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class GraphLimits:
    """Fixed sizes of the buffers.

    rows: of the largest graph. tokens: of the largest mixed one, 0 if there is none. width: pages in a block table.
    scratch_page: of the KV cache, nobody's. least_shared: pages for each row that shared prefixes must save to be read
    once; 0: they never are.
    """

    rows: int
    tokens: int
    width: int
    block_size: int
    vocab_size: int
    scratch_page: int
    least_shared: int = 0


class GraphOutputs(NamedTuple):
    """Of the rows that sample, until the next step: logits [n, vocab] float32, and the slots [n] of their next tokens.

    tokens: [n] int32 if they are drawn already, −1 where there is no distribution.
    """

    logits: torch.Tensor
    slot: torch.Tensor
    tokens: torch.Tensor | None


class StepGraphs:
    """The graphs and their buffers."""

    def __init__(
        self, forward: Forward, draw: Draw, recorder: Recorder, limits: GraphLimits, last: torch.Tensor
    ) -> None:
        """last: [slots] int64, the tokens sampled last."""
        self._forward = forward
        self._draw = draw
        self._recorder = recorder
        self._limits = limits
        device, rows, tokens = last.device, limits.rows, max(limits.rows, limits.tokens)
        self._expand = pick_expand_step(device)
        self._packed = torch.zeros(packed_words(tokens, rows) + MOST_PAGES, dtype=torch.int32, device=device)
        pool = StepMemoryPool(len(self._packed), rows, device)
        self._packer = StepPacker(len(last), pool, pinned=device.type == "cuda")

        def room(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        tables = room(len(last) + 1, limits.width, dtype=torch.int32)
        tables[len(last)] = limits.scratch_page
        self._state = SlotState(last, tables, limits.block_size, limits.scratch_page)
        self._expanded = ExpandedStep(
            token_ids=room(tokens, dtype=torch.int64),
            positions=room(tokens, dtype=torch.int64),
            slot_mapping=room(tokens, dtype=torch.int64),
            context_lens=room(rows, dtype=torch.int32),
            block_tables=room(rows, limits.width, dtype=torch.int32),
            last_index=room(rows, dtype=torch.int64),
            slot=room(rows, dtype=torch.int64),
            draw_slot=room(rows, dtype=torch.int64),
        )
        self._drawn = room(rows, dtype=torch.int32)
        self._logits = torch.empty(rows, limits.vocab_size, device=device)
        self._replays: dict[GraphShape, Callable[[], None]] = {}
        self._shapes: list[GraphShape] = []  # of `_replays`, rising
        self._by_kind = defaultdict[tuple[bool, bool], list[GraphShape]](list)  # the same by is_decode and shares
        self._prefixes = PrefixFinder(limits.block_size, limits.least_shared)
        self._shared = SharedBuffers(rows, device)
        first, rest = capture_order(limits.tokens, rows, shares=limits.least_shared > 0)
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
        self._upload(self._pack([], shape))  # the work is done while it is captured: on nobody's page
        self._replays[shape] = self._recorder.record(lambda: self._work(shape))
        insort(self._shapes, shape)
        insort(self._by_kind[shape.is_decode, shape.shares], shape)
        seconds = time.perf_counter() - begin
        self._longest = max(self._longest, seconds)
        _log.debug("captured the graph of %s in %.0f ms", _told(shape), seconds * 1000)
        return bool(self._pending)

    def capture_rest(self) -> bool:
        """As `capture_next`, but a failure ends it: steps then take the graphs that are there."""
        try:
            if not self._pending or self.capture_next():
                return bool(self._pending)
            _log.info(
                "all %d graphs are captured; the longest kept the engine for %.0f ms",
                *(len(self._shapes), self._longest * 1000),
            )
            return False
        except RuntimeError:
            _log.exception("no further graph is captured; there are those of %s", "; ".join(map(_told, self._shapes)))
            self._pending.clear()
            return False

    def shape_for(self, rows: Sequence[ScheduledRow]) -> GraphShape | None:
        """Of the graph that computes these rows, in the order of their tokens; None if none does."""
        return self._shape_of(rows, rows[-1].last_index + 1, _is_decode(rows))

    def _shape_of(self, rows: Sequence[ScheduledRow], tokens: int, is_decode: bool) -> GraphShape | None:
        # Lists, as a generator takes as long again for each of the rows.
        if [row for row in rows if row.wants_prompt_logprobs or row.state.pooling]:
            return None
        if max([row.state.num_blocks for row in rows]) > self._limits.width:
            return None
        count = len(rows)
        sharing = self._smallest((is_decode, True), tokens, count)
        if sharing is not None and self._prefixes.find(rows):
            return sharing
        return self._smallest((is_decode, False), tokens, count)

    def _smallest(self, kind: tuple[bool, bool], tokens: int, rows: int) -> GraphShape | None:
        shapes = self._by_kind[kind]
        large_enough = islice(shapes, bisect_left(shapes, (tokens, rows)), None)
        return next((shape for shape in large_enough if shape.rows >= rows), None)

    def build(self, rows: list[ScheduledRow]) -> GraphInputs | None:
        """The inputs of a step of these rows, one or more; None if there is no graph for it."""
        tokens, is_decode = rows[-1].last_index + 1, _is_decode(rows)
        if is_decode:
            rows = longest_first(rows)
        shape = self._shape_of(rows, tokens, is_decode)
        return None if shape is None else self._pack(rows, shape)

    def run(self, inputs: GraphInputs, *, draws: bool) -> "GraphOutputs":
        """Enqueues the step, the drawing of its tokens included if `draws` says so."""
        count = inputs.num_sampling
        if draws:
            sections(inputs.memory.words, inputs.shape.tokens, inputs.shape.rows).draws[0] = 1
        self._upload(inputs)
        self._replays[inputs.shape]()
        tokens = self._drawn[:count] if draws else None
        return GraphOutputs(self._logits[:count], self._expanded.slot[:count], tokens)

    def _pack(self, rows: list[ScheduledRow], shape: GraphShape) -> GraphInputs:
        inputs = self._packer.pack(rows, shape)
        if not shape.shares:
            return inputs
        shared = self._shared.pack(self._prefixes.find(rows), shape.rows, self._limits.block_size)
        return replace(inputs, shared=shared)

    def _upload(self, inputs: GraphInputs) -> None:
        for slot, known, pages in inputs.before:
            self._state.tables[slot, known : known + len(pages)].copy_(pages, non_blocking=True)
        self._packed[: inputs.num_words].copy_(inputs.memory.packed[: inputs.num_words], non_blocking=True)
        if inputs.shared is not None:
            self._shared.upload(inputs.shared)

    def _work(self, shape: GraphShape) -> None:
        """What is captured: everything in it is a kernel on a buffer that stays."""
        limits, room = self._limits, self._expanded
        inputs = ExpandedStep._make(
            [*(part[: shape.tokens] for part in room[:3]), *(part[: shape.rows] for part in room[3:])]
        )
        self._expand(self._packed, self._state, inputs, 1 if shape.is_decode else shape.tokens)
        batch = ForwardBatch(
            inputs.token_ids,
            inputs.positions,
            inputs.slot_mapping,
            sections(self._packed, shape.tokens, shape.rows).query_start,
            inputs.context_lens,
            inputs.block_tables,
            # Of a mixed step nothing is known that will hold for the next one, too: no kernel may count on it.
            max_query_len=1 if shape.is_decode else None,
            max_context_len=limits.width * limits.block_size,
            shared=self._shared.sections(shape.rows) if shape.shares else None,
        )
        logits = self._logits[: shape.rows]
        self._forward(batch, None if shape.is_decode else inputs.last_index, logits)
        self._draw(logits, inputs.draw_slot, self._drawn[: shape.rows])


def _is_decode(rows: Sequence[ScheduledRow]) -> bool:
    """Whether each has one token, and samples. The rows are in the order of their tokens."""
    return rows[-1].last_index + 1 == len(rows) == sum([row.samples for row in rows])


def longest_first(rows: list[ScheduledRow]) -> list[ScheduledRow]:
    """Rows of one token each, those with long contexts first.

    The device takes up the rows of a decode step one after the other; what it takes up last should be short, so that
    the memory is read by all of its processors until the end. Contexts grow alike: the order stays while the same
    requests run.
    """
    return sorted(rows, key=_START, reverse=True)


def _told(shape: GraphShape) -> str:
    if shape.is_decode:
        return f"{shape.rows} rows{' that share prefixes' if shape.shares else ''}"
    return f"{shape.tokens} tokens of {shape.rows} rows"
