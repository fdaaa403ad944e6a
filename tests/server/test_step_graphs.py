"""Steps in fixed buffers, replayed: on the CPU by calling what was recorded again, where every row has its bits.

What a replay computes must equal, bit by bit, what the same step computes launched operation by operation.
"""

import random
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_common.model_config import parse_model_config
from octavo_server.config import EngineConfig
from octavo_server.engine_start import start_engine
from octavo_server.ipc import Pooling, SamplingParams
from octavo_server.step import NewRequest, SchedulerOutput
from octavo_server.worker import step_packing
from octavo_server.worker.graph_ladder import (
    GraphShape,
    capture_order,
    decode_ladder,
    mixed_ladder,
    sharing_ladder,
)
from octavo_server.worker.graph_recorder import pick_recorder
from octavo_server.worker.input_batch import InputBatch, ScheduledRow
from octavo_server.worker.memory import graph_bytes
from octavo_server.worker.model_runner import ModelRunner
from octavo_server.worker.models.interface import ForwardBatch
from octavo_server.worker.step_graphs import GraphLimits, StepGraphs
from real_engine import Answer, Asked, add, answers, assert_nothing_is_held, poison_free_pages, start
from replayed import CallingRecorder, record_on_the_cpu
from tiny_models import config_json, random_decoder, write_checkpoint

CPU: Final = torch.device("cpu")
CONFIG: Final = config_json("Qwen3ForCausalLM", head_dim=20, num_hidden_layers=2)
OVERLAP: Final = [pytest.param(False, id="step by step"), pytest.param(True, id="overlap")]
BLOCK, SLOTS, SCRATCH, WIDTH = 4, 60, 999, 12


def tokens(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(131) for _ in range(count)]


# --- sizes


@pytest.mark.parametrize("largest", [1, 2, 3, 8, 9, 30, 64, 100, 256, 400, 512])
def test_the_decode_ladder_rises_to_the_largest_and_fills_up_few_rows(largest: int) -> None:
    sizes = decode_ladder(largest)
    assert sizes == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == largest
    for rows in range(1, largest + 1):
        size = min(size for size in sizes if size >= rows)
        assert size - rows <= (7 if rows <= 256 else 31) and (rows > 4 or size <= 2 * rows)


@pytest.mark.parametrize("largest", [1, 7, 8, 9, 60, 100, 256, 512])
def test_the_ladder_for_shared_prefixes_fills_up_at_most_half_as_many_rows_again(largest: int) -> None:
    shapes = sharing_ladder(largest)
    assert shapes == sorted(set(shapes)) and all(shape[:1] * 2 + (True, True) == shape for shape in shapes)
    assert not shapes if largest < 8 else shapes[-1].rows == largest
    first, rest = capture_order(0, largest, shares=True)
    assert [shape for shape in first if shape.shares] == shapes[-1:]
    assert [shape for shape in rest if shape.shares] == shapes[:-1] == rest[: len(shapes) - 1]
    for rows in range(8, largest + 1):
        assert min(shape.rows for shape in shapes if shape.rows >= rows) <= max(16, 1.5 * rows)


@pytest.mark.parametrize("rows", [1, 5, 64, 100, 512])
@pytest.mark.parametrize("tokens", [1, 17, 32, 200, 1024, 2048])
def test_the_mixed_ladder_has_a_graph_for_each_step_and_fills_up_less_than_it_computes(tokens: int, rows: int) -> None:
    shapes = mixed_ladder(tokens, rows)
    assert len(shapes) == len(set(shapes)) <= 67 and not any(shape.is_decode for shape in shapes)
    assert max(shape.tokens for shape in shapes) == tokens and max(shape.rows for shape in shapes) == min(rows, tokens)
    for size in range(1, tokens + 1):
        fitting = min(shape.tokens for shape in shapes if shape.tokens >= size)
        assert size <= 32 or fitting < 2 * size
        assert fitting - size < 256 and (size > 1024 or fitting - size < 128)
        assert max(shape.rows for shape in shapes if shape.tokens == fitting) >= min(rows, size)


