"""Paged attention under Triton's interpreter, against float64, in a cache that is NaN wherever nothing may be read.

bfloat16 is left out: the interpreter computes it wrongly, without a word (Triton 3.6 to 3.9).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from octavo_kernels.gathered_attention import attention, gathered_attention, whole_prompt_attention, whole_prompts
from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.paged_attention import AttentionConfig, num_splits, paged_attention, paged_attention_invariant
from octavo_kernels.reference_attention import paged_attention as twin
from paged_case import Case, make_case

# (query tokens, context): prompts, later chunks, decodes across pages, tiles and splits, one that rests.
RAGGED = [(1, 1), (5, 5), (1, 64), (0, 30), (3, 131), (1, 200), (33, 97)]
SMALL = AttentionConfig(16, 16, 4, 1, programs=64, min_split=32)
CONFIGS = (SMALL, SMALL)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}


def poisoned(call: partial[torch.Tensor]) -> torch.Tensor:
    """The call's result, every fresh tensor in it having been full of NaN."""
    torch.use_deterministic_algorithms(True)  # that fills uninitialised memory
    try:
        return call()
    finally:
        torch.use_deterministic_algorithms(False)


def check(case: Case, window: int | None, found: torch.Tensor, rows: torch.Tensor | None = None) -> None:
    expected = case.expected(window)
    rows = torch.ones(len(expected), dtype=torch.bool) if rows is None else rows
    difference = (found.double() - expected)[rows].abs().max().item()
    assert difference <= TOLERANCE[found.dtype], f"differs by {difference:.1e}"


@pytest.mark.parametrize(
    ("page_size", "window", "dtype"),
    [(8, None, torch.float16), (16, 20, torch.float32), (64, 1, torch.float16), (256, 100, torch.float32)],
)
def test_attention_over_ragged_requests(page_size: int, window: int | None, dtype: torch.dtype) -> None:
    case = make_case(RAGGED, page_size=page_size, dtype=dtype, heads_first=page_size != 64)
    found = poisoned(partial(case.run, window, partial(paged_attention, configs=CONFIGS)))
    check(case, window, found)
    if page_size == 64:
        other_order = replace(SMALL, heads_first=True), SMALL
        assert torch.equal(found, poisoned(partial(case.run, window, partial(paged_attention, configs=other_order))))
    # The twin sees the same pages: what is wrong in the oracle alone would show here.
    assert (found.double() - case.run(window, twin).double()).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 64), (7, 1, 10), (32, 2, 8)])
def test_attention_of_any_heads(heads: int, kv_heads: int, head_dim: int) -> None:
    requests = [(1, 40), (9, 33), (3, 3)]
    case = make_case(requests, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=torch.float32)
    check(case, None, poisoned(partial(case.run, None, paged_attention)))


@pytest.mark.parametrize("attend", [paged_attention, paged_attention_invariant, attention])
def test_chunks_need_no_kernel_for_single_tokens(attend: Callable[..., torch.Tensor]) -> None:
    case = make_case([(5, 5), (0, 30), (2, 97)], dtype=torch.float32)
    case.metadata = replace(case.metadata, all_chunks=True)
    check(case, None, poisoned(partial(case.run, None, attend)))


def test_scores_of_any_size_overflow_nothing() -> None:
    case = make_case([(4, 100), (1, 100)])
    case.q *= 1e3
    found = case.run(None, partial(paged_attention, configs=CONFIGS))
    assert (found.double() - case.expected()).abs().max() <= 1e-3


