"""Finds which requests of a decode step share a prefix, so that attention reads its pages once for all of them.

The prefix cache gives requests with equal beginnings the same pages, so nothing has to be compared but page numbers at
the head of their block tables. These form a tree. A request is in one group at most: it shares a lot with few others,
or less with more, whichever saves more reading.

A request's pages stay the same from its admission on, and so do the groups while the same requests run: they are looked
for when somebody came or went.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from octavo_kernels.metadata import TILE_MEMBERS, SharedPrefixes
from octavo_server.worker.input_batch import RequestState, ScheduledRow

LEAST_MEMBERS: Final = 4
# K and V of a layer that need not be read again, for each request of a step: below it, reading a request's own keys by
# itself and merging costs more. Measured on an H100; a step of few requests must save as much as one of 16.
LEAST_BYTES: Final = 2**21
_FEW: Final = 16
_LEVELS: Final = 16  # of the tree that are looked at
_FILLED_UP: Final = -1


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Places in the batch of requests whose tables begin with the same pages."""

    members: list[int]
    num_pages: int

    @property
    def saved_pages(self) -> int:
        """That need not be read again."""
        return (len(self.members) - 1) * self.num_pages


class PrefixFinder:
    """Looks for groups, step by step. least_pages: that must be saved for each of its requests, or there are none."""

    def __init__(self, block_size: int, least_pages: int) -> None:
        self._block_size = block_size
        self._least_pages = least_pages
        self._states: list[RequestState] = []
        self._groups: list[PrefixGroup] = []

    def find(self, rows: Sequence[ScheduledRow]) -> list[PrefixGroup]:
        """The groups of a step of these rows, each with one token; no row is in two. Do not change the result."""
        states = [row.state for row in rows]
        if states != self._states:
            tables = [row.state.block_ids[: row.start // self._block_size] for row in rows]  # what it does not write
            self._states, self._groups = states, find_groups(tables)
            if _saved(self._groups) < max(_FEW, len(rows)) * self._least_pages:
                self._groups = []
        return self._groups


def find_groups(tables: Sequence[np.ndarray]) -> list[PrefixGroup]:
    """Of requests with these tables ([n] int32 each), as far as they may share; at least `LEAST_MEMBERS` each."""
    by_first: dict[int, list[int]] = {}
    for row, table in enumerate(tables):
        if len(table):
            by_first.setdefault(int(table[0]), []).append(row)
    found = []
    for members in by_first.values():
        if len(members) >= LEAST_MEMBERS:
            # Past its end a table differs from all others.
            padded = np.repeat(_FILLED_UP - np.arange(len(members))[:, None], max(len(tables[m]) for m in members), 1)
            for line, member in zip(padded, members, strict=True):
                line[: len(tables[member])] = tables[member]
            found += [
                PrefixGroup([members[line] for line in group.members], group.num_pages)
                for group in _best(padded, list(range(len(members))), _LEVELS)
            ]
    return found


def _best(tables: np.ndarray, members: list[int], levels: int) -> list[PrefixGroup]:
    """The groups among these lines, which begin alike, that save most."""
    differs = (tables[members] != tables[members[0]]).any(axis=0)
    common = int(differs.argmax()) if differs.any() else tables.shape[1]
    if common == tables.shape[1] or levels == 1:
        return [PrefixGroup(members, common)]
    branches: dict[int, list[int]] = {}
    for member in members:
        branches.setdefault(int(tables[member, common]), []).append(member)
    apart = [_best(tables, branch, levels - 1) for branch in branches.values() if len(branch) >= LEAST_MEMBERS]
    # Some branches go their own ways, the others stay together: first those that gain most by it.
    apart.sort(key=lambda groups: common * _count(groups) - _saved(groups))
    best, rest = [PrefixGroup(members, common)], members
    for index, groups in enumerate(apart):
        gone = {member for group in groups for member in group.members}
        rest = [member for member in rest if member not in gone]
        way = [group for groups in apart[: index + 1] for group in groups]
        if len(rest) >= LEAST_MEMBERS:
            way.append(PrefixGroup(rest, common))
        best = max(best, way, key=_saved)
    return best


def _saved(groups: Sequence[PrefixGroup]) -> int:
    return sum(group.saved_pages for group in groups)


def _count(groups: Sequence[PrefixGroup]) -> int:
    return sum(len(group.members) for group in groups)


def least_pages(block_size: int, token_bytes: int) -> int:
    """That must be saved for each request, for sharing to pay. token_bytes: of K and V of a token in a layer."""
    return -(-LEAST_BYTES // (block_size * token_bytes))


class SharedBuffers:
    """What attention is told of the groups, in memory on the device that stays, for steps of up to `rows` rows."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self._memory = torch.zeros(_words(rows), dtype=torch.int32, device=device)

    def pack(self, groups: Sequence[PrefixGroup], rows: int, block_size: int) -> torch.Tensor:
        """The groups of a step with room for `rows` rows, in host memory (pinned on CUDA)."""
        packed = torch.zeros(_words(rows), dtype=torch.int32, pin_memory=self._memory.device.type == "cuda")
        to = _sections(packed, rows)
        lens, members, tiles = to.lens.numpy(), to.members.numpy(), to.tiles.numpy()
        place = tile = 0
        for group in groups:
            count = len(group.members)
            lens[group.members] = group.num_pages * block_size
            members[place : place + count] = group.members
            for first in range(0, count, TILE_MEMBERS):
                tiles[tile] = place + first, min(TILE_MEMBERS, count - first)
                tile += 1
            place += count
        return packed

    def upload(self, packed: torch.Tensor) -> None:
        """Enqueues the copy of what `pack` gave."""
        self._memory[: len(packed)].copy_(packed, non_blocking=True)

    def sections(self, rows: int) -> SharedPrefixes:
        """The buffers as attention takes them, for a step with room for `rows` rows."""
        return _sections(self._memory, rows)


def _num_tiles(rows: int) -> int:
    """Enough for any groups: none has fewer members than a quarter of a tile."""
    return max(1, rows // LEAST_MEMBERS)


def _words(rows: int) -> int:
    return 2 * rows + 2 * _num_tiles(rows)


def _sections(memory: torch.Tensor, rows: int) -> SharedPrefixes:
    return SharedPrefixes(memory[:rows], memory[rows : 2 * rows], memory[2 * rows : _words(rows)].view(-1, 2))
