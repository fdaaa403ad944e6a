"""Attention over shared prefixes under Triton's interpreter, against float64, in a cache of NaN where nothing is read.

bfloat16 is left out: the interpreter computes it wrongly, without a word (Triton 3.6 to 3.9).
"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from octavo_kernels.gathered_attention import attention
from octavo_kernels.metadata import SharedPrefixes
from octavo_kernels.paged_attention import paged_attention
from octavo_kernels.reference_shared_prefix import shared_prefix_attention as twin
from octavo_kernels.shared_prefix_attention import PartConfig, SharedConfig, shared_prefix_attention, takes
from paged_case import Case
from shared_case import Group, make_shared_case

SMALL = SharedConfig(*[PartConfig(16, 16, 4, 1, least_keys=16, programs=24)] * 2)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}
# A group larger than a tile, one that is not, and requests without one, in an order of their own; splits of prefixes
# and of what follows them, which is as short as it can be.
CONTEXTS = [49, 150, 50, 1, 97, 64, 33, *(49 + index for index in range(15))]
GROUPS: list[Group] = [([6, 1, 4], 2), ([2, 0, *range(7, 22)], 3)]


def run(case: Case, config: SharedConfig | None = None) -> torch.Tensor:
    """Every fresh tensor in it having been full of NaN."""
    torch.use_deterministic_algorithms(True)  # that fills uninitialised memory
    try:
        return shared_prefix_attention(case.q, case.k_cache, case.v_cache, case.metadata, 0.25, config)
    finally:
        torch.use_deterministic_algorithms(False)


def check(case: Case, found: torch.Tensor, expected: torch.Tensor | None = None) -> None:
    difference = (found.double() - (case.expected() if expected is None else expected)).abs().max().item()
    assert difference <= TOLERANCE[found.dtype], f"differs by {difference:.1e}"


@pytest.mark.parametrize(("page_size", "dtype"), [(16, torch.float32), (8, torch.float16), (32, torch.float16)])
def test_groups_of_several_sizes_beside_requests_without_one(page_size: int, dtype: torch.dtype) -> None:
    groups = [(members, max(1, pages * 16 // page_size)) for members, pages in GROUPS]
    case = make_shared_case(CONTEXTS, groups, page_size=page_size, dtype=dtype, heads_first=page_size != 8)
    check(case, run(case, SMALL))
    check(case, case.run(None, lambda *arguments: twin(*arguments[:-1])))


def test_the_configuration_that_is_chosen_and_one_that_cuts_the_two_kinds_of_work_differently() -> None:
    case = make_shared_case(CONTEXTS, GROUPS, dtype=torch.float16)
    check(case, run(case))
    own = PartConfig(16, 32, 4, 1, least_keys=32, programs=99, ahead=True)
    check(case, run(case, SharedConfig(PartConfig(32, 16, 4, 1, least_keys=32, ahead=True), own)))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rows"), [(4, 4, 64, 16), (7, 1, 10, 16), (16, 2, 8, 16), (14, 2, 24, 64)]
)
def test_heads_of_any_number_and_size(heads: int, kv_heads: int, head_dim: int, rows: int) -> None:
    """Of a tile's 16 members a program takes 16, 2, 1 or 9."""
    case = make_shared_case(
        [40 + index for index in range(18)],
        [(list(range(17, 0, -1)), 2)],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
    )
    check(case, run(case, replace(SMALL, prefix=replace(SMALL.prefix, rows=rows))))


def test_a_step_in_which_nobody_shares_is_attention_as_ever() -> None:
    case = make_shared_case(CONTEXTS, [], spare_tiles=3)
    check(case, run(case, SMALL))


def test_prefixes_that_end_within_a_tile_of_keys() -> None:
    """Pages of 8 tokens, tiles of 32 keys: the last one of a prefix is the first one of what follows it."""
    groups: list[Group] = [([0, 1], 1), ([2, 3], 5), ([4, 5], 9)]
    case = make_shared_case([9, 70, 41, 45, 73, 104], groups, page_size=8, dtype=torch.float16)
    check(case, run(case, SharedConfig(*[PartConfig(32, 32, 4, 1, least_keys=32, programs=24)] * 2)))


def test_what_is_wrong_about_a_group_shows() -> None:
    """Twin and kernel both take a group's prefix from its first member: here from one that has another."""
    case = make_shared_case([40, 40, 40, 40], [([0, 1], 2), ([2, 3], 2)])
    truth = case.expected()
    assert case.metadata.shared is not None
    wrong = replace(case.metadata.shared, members=torch.tensor([2, 1, 0, 3], dtype=torch.int32))
    case.metadata = replace(case.metadata, shared=wrong)
    found = run(case, SMALL)
    assert [bool((row - true).abs().max() > 0.01) for row, true in zip(found, truth, strict=True)] == [
        False,
        True,
        False,
        True,
    ]
    check(case, found, case.run(None, lambda *arguments: twin(*arguments[:-1])).double())


def test_room_for_longer_contexts_and_more_groups_than_there_are_changes_nothing_but_rounding() -> None:
    """A graph is made for the longest context."""
    case = make_shared_case(CONTEXTS, GROUPS, dtype=torch.float32)
    tables = torch.full((len(CONTEXTS), 64), 2**30, dtype=torch.int32)
    tables[:, : case.metadata.block_tables.shape[1]] = case.metadata.block_tables
    case.metadata = replace(case.metadata, block_tables=tables, max_context_len=1024)
    check(case, run(case, SMALL))


def test_scores_of_any_size_overflow_nothing() -> None:
    case = make_shared_case([100] * 5, [([0, 1, 2, 4], 3)])
    case.q *= 1e3
    assert (run(case, SMALL).double() - case.expected()).abs().max() <= 1e-3


def test_a_model_takes_it_for_layers_whose_window_hides_nothing() -> None:
    case = make_shared_case([40, 45, 50], [([0, 1, 2], 2)])
    held = case.metadata.block_tables.shape[1] * 16
    assert takes(case.metadata, case.k_cache, None) and takes(case.metadata, case.k_cache, held)
    assert not takes(case.metadata, case.k_cache, held - 1)
    for window in (None, 20):
        check(case, case.run(window, attention), case.expected(window))
    check(case, case.run(None, partial(paged_attention)))  # what shares nothing is not disturbed by it
    case.metadata = replace(case.metadata, max_query_len=2)
    assert not takes(case.metadata, case.k_cache, None)


def test_a_step_with_chunks_is_refused() -> None:
    case = make_shared_case([40, 45], [([0, 1], 2)])
    shared = case.metadata.shared
    assert isinstance(shared, SharedPrefixes)
    with pytest.raises(ValueError, match="3 rows of q for 2 requests, and some groups"):
        shared_prefix_attention(case.q[[0, 0, 1]], case.k_cache, case.v_cache, case.metadata, 0.25)
    with pytest.raises(ValueError, match="no groups"):
        nothing = replace(case.metadata, shared=None)
        shared_prefix_attention(case.q, case.k_cache, case.v_cache, nothing, 0.25)
