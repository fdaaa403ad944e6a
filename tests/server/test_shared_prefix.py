"""Groups of requests that share the beginning of their block tables: found right, and told right to attention."""

import random
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_kernels.metadata import TILE_MEMBERS
from octavo_server.ipc import SamplingParams
from octavo_server.step import NewRequest
from octavo_server.worker.input_batch import RequestState, ScheduledRow
from octavo_server.worker.shared_prefix import (
    LEAST_BYTES,
    LEAST_MEMBERS,
    PrefixFinder,
    PrefixGroup,
    SharedBuffers,
    find_groups,
    least_pages,
)

BLOCK = 4


def table(*pages: int) -> np.ndarray:
    return np.array(pages, dtype=np.int32)


def row(pages: list[int], start: int) -> ScheduledRow:
    """A request with these pages whose token at `start` is computed."""
    new = NewRequest("", [0] * (start + 1), start + 1, start + 9, SamplingParams(), pages, start)
    return ScheduledRow(RequestState(new, BLOCK, 0), start, start + 1, 0, True, False, False)


def saved(groups: list[PrefixGroup]) -> int:
    return sum(group.saved_pages for group in groups)


def most_saved(tables: list[tuple[int, ...]], depth: int = 0) -> int:
    """By trying, where tables part, each choice of branches that share more among themselves, the rest staying."""
    branches: dict[int, list[tuple[int, ...]]] = {}
    for pages in tables:
        if len(pages) > depth:
            branches.setdefault(pages[depth], []).append(pages)
    large = [branch for branch in branches.values() if len(branch) >= LEAST_MEMBERS]
    best = 0
    for count in range(len(large) + 1):
        for chosen in combinations(large, count):
            rest = len(tables) - sum(map(len, chosen))
            together = (rest - 1) * depth if rest >= LEAST_MEMBERS else 0
            best = max(best, together + sum(most_saved(branch, depth + 1) for branch in chosen))
    return best


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[int, ...]]:
    """Tables of requests that follow each other for a while and part, as pages of a prefix cache do."""
    numbers = iter(range(10_000))
    tables = [tuple(next(numbers) for _ in range(draw(st.integers(0, 6))))]
    for _ in range(draw(st.integers(0, 15))):
        beginning = draw(st.sampled_from(tables))
        kept = draw(st.integers(0, len(beginning)))
        own = draw(st.integers(0, 4))
        tables.append((*beginning[:kept], *(next(numbers) for _ in range(own))))
    return draw(st.permutations(tables))


@given(trees())
@settings(deadline=None, max_examples=100)
def test_groups_begin_with_the_same_pages_and_save_what_the_best_choice_of_branches_would(
    tables: list[tuple[int, ...]],
) -> None:
    groups = find_groups([table(*pages) for pages in tables])
    members = [member for group in groups for member in group.members]
    assert len(members) == len(set(members))
    for group in groups:
        assert len(group.members) >= LEAST_MEMBERS and group.num_pages > 0
        assert len({tables[member][: group.num_pages] for member in group.members}) == 1
        assert all(len(tables[member]) >= group.num_pages for member in group.members)
    assert saved(groups) >= most_saved(tables)


def test_those_who_share_little_with_all_share_it_among_themselves() -> None:
    """What is left of a group when others go their own way is still one."""
    tables = [table(1, 2, 3, 4, 100 + index) for index in range(4)] + [table(1, 200 + index) for index in range(5)]
    assert find_groups(tables) == [PrefixGroup([0, 1, 2, 3], 4), PrefixGroup([4, 5, 6, 7, 8], 1)]