@pytest.mark.parametrize(("tokens", "rows"), [(0, 1), (0, 256), (40, 5), (512, 64), (2048, 512)])
def test_the_largest_is_captured_first_and_what_a_start_waits_for_at_most_doubles_a_batch(
    tokens: int, rows: int
) -> None:
    first, rest = capture_order(tokens, rows)
    decode = [GraphShape(size, size, True) for size in decode_ladder(rows)]
    assert sorted(first + rest) == sorted(mixed_ladder(tokens, rows) + decode) if tokens else sorted(decode)
    assert first[0] == max(first)
    for count in range(1, rows + 1):
        size = min(shape.rows for shape in first if shape.is_decode and shape.rows >= count)
        assert size < 2 * count or size == rows
    for count in range(2, tokens + 1):
        size, room = min((s.tokens, s.rows) for s in first if not s.is_decode and s.tokens >= count)
        assert room >= min(count, rows) and (size < max(129, 2 * count) or size == tokens)
    assert len(first) <= 16


# --- inputs


class Seen:
    """A forward pass that keeps the batch it is given."""

    def __init__(self) -> None:
        self.batch: ForwardBatch | None = None

    def __call__(self, batch: ForwardBatch, last: torch.Tensor | None, logits: torch.Tensor) -> None:
        self.batch = batch
        logits.copy_((batch.token_ids if last is None else batch.token_ids[last])[:, None])


def draw(logits: torch.Tensor, slot: torch.Tensor, tokens: torch.Tensor) -> None:
    """Which rows it is asked for."""
    tokens.copy_(torch.where(slot >= 0, logits[:, 0].int(), -5))


def graphs_of(forward: Any, recorder: CallingRecorder, largest: int = 24, tokens: int = 0) -> StepGraphs:
    last = 5000 + torch.arange(SLOTS)  # the tokens sampled last
    limits = GraphLimits(largest, tokens, WIDTH, BLOCK, 3, SCRATCH)
    made = StepGraphs(forward, draw, recorder, limits, last)
    while made.capture_next():
        pass
    return made


def sampled_before(row: ScheduledRow, hidden: bool) -> ScheduledRow:
    """The row as if its last token had been sampled in its slot, and the host not told, if `hidden` says so."""
    if hidden and row.samples:
        row.state.num_given = row.end - 1
    return msgspec.structs.replace(row, pending=hidden and row.samples)


