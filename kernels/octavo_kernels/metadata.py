"""What attention needs to know of a step, the same for every layer."""

import math
from dataclasses import dataclass, field
from typing import Any, Final

import torch

TILE_MEMBERS: Final = 16  # requests of a group that one tile of `SharedPrefixes` takes at most


class Workspace:
    """Scratch memory that outlives a step, by name; fresh memory would be mapped in page by page, in each layer."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """A contiguous tensor of this shape with any content; the next `take` of the name hands out the same memory."""
        key, size = (name, like.dtype, like.device), math.prod(shape)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[key] = like.new_empty(size)
        return buffer[:size].view(shape)


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Groups of requests whose block tables begin with the same pages, which are then read once for a group.

    lens: [R] int32; request r shares its first lens[r] tokens with its group, 0 if it has none. Less than its context.
    members: [R] int32, requests, those of a group one after the other; what stands behind them is not read.
    tiles: [T, 2] int32; where in `members` some of one group begin, and how many they are: TILE_MEMBERS at most, 0 for
        a tile that is not used. Each request that shares something is in exactly one.
    """

    lens: torch.Tensor
    members: torch.Tensor
    tiles: torch.Tensor


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Which tokens of a step belong to whom, and where their requests' K and V lie. R requests, B pages at most.

    query_start: [R + 1] int32; request r's tokens are rows query_start[r] to query_start[r + 1] of q.
    context_lens: [R] int32; tokens of request r in the cache, those of this step included. Its last row of q stands at
        position context_lens[r] - 1.
    block_tables: [R, B] int32, page numbers in the order of positions. Entries past a request's last page are not read
        as pages, whatever they hold.
    workspace: scratch memory, of one model and one step at a time.
    plans: what an implementation works out from these once and uses again in each layer; empty at first.
    max_query_len, max_context_len: the host's upper bounds of a request's tokens in the step and in the cache; None if
        it knows no better than q and block_tables show. They may exceed the truth, as they do in a graph.
    shared: for a step in which every request has one token; what it says changes how keys are read, not what is seen.
    all_chunks: no request has one token in the step, so that no kernel for single tokens is launched.
    """

    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    workspace: Workspace = field(default_factory=Workspace)
    plans: dict[Any, Any] = field(default_factory=dict)
    max_query_len: int | None = None
    max_context_len: int | None = None
    shared: SharedPrefixes | None = None
    all_chunks: bool = False