def test_a_short_prefix_of_all_gives_way_to_long_ones_of_some() -> None:
    short, left, right = [1], [2, 3, 4], [5, 6]
    tables = [table(*short, *left, 100 + index) for index in range(4)]
    tables += [table(*short, *right, 200 + index) for index in range(5)]
    assert find_groups(tables) == [PrefixGroup([0, 1, 2, 3], 4), PrefixGroup([4, 5, 6, 7, 8], 3)]
    tables = [table(1, 2, 3, 4, 5, 300 + index // 4, index) for index in range(16)]
    assert find_groups(tables) == [PrefixGroup(list(range(16)), 5)]


def test_a_request_shares_no_page_that_its_next_token_is_written_to() -> None:
    """The last one stands at the very beginning of its third page, so it shares two as the others do."""
    finder = PrefixFinder(BLOCK, 0)
    rows = [row([7, 8, 9], 4 * 2 + index) for index in range(4)]
    assert finder.find(rows) == [PrefixGroup([0, 1, 2, 3], 2)]
    assert finder.find([*rows[:3], row([7, 8], 7)]) == [PrefixGroup([0, 1, 2, 3], 1)]
    assert finder.find([row([7], 3 - index % 2) for index in range(8)]) == []


def test_groups_are_looked_for_again_only_when_somebody_comes_or_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def counted(tables: list[np.ndarray]) -> list[PrefixGroup]:
        looked.append(len(tables))
        return find_groups(tables)

    monkeypatch.setattr("octavo_server.worker.shared_prefix.find_groups", counted)
    finder, rows = PrefixFinder(BLOCK, 0), [row([7, 8, 10 + index], 8) for index in range(6)]
    for _ in range(3):
        assert finder.find(rows) == [PrefixGroup([0, 1, 2, 3, 4, 5], 2)]
    assert finder.find(rows[1:]) == [PrefixGroup([0, 1, 2, 3, 4], 2)]
    assert finder.find(rows[1:][::-1]) == [PrefixGroup([0, 1, 2, 3, 4], 2)]
    assert finder.find(rows[:3]) == []
    assert looked == [6, 5, 5, 3]


def test_what_would_save_too_little_is_read_by_each_for_itself() -> None:
    rows = [row([*range(40), 90 + index], 160) for index in range(5)]
    assert PrefixFinder(BLOCK, 10).find(rows) == [PrefixGroup([0, 1, 2, 3, 4], 40)]
    assert PrefixFinder(BLOCK, 11).find(rows) == []
    others = [row([100 + index], 3) for index in range(15)]
    assert PrefixFinder(BLOCK, 8).find(rows + others) == [PrefixGroup([0, 1, 2, 3, 4], 40)]
    assert PrefixFinder(BLOCK, 8).find([*rows, *others, others[0]]) == []
    assert least_pages(16, 4096) == LEAST_BYTES / 65536
    assert least_pages(16, 4096 + 1) == LEAST_BYTES // 65536
    assert least_pages(256, 2**20) == 1


@pytest.mark.parametrize("rows", [4, 7, 64, 200])
def test_attention_is_told_each_member_once_and_its_prefix(rows: int) -> None:
    draw = random.Random(rows)
    places = draw.sample(range(rows), rows)
    groups = []
    while len(places) >= LEAST_MEMBERS:
        count = draw.randint(LEAST_MEMBERS, min(len(places), 40))
        groups.append(PrefixGroup([places.pop() for _ in range(count)], draw.randint(1, 9)))
    buffers = SharedBuffers(256, torch.device("cpu"))
    buffers.upload(torch.full_like(buffers.pack([], 256, BLOCK), -3))  # what an earlier step left
    buffers.upload(buffers.pack(groups, rows, BLOCK))
    told = buffers.sections(rows)
    expected = {member: group.num_pages * BLOCK for group in groups for member in group.members}
    assert told.lens.tolist() == [expected.get(place, 0) for place in range(rows)]
    tiles = [told.members[first : first + count].tolist() for first, count in told.tiles.tolist() if count]
    assert max(map(len, tiles)) <= TILE_MEMBERS
    assert sorted(member for tile in tiles for member in tile) == sorted(expected)
    for tile in tiles:
        assert any(set(tile) <= set(group.members) for group in groups)