@st.composite
def decodes(draw: st.DrawFn) -> tuple[list[NewRequest], list[bool]]:
    """Requests whose last token is to be computed, and which of these tokens the host does not know."""
    lengths = draw(st.lists(st.integers(1, WIDTH * BLOCK), min_size=1, max_size=24))
    pages = random.Random(len(lengths)).sample(range(900), 24 * WIDTH)
    requests = []
    for index, length in enumerate(lengths):
        blocks = [pages.pop() for _ in range(-(-length // BLOCK))]
        ids = [100 * index + position for position in range(length)]
        requests.append(NewRequest(f"r{index}", ids, length, 60, SamplingParams(), blocks, length - 1))
    return requests, draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))


@given(st.lists(decodes(), min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_a_decode_graphs_inputs_are_the_plain_steps_and_rows_beyond_stand_on_the_scratch_page(steps: Any) -> None:
    """One step after the other, as each finds in the buffers what the one before it left there."""
    seen, recorder = Seen(), CallingRecorder()
    graphs = graphs_of(seen, recorder)
    for requests, pending in steps:
        batch = InputBatch(BLOCK, CPU, SLOTS)
        counts = {request.request_id: 1 for request in requests}
        batch.apply(SchedulerOutput(step=1, new_requests=requests, num_scheduled_tokens=counts))
        rows = [sampled_before(row, hidden) for row, hidden in zip(batch.advance(counts), pending, strict=True)]
        inputs = graphs.build(rows)
        assert inputs is not None
        contexts = [row.end for row in inputs.rows]
        assert contexts == sorted(contexts, reverse=True) and sorted(map(id, inputs.rows)) == sorted(map(id, rows))
        logits, slot, drawn = graphs.run(inputs, draws=True)
        assert drawn is not None and torch.equal(drawn, logits[:, 0].int())
        assert (graphs._drawn[len(rows) : inputs.shape.rows] == -5).all()
        # The same in the order that the graph was given: a plain step counts its tokens in that of its rows.
        order = [rows.index(row) for row in inputs.rows]
        rows = [msgspec.structs.replace(row, offset=place) for place, row in enumerate(inputs.rows)]
        requests, pending = [requests[index] for index in order], [pending[index] for index in order]
        plain, got, count = batch.build(rows), seen.batch, len(rows)
        assert got is not None and inputs.shape.rows == min(size for size in decode_ladder(24) if size >= count)
        last = 5000 + plain.slot
        ids = torch.where(torch.tensor(pending), last, plain.forward.token_ids)
        assert torch.equal(got.token_ids[:count], ids) and torch.equal(logits[:, 0].long(), ids)
        assert torch.equal(got.positions[:count], plain.forward.positions)
        assert torch.equal(got.slot_mapping[:count], plain.forward.slot_mapping)
        assert torch.equal(got.context_lens[:count], plain.forward.context_lens)
        assert torch.equal(slot, plain.slot)
        for table, request in zip(got.block_tables, requests, strict=False):
            assert table[: len(request.block_ids)].tolist() == request.block_ids
        assert got.query_start.tolist() == list(range(inputs.shape.rows + 1))
        assert {len(part) for part in (got.token_ids, got.positions, got.slot_mapping, got.context_lens)} == {
            inputs.shape.rows
        }
        assert not got.token_ids[count:].any() and not got.positions[count:].any()
        assert (got.slot_mapping[count:] // BLOCK == SCRATCH).all() and (got.context_lens[count:] == 1).all()
        assert (got.block_tables[count:, 0] == SCRATCH).all()
        kinds = [part.dtype for part in (got.token_ids, got.positions, got.slot_mapping, got.context_lens)]
        assert kinds == [torch.int64, torch.int64, torch.int64, torch.int32]
        assert (got.max_query_len, got.max_context_len) == (1, WIDTH * BLOCK)


def test_buffers_stay_where_they_are() -> None:
    """A graph knows addresses: what it was captured with must be what later steps are written to."""
    addresses: list[tuple[int, ...]] = []

    def forward(batch: ForwardBatch, _last: object, logits: torch.Tensor) -> None:
        fixed = (batch.positions, batch.slot_mapping, batch.query_start, batch.context_lens, batch.block_tables, logits)
        addresses.append(tuple(tensor.data_ptr() for tensor in fixed))

    graphs = graphs_of(forward, CallingRecorder(), largest=4)
    captured = dict(zip((4, 1, 2), addresses, strict=True))
    addresses.clear()
    for count in (1, 2, 3, 4, 1):
        batch = InputBatch(BLOCK, CPU, SLOTS)
        new = [NewRequest(f"r{n}", [1], 1, 9, SamplingParams(), [n], 0) for n in range(count)]
        batch.apply(SchedulerOutput(1, new))
        inputs = graphs.build(batch.advance({request.request_id: 1 for request in new}))
        assert inputs is not None
        graphs.run(inputs, draws=False)
        assert addresses[-1] == captured[inputs.shape.rows]


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[NewRequest], dict[str, int], list[bool]]:
    """Requests in the middle of their work, tokens of each in the step, and whose last one the host does not know."""
    pages = random.Random(draw(st.integers(0, 99))).sample(range(900), 24 * WIDTH)
    requests, counts = [], {}
    for index in range(draw(st.integers(1, 10))):
        length = draw(st.integers(1, WIDTH * BLOCK))
        computed = draw(st.integers(0, length - 1))
        counts[f"r{index}"] = draw(st.sampled_from([1, length - computed, 1 + (length - computed) // 2]))
        counts[f"r{index}"] = min(counts[f"r{index}"], length - computed)
        blocks = [pages.pop() for _ in range(-(-length // BLOCK))]
        ids = [100 * index + position for position in range(length)]
        requests.append(NewRequest(f"r{index}", ids, length, 60, SamplingParams(), blocks, computed))
    return requests, counts, draw(st.lists(st.booleans(), min_size=len(requests), max_size=len(requests)))


@given(st.lists(mixtures(), min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_a_mixed_graphs_inputs_are_those_of_the_plain_step_and_what_is_beyond_belongs_to_no_request(steps: Any) -> None:
    seen = Seen()
    graphs = graphs_of(seen, CallingRecorder(), largest=10, tokens=10 * WIDTH * BLOCK)
    for requests, counts, pending in steps:
        batch = InputBatch(BLOCK, CPU, SLOTS)
        batch.apply(SchedulerOutput(step=1, new_requests=requests, num_scheduled_tokens=counts))
        rows = [sampled_before(row, hidden) for row, hidden in zip(batch.advance(counts), pending, strict=True)]
        inputs = graphs.build(rows)
        assert inputs is not None
        logits, slot, drawn = graphs.run(inputs, draws=pending[0])
        if pending[0]:
            assert drawn is not None and torch.equal(drawn, logits[:, 0].int())
        else:
            assert drawn is None
        beyond = len(slot) if pending[0] else 0
        assert (graphs._drawn[beyond : inputs.shape.rows] == -5).all()
        plain, got, tokens, count = batch.build(rows), seen.batch, sum(counts.values()), len(rows)
        assert got is not None
        if inputs.shape.is_decode:
            assert tokens == count and len(slot) == count
            continue
        ids = plain.forward.token_ids.index_copy(0, plain.pending_index, 5000 + plain.pending_slot)
        assert torch.equal(got.token_ids[:tokens], ids)
        assert torch.equal(logits[:, 0].long(), ids[plain.last_index]) and torch.equal(slot, plain.slot)
        assert torch.equal(got.positions[:tokens], plain.forward.positions)
        assert torch.equal(got.slot_mapping[:tokens], plain.forward.slot_mapping)
        assert torch.equal(got.context_lens[:count], plain.forward.context_lens)
        assert got.query_start.tolist() == plain.forward.query_start.tolist() + [tokens] * (inputs.shape.rows - count)
        for table, request in zip(got.block_tables, requests, strict=False):
            assert table[: len(request.block_ids)].tolist() == request.block_ids
        assert {len(part) for part in (got.token_ids, got.positions, got.slot_mapping)} == {inputs.shape.tokens}
        assert {len(got.context_lens), len(got.block_tables)} == {inputs.shape.rows}
        assert (got.slot_mapping[tokens:] // BLOCK == SCRATCH).all()
        assert not got.token_ids[tokens:].any() and not got.positions[tokens:].any()
        assert (got.max_query_len, got.max_context_len) == (None, WIDTH * BLOCK)


@pytest.mark.parametrize("seed", range(4))
def test_the_tables_on_the_device_follow_requests_that_come_grow_and_leave(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots change hands, some steps go without a graph, and tokens that were sampled are known in the slot alone."""
    monkeypatch.setattr(step_packing, "MOST_PAGES", 20)  # some steps bring more
    dice, seen, slots = random.Random(seed), Seen(), 10
    last = torch.zeros(slots, dtype=torch.int64)
    graphs = StepGraphs(seen, draw, CallingRecorder(), GraphLimits(8, 200, WIDTH, BLOCK, 3, SCRATCH), last)
    while graphs.capture_next():
        pass
    batch, lengths, held = InputBatch(BLOCK, CPU, slots), dict[str, int](), dict[str, int]()
    for step in range(60):
        gone = [name for name in lengths if lengths[name] > 40 or dice.random() < 0.1]
        for name in gone:
            del lengths[name], held[name]
        new, counts, added = list[NewRequest](), dict[str, int](), dict[str, list[int]]()
        for name in lengths:  # a token each, and a page where it is needed, or one early
            counts[name] = 1
            if held[name] * BLOCK < lengths[name] + 1 or dice.random() < 0.1:
                added[name] = [dice.randrange(900)]
                held[name] += 1
        while len(lengths) < 8 and dice.random() < 0.6:
            name, length = f"{step} {len(lengths)}", dice.randint(1, 40)
            held[name] = -(-length // BLOCK)
            pages = [dice.randrange(900) for _ in range(held[name])]
            computed = dice.randint(0, length - 1)
            new.append(NewRequest(name, tokens(length, step), length, 60, SamplingParams(), pages, computed))
            counts[name], lengths[name] = length - computed, length - 1
        if not counts:
            continue
        added = {name: pages for name, pages in added.items() if held[name] <= WIDTH}
        batch.apply(SchedulerOutput(step, new, added, counts, finished_ids=gone))
        rows = batch.advance(counts)
        if dice.random() < 0.7:
            inputs = graphs.build(rows)
            assert inputs is not None
            if inputs.shape.is_decode:  # it has an order of its own
                rows = [msgspec.structs.replace(row, offset=place) for place, row in enumerate(inputs.rows)]
            plain = batch.build(rows).forward
            graphs.run(inputs, draws=False)
            got, used = seen.batch, len(plain.token_ids)
            assert got is not None
            for ours, theirs in (
                (got.token_ids, plain.token_ids),
                (got.positions, plain.positions),
                (got.slot_mapping, plain.slot_mapping),
            ):
                assert torch.equal(ours[:used], theirs)
            for row, table in zip(rows, got.block_tables, strict=False):
                state = row.state
                assert table[: state.num_blocks].tolist() == state.block_ids[: state.num_blocks].tolist()
        for row in rows:
            token = dice.randrange(10_000)
            row.state.learn(row.end, token)
            last[row.state.slot] = token
            lengths[row.state.request_id] += 1


def test_a_step_takes_the_smallest_graph_that_is_there_and_fits() -> None:
    graphs = graphs_of(Seen(), CallingRecorder(), largest=10, tokens=100)

    def shape(
        *requests: tuple[int, int, SamplingParams],
        pages: int = 1,
        graphs: StepGraphs = graphs,
        pooling: Pooling = "",
    ) -> GraphShape | None:
        """(tokens, of which computed in the step, sampling)"""
        batch = InputBatch(BLOCK, CPU, SLOTS)
        new = [
            NewRequest(str(n), list(range(length)), length, 90, sampling, [0] * pages, 0, pooling)
            for n, (length, _, sampling) in enumerate(requests)
        ]
        batch.apply(SchedulerOutput(1, new))
        return graphs.shape_for(batch.advance({str(n): count for n, (_, count, _) in enumerate(requests)}))

    def decode(rows: int) -> GraphShape:
        return GraphShape(rows, rows, True)

    plain = SamplingParams()
    one = (1, 1, plain)
    expected = [decode(1), decode(2), decode(4), decode(4), decode(8), decode(10), None]
    assert [shape(*[one] * count) for count in (1, 2, 3, 4, 5, 10, 11)] == expected
    assert shape((2, 2, plain)) == GraphShape(32, 1, False)  # a prompt
    assert shape((3, 2, plain)) == GraphShape(32, 1, False)  # a piece of one, after which nothing is sampled
    assert shape((2, 1, plain)) == GraphShape(
        32, 8, False
    )  # of a single token, which a request alone has no kernel for
    assert shape((2, 2, plain), (2, 2, plain)) == GraphShape(32, 8, False)
    assert shape(*[one] * 8, (3, 2, plain)) == GraphShape(32, 10, False)
    assert shape(*[one] * 8, (3, 2, plain), (70, 50, plain)) == GraphShape(64, 10, False)
    assert shape(*[one] * 9, (3, 2, plain), (3, 2, plain)) is None  # of 11 requests
    assert shape((90, 90, plain), one) == GraphShape(100, 8, False)
    assert shape((90, 90, plain), (11, 11, plain)) is None  # of 101 tokens
    assert shape(one, (1, 1, SamplingParams(prompt_logprobs=0))) is None
    assert {shape((2, count, plain), pooling="last") for count in (1, 2)} == {None}
    assert shape(one, pages=WIDTH) == decode(1)
    assert shape(one, pages=WIDTH + 1) is None
    decoding = graphs_of(Seen(), CallingRecorder(), largest=10)
    assert shape(one, graphs=decoding) == decode(1) and shape((2, 2, plain), graphs=decoding) is None


# --- steps


def runner(recorder: CallingRecorder | None) -> ModelRunner:
    made = ModelRunner(
        parse_model_config(CONFIG),
        CPU,
        torch.float32,
        block_size=8,
        max_num_seqs=6,
        recorder=recorder,
        max_num_batched_tokens=48,
    )
    made.decoder = random_decoder(CONFIG, seed=3)
    made.allocate_cache(40)
    made.capture_first_graphs(64)
    return made


def test_pages_hold_the_same_bits_and_none_is_touched_that_is_not_the_steps() -> None:
    recorder = CallingRecorder()
    plain, replaying = runner(None), runner(recorder)
    assert len(replaying.kv_cache[0][0]) == 41 and len(plain.kv_cache[0][0]) == 40
    for made in (plain, replaying):
        for k, v in made.kv_cache:
            k[:40] = v[:40] = torch.nan
    for made in (plain, replaying):
        new = [
            NewRequest(str(n), tokens(3 + 5 * n, n), 3 + 5 * n, 64, SamplingParams(), list(range(8 * n, 8 * n + 5)), 0)
            for n in range(5)
        ]
        made.execute(SchedulerOutput(1, new, {}, {request.request_id: len(request.token_ids) for request in new}))
    assert recorder.replayed == 0  # more tokens than any graph has
    for step in range(8):  # 5, 4, 3, … rows, in some steps beside a prompt
        names = [str(n) for n in range(5 - step // 2)]
        counts, new = dict.fromkeys(names, 1), []
        if step % 3 == 1:
            length = 7 + 12 * (step // 3)
            new = [NewRequest(f"p{step}", tokens(length, step), length, 48, SamplingParams(), [38, 39, 37, 31], 0)]
            counts[f"p{step}"] = length
        gone = [f"p{step - 1}"] if step % 3 == 2 else []
        output = SchedulerOutput(2 + step, new, num_scheduled_tokens=counts, finished_ids=gone)
        in_order = [sorted(made.execute(output), key=lambda row: row.request_id) for made in (replaying, plain)]
        assert in_order[0] == in_order[1]
        if step == 3:
            while replaying.idle():  # captures in the middle of answers
                pass
    assert recorder.replayed == 8
    for (k, v), (plain_k, plain_v) in zip(replaying.kv_cache, plain.kv_cache, strict=True):
        for ours, theirs in ((k[:40], plain_k), (v[:40], plain_v)):
            assert torch.equal(ours.isnan(), theirs.isnan()) and torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def test_a_capture_that_fails_beside_requests_leaves_the_graphs_that_are_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = CallingRecorder()
    made = ModelRunner(parse_model_config(CONFIG), CPU, torch.float32, block_size=8, max_num_seqs=30, recorder=recorder)
    made.decoder = random_decoder(CONFIG, seed=3)
    made.allocate_cache(4)
    made.capture_first_graphs(16)
    assert recorder.recorded == len(capture_order(0, 30, shares=True)[0])

    def broken(_run: object) -> Any:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    recorder.record = broken  # type: ignore[method-assign]
    assert made.idle() is False and made.idle() is False
    assert "no further graph is captured" in caplog.text
    assert made.graphs is not None and made.graphs.num_pending == 0
    output = SchedulerOutput(1, [NewRequest("a", [5], 1, 9, SamplingParams(), [0], 0)], {}, {"a": 1})
    (row,) = made.execute(output)
    assert row.error is None and recorder.replayed == 1


def test_host_memory_and_graphs_take_turns_in_idle_moments() -> None:
    recorder = CallingRecorder()
    made = ModelRunner(parse_model_config(CONFIG), CPU, torch.float32, block_size=8, max_num_seqs=60, recorder=recorder)
    made.decoder = random_decoder(CONFIG, seed=3)
    made.allocate_cache(4)
    made.add_lower_tiers(1, None)
    made.capture_first_graphs(16)
    before = recorder.recorded
    assert made.idle()
    assert [event.kind for event in made.poll_events()] == ["slots"] and recorder.recorded == before
    assert made.idle() and recorder.recorded == before + 1
    while made.idle():
        pass
    assert recorder.recorded == len(decode_ladder(60)) + len(sharing_ladder(60))


def test_the_bill_has_room_for_the_pool_and_for_every_graph() -> None:
    """A device that takes 100 bytes for the largest graph, and 7 for each of the others."""
    recorder = CallingRecorder()
    made = ModelRunner(parse_model_config(CONFIG), CPU, torch.float32, block_size=8, max_num_seqs=40, recorder=recorder)
    made.decoder = random_decoder(CONFIG, seed=3)
    made.allocate_cache(1)

    def used() -> int:
        return 5000 + (100 if recorder.recorded else 0) + 7 * max(0, recorder.recorded - 1)

    assert graph_bytes(made, 64, used) == 100 + 7 * (len(decode_ladder(40)) + len(sharing_ladder(40)) - 1)
    made.drop_cache()
    assert made.graphs is None and recorder.runs == []
    assert graph_bytes(runner(None), 64, used) == 0


# --- the engine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, CONFIG)
    return folder


SHARED: Final = tokens(43, seed=99)
REQUESTS: Final[dict[str, Asked]] = {
    f"r{index}": (
        (SHARED if index % 2 else []) + tokens(1 + 3 * index, index),
        SamplingParams(
            temperature=(index % 3) / 2,
            seed=index,
            max_tokens=6 + 3 * (index % 7),
            ignore_eos=True,
            logprobs=2,
            repetition_penalty=1.2 if index % 5 == 0 else 1.0,
            prompt_logprobs=1 if index == 4 else None,
        ),
    )
    for index in range(21)
}


@pytest.fixture(scope="module")
def plain(tiny: Path) -> dict[str, Answer]:
    return answers(start(tiny, enable_prefix_caching=False), REQUESTS)


WAYS: Final[dict[str, tuple[dict[str, Any], list[str]]]] = {
    "all at once": ({"max_num_seqs": 21}, ["prefix_hits"]),
    "few at a time, prompts in pieces": ({"max_num_seqs": 11, "max_num_batched_tokens": 17}, ["prefix_hits"]),
    "swapped": (
        {"num_gpu_blocks_override": 24, "preemption_mode": "swap", "swap_space": 0.005, "max_num_seqs": 13},
        ["preemptions_by_swap", "swapped_out", "swapped_in"],
    ),
    "computed again": ({"num_gpu_blocks_override": 24, "preemption_mode": "recompute"}, ["preemptions"]),
}


@pytest.mark.parametrize("overlap", OVERLAP)
@pytest.mark.parametrize("way", WAYS)
def test_answers_have_the_same_bits_however_steps_are_launched(
    way: str, overlap: bool, tiny: Path, plain: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, counters = WAYS[way]
    recorder = record_on_the_cpu(monkeypatch)
    if way == "computed again":  # then also with more new pages than a packed step takes
        monkeypatch.setattr(step_packing, "MOST_PAGES", 6)
    core = start(tiny, async_scheduling=overlap, **{"max_num_batched_tokens": 160, **config})
    if not overlap:
        poison_free_pages(core)
    assert answers(core, REQUESTS) == plain
    assert answers(core, REQUESTS) == plain  # prefixes are hit
    assert [name for name in counters if not getattr(core.stats(), name)] == []
    assert recorder.replayed > 20
    core.close(1.0)


@pytest.mark.parametrize("overlap", OVERLAP)
def test_graphs_captured_while_answers_are_under_way_change_none(
    overlap: bool, tiny: Path, plain: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = record_on_the_cpu(monkeypatch)
    core = start_engine(
        EngineConfig(model=tiny, device="cpu", block_size=8, max_num_seqs=40, async_scheduling=overlap), lambda _: None
    )
    first = recorder.recorded
    for name, (prompt, sampling) in REQUESTS.items():
        add(core, name, prompt, sampling)
    found: dict[str, Answer] = {name: [] for name in REQUESTS}
    for count in range(1000):
        for output in core.step():
            found[output.request_id].extend(zip(output.token_ids, output.logprobs or (), strict=True))
        if count % 2:
            core.idle()
        if not core.has_work:
            break
    assert found == plain
    assert recorder.recorded > first + 8
    assert_nothing_is_held(core)
    core.close(1.0)


def test_without_graphs_nothing_is_recorded_and_the_cache_has_no_page_more(
    tiny: Path, plain: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = record_on_the_cpu(monkeypatch)
    core = start(tiny, enforce_eager=True)
    assert answers(core, REQUESTS) == plain
    assert (recorder.recorded, recorder.replayed) == (0, 0)
    runner: Any = core.runner
    assert len(runner.kv_cache[0][0]) == core.scheduler.kv_cache.pool.num_blocks


def test_on_the_cpu_there_are_no_graphs_whatever_is_asked_for(tiny: Path) -> None:
    assert pick_recorder(CPU, enforce_eager=False) is None and pick_recorder(CPU, enforce_eager=True) is None
    core: Any = start(tiny)
    assert core.runner.recorder is None and core.runner.graphs is None
