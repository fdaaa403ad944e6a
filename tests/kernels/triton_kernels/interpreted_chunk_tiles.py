"""The tiles that chunks are cut into for Hopper's kernel, under Triton's interpreter, and what that kernel takes.

The kernel itself is written in Gluon, which no interpreter runs: it is compiled in `compiled.py`, and checked against
float64 on a GPU by `benchmarks/kernel_checks.py`.
"""

from dataclasses import replace

import pytest
import torch

from octavo_kernels.hopper_attention import chunk_tiles, takes_chunks
from paged_case import make_case

REQUESTS = [(1, 1), (5, 5), (0, 30), (70, 90), (1, 200), (32, 32), (33, 97), (2, 8)]


@pytest.mark.parametrize("positions", [32, 16, 9])
def test_tiles_cover_each_chunk_once_and_nothing_else(positions: int) -> None:
    case = make_case(REQUESTS)
    tiles = chunk_tiles(case.metadata, len(case.q), positions)
    found = [tuple(row) for row in tiles[1 : 1 + int(tiles[0, 0])].tolist()]
    expected, token = [], 0
    for request, (count, context) in enumerate(REQUESTS):
        if count > 1:
            places = range(0, count, positions)
            expected += [(token + i, context - count + i, context, request) for i in places]
        token += count
    assert found == expected[::-1]
    assert chunk_tiles(case.metadata, len(case.q), positions) is tiles  # once a step


@pytest.mark.parametrize("requests", [1, 128, 200])
def test_as_many_tiles_as_chunks_can_have(requests: int) -> None:
    case = make_case([(2, 2)] * requests)
    tiles = chunk_tiles(case.metadata, len(case.q), 64)
    assert tiles[0, 0] == requests
    assert tiles[1 : 1 + requests, 3].tolist() == list(range(requests))[::-1]


def test_what_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(window: int | None = None, **changed: object) -> bool:
        arguments = {"heads": 8, "head_dim": 128, "page_size": 16, "dtype": torch.float16, **changed}
        case = make_case([(20, 40)], **arguments)  # type: ignore[arg-type]
        return takes_chunks(case.q, case.k_cache, case.v_cache, case.metadata, window)

    assert not taken()  # a CPU is no Hopper
    monkeypatch.setattr("octavo_kernels.hopper_attention._is_hopper", lambda _: True)
    assert taken()
    assert taken(head_dim=64, page_size=8)
    assert not taken(window=30)
    assert not taken(dtype=torch.float32)
    assert not taken(head_dim=80)
    assert not taken(page_size=4)
    assert not taken(heads_first=False)  # the tokens of a head are not one stretch
    case = make_case([(1, 40)], heads=8, head_dim=128, dtype=torch.float16)
    single = replace(case.metadata, max_query_len=1)
    assert not takes_chunks(case.q, case.k_cache, case.v_cache, single, None)
