"""The inputs of a forward pass, against loops over plain lists."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_server.ipc import SamplingParams
from octavo_server.step import NewRequest, SchedulerOutput
from octavo_server.worker.input_batch import InputBatch

CPU = torch.device("cpu")


def new(request_id: str, tokens: list[int], blocks: list[int], computed: int = 0, in_all: int = 100) -> NewRequest:
    return NewRequest(request_id, tokens, len(tokens), in_all, SamplingParams(), blocks, computed)


@st.composite
def steps(draw: st.DrawFn) -> tuple[int, list[NewRequest], list[int]]:
    """(block size, requests in the middle of their work, tokens of each in the step)."""
    block_size = draw(st.sampled_from([1, 3, 16]))
    requests, counts, next_block = [], [], 0
    for index in range(draw(st.integers(1, 5))):
        tokens = draw(st.lists(st.integers(0, 999), min_size=1, max_size=40))
        computed = draw(st.integers(0, len(tokens) - 1))
        counts.append(draw(st.integers(1, len(tokens) - computed)))
        needed = -(-(computed + counts[-1]) // block_size)
        blocks = list(range(next_block, next_block + needed))[::-1]
        next_block += needed
        requests.append(new(f"r{index}", tokens, blocks, computed))
    return block_size, requests, counts


@given(steps())
@settings(deadline=None, max_examples=100)
def test_the_batch_holds_each_tokens_id_position_slot_and_table(step: tuple[int, list[NewRequest], list[int]]) -> None:
    block_size, requests, counts = step
    batch = InputBatch(block_size, CPU, 8)
    scheduled = {request.request_id: count for request, count in zip(requests, counts, strict=True)}
    batch.apply(SchedulerOutput(step=1, new_requests=requests, num_scheduled_tokens=scheduled))
    rows = batch.advance(scheduled)
    got = batch.build(rows).forward
    ids, positions, slots, query_start, widest = [], [], [], [0], max(len(request.block_ids) for request in requests)
    for request, count in zip(requests, counts, strict=True):
        for position in range(request.num_computed_tokens, request.num_computed_tokens + count):
            ids.append(request.token_ids[position])
            positions.append(position)
            slots.append(request.block_ids[position // block_size] * block_size + position % block_size)
        query_start.append(len(ids))
    assert (got.token_ids.tolist(), got.positions.tolist(), got.slot_mapping.tolist()) == (ids, positions, slots)
    assert got.query_start.tolist() == query_start
    ends = [request.num_computed_tokens + count for request, count in zip(requests, counts, strict=True)]
    assert got.context_lens.tolist() == ends
    assert got.block_tables.tolist() == [r.block_ids + [0] * (widest - len(r.block_ids)) for r in requests]
    assert {got.token_ids.dtype, got.positions.dtype, got.slot_mapping.dtype} == {torch.int64}
    assert {got.query_start.dtype, got.context_lens.dtype, got.block_tables.dtype} == {torch.int32}
    assert [row.samples for row in rows] == [end == len(r.token_ids) for end, r in zip(ends, requests, strict=True)]
    assert [row.last_index for row in rows] == [start - 1 for start in query_start[1:]]


def test_requests_grow_by_deltas_and_are_forgotten() -> None:
    batch = InputBatch(2, CPU, 8)
    batch.apply(SchedulerOutput(step=1, new_requests=[new("a", [5, 6], [3]), new("b", [7], [4])]))
    (row,) = batch.advance({"a": 2})
    assert row.samples
    row.state.learn(2, 8)
    batch.apply(SchedulerOutput(step=2, new_block_ids={"a": [9]}, finished_ids=["b", "unknown"]))
    assert list(batch.states) == ["a"]
    got = batch.build(batch.advance({"a": 1})).forward
    assert (got.token_ids.tolist(), got.slot_mapping.tolist(), got.block_tables.tolist()) == ([8], [18], [[3, 9]])


def test_an_id_that_is_forgotten_and_new_in_one_step_is_the_new_one() -> None:
    batch = InputBatch(2, CPU, 8)
    batch.apply(SchedulerOutput(step=1, new_requests=[new("a", [5, 6], [3])]))
    batch.apply(SchedulerOutput(step=2, new_requests=[new("a", [1], [7])], preempted_ids=["a"]))
    assert batch.build(batch.advance({"a": 1})).forward.slot_mapping.tolist() == [14]
