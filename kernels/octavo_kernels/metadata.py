"""What attention needs to know of a step, the same for every layer."""

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Which tokens of a step belong to whom, and where their requests' K and V lie. R requests, B pages at most.

    query_start: [R + 1] int32; request r's tokens are rows query_start[r] to query_start[r + 1] of q.
    context_lens: [R] int32; tokens of request r in the cache, those of this step included. Its last row of q stands at
        position context_lens[r] - 1.
    block_tables: [R, B] int32, page numbers in the order of positions. Entries past a request's last page are not read
        as pages, whatever they hold.
    plans: what an implementation works out from these once and uses again in each layer; empty at first.
    """

    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    plans: dict[Any, Any] = field(default_factory=dict)