def test_keys_are_split_over_programs_only_where_there_are_too_few() -> None:
    config = AttentionConfig(16, 64, 4, 2, programs=528, min_split=256)
    assert num_splits(config, programs=8, most_keys=200) == 1
    assert num_splits(config, programs=8, most_keys=1024) == 4
    assert num_splits(config, programs=128, most_keys=8192) == 5
    assert num_splits(config, programs=264, most_keys=8192) == 1


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("invariant", [False, True])
def test_room_for_longer_contexts_than_there_are_changes_no_bit(
    invariant: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph is made for the longest context: programs without keys write nothing, and nothing of theirs is merged."""
    monkeypatch.setattr("octavo_kernels.paged_attention.INVARIANT_SPLIT", 32)
    case = make_case([(1, 1), (0, 9), (1, 110)], heads=2)
    config = replace(SMALL, programs=640)
    attend = paged_attention_invariant if invariant else partial(paged_attention, configs=(config, config))
    assert (num_splits(config, 6, 112), num_splits(config, 6, 512)) == (4, 16)
    found = []
    for most in (112, 512):
        tables = torch.full((3, most // 16), 2**30, dtype=torch.int32)
        tables[:, :7] = case.metadata.block_tables[:, :7]
        case.metadata = replace(case.metadata, block_tables=tables, max_query_len=1, max_context_len=most)
        found.append(poisoned(partial(case.run, window, attend)))
        check(case, window, found[-1])
    assert torch.equal(*found)


@pytest.mark.parametrize(("page_size", "window", "head_dim"), [(8, None, 16), (16, 40, 24), (64, None, 128)])
def test_attention_over_gathered_keys(page_size: int, window: int | None, head_dim: int) -> None:
    case = make_case(RAGGED, page_size=page_size, head_dim=head_dim)
    found = poisoned(partial(case.run, window, partial(gathered_attention, config=AttentionConfig(32, 32, 4, 1))))
    chunks = torch.cat([torch.full((count,), count > 1) for count in case.query_lens])
    check(case, window, found, chunks)


@pytest.mark.parametrize("room", [2 * 2 * 2 * 128 * 24, 2 * 2 * 2 * 128 * 24 - 1])
def test_long_chunks_take_the_same_scratch_memory_whatever_the_step(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_kernels.gathered_attention._LEAST_TOKENS", 9)
    monkeypatch.setattr("octavo_kernels.gathered_attention._LEAST_SCORES", 9 * 6 * 65)
    monkeypatch.setattr("octavo_kernels.gathered_attention.SCRATCH_BYTES", room * 2)
    for requests, is_long in (([(9, 60), (1, 65)], False), ([(12, 65), (1, 60)], True), ([(8, 65)] * 2, False)):
        case = make_case(requests, head_dim=24, dtype=torch.float16)
        longest = max(count for count, _ in requests), max(context for _, context in requests)
        case.metadata = replace(case.metadata, max_query_len=longest[0], max_context_len=longest[1])
        check(case, None, poisoned(partial(case.run, None, attention)))
        # What was not too little work took all of the memory, whether the step's keys fit into it or not.
        taken = [buffer.numel() for buffer in case.metadata.workspace._buffers.values()]
        assert taken == ([room] if is_long else [])


def test_whole_prompts_of_one_length_are_told_from_others() -> None:
    def told(requests: list[tuple[int, int]]) -> bool:
        made = make_case(requests).metadata
        bounds = {"max_query_len": max(n for n, _ in requests), "max_context_len": max(c for _, c in requests)}
        metadata = AttentionMetadata(made.query_start, made.context_lens, made.block_tables, **bounds)
        return whole_prompts(metadata, sum(n for n, _ in requests))

    assert told([(9, 9)])
    assert told([(9, 9), (9, 9)])
    assert not told([(9, 9), (8, 8)])
    assert not told([(9, 10)])
    assert not whole_prompts(make_case([(9, 9)]).metadata, 9)  # no bounds are known


def test_whole_prompts_through_torch() -> None:
    case = make_case([(70, 70), (70, 70)])
    found = poisoned(partial(whole_prompt_attention, case.q, case.k_cache, case.v_cache, case.metadata, 0.25))
    check(case, None, found)


@pytest.mark.parametrize("window", [None, 50])
def test_a_row_has_the_same_bits_alone_among_others_and_in_any_chunk(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = 90
    monkeypatch.setattr("octavo_kernels.paged_attention.INVARIANT_SPLIT", 32)  # so that short contexts are split too
    case = make_case([(length, length), (4, 40)])
    attend = partial(paged_attention_invariant, case.q, case.k_cache, case.v_cache)
    whole = attend(case.metadata, 0.25, window)
    tables = case.metadata.block_tables
    for first, last in ((63, 64), (7, 29), (30, 90)):
        count = last - first
        alone = AttentionMetadata(torch.tensor([0, count]).int(), torch.tensor([last]).int(), tables[:1])
        ours = case.q[first:last]
        found = paged_attention_invariant(ours, case.k_cache, case.v_cache, alone, 0.25, window)
        assert torch.equal(found, whole[first:last])
        among = AttentionMetadata(torch.tensor([0, 4, 4 + count]).int(), torch.tensor([40, last]).int(), tables[[1, 0]])
        both = torch.cat((case.q[length:], ours))
        found = paged_attention_invariant(both, case.k_cache, case.v_cache, among, 0.25, window)
        assert torch.equal(found, torch.cat((whole[length:], whole[first:last])))
