"""Decode steps whose requests share prefixes, in a cache that is NaN wherever nothing may be read."""

from dataclasses import replace

import torch

from octavo_kernels.metadata import TILE_MEMBERS, SharedPrefixes
from paged_case import Case, make_case

Group = tuple[list[int], int]  # requests, and pages that they share


def make_shared_case(contexts: list[int], groups: list[Group], *, spare_tiles: int = 2, **shape: object) -> Case:
    """Requests of one token each. What the members of a group would have of their own for the shared pages is NaN."""
    case = make_case([(1, context) for context in contexts], **shape)  # type: ignore[arg-type]
    page_size, tables = case.k_cache.shape[1], case.metadata.block_tables.clone()
    lens, members, tiles = torch.zeros(len(contexts), dtype=torch.int32), list[int](), list[tuple[int, int]]()
    for requests, pages in groups:
        first, tokens = requests[0], pages * page_size
        for other in requests[1:]:
            for cache in (case.k_cache, case.v_cache):
                cache[tables[other, :pages].long()] = torch.nan
            tables[other, :pages] = tables[first, :pages]
            case.keys[other][:tokens], case.values[other][:tokens] = (
                case.keys[first][:tokens],
                case.values[first][:tokens],
            )
        tiles += [
            (len(members) + at, min(TILE_MEMBERS, len(requests) - at)) for at in range(0, len(requests), TILE_MEMBERS)
        ]
        members += requests
        lens[requests] = tokens
    filled_up = torch.full((len(contexts),), 2**30, dtype=torch.int32)  # is not read
    filled_up[: len(members)] = torch.tensor(members, dtype=torch.int32)
    tiles += [(0, 0)] * spare_tiles
    shared = SharedPrefixes(lens, filled_up, torch.tensor(tiles, dtype=torch.int32).view(-1, 2))
    case.metadata = replace(case.metadata, block_tables=tables, max_query_len=1, shared=shared)
    return case
