"""Ragged requests in a paged cache that is NaN wherever nothing may be read."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from attention_oracle import dense_attention
from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.reference import store_kv
from octavo_kernels.reference_attention import paged_attention

Attend = Callable[..., torch.Tensor]
# (query tokens, context) of each request: prompts, later chunks, decodes, one that rests, across pages and tiles.
RAGGED = [(1, 1), (5, 5), (1, 64), (0, 30), (1, 65), (70, 70), (3, 131), (1, 200), (2, 8), (1, 129), (33, 97)]


@dataclass
class Case:
    """Requests in a paged cache whose other slots are NaN."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    query_lens: list[int]
    metadata: AttentionMetadata

    def run(self, window: int | None = None, attend: Attend = paged_attention) -> torch.Tensor:
        return attend(self.q, self.k_cache, self.v_cache, self.metadata, 0.25, window)

    def expected(self, window: int | None = None) -> torch.Tensor:
        return dense_attention(self.q, self.keys, self.values, self.query_lens, 0.25, window)


def make_case(
    requests: list[tuple[int, int]],
    *,
    heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 16,
    page_size: int = 16,
    heads_first: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Case:
    draw = torch.Generator().manual_seed(len(requests) + heads + head_dim + page_size)
    table_width = max(-(-context // page_size) for _, context in requests) + 1
    num_pages = len(requests) * table_width + 2
    order = [kv_heads, page_size] if heads_first else [page_size, kv_heads]
    cache = torch.full((2, num_pages, *order, head_dim), torch.nan, dtype=dtype)
    k_cache, v_cache = (half.transpose(1, 2) if heads_first else half for half in cache)
    free = list(range(num_pages))
    random.Random(0).shuffle(free)
    tables, keys, values = [], [], []
    for _, context in requests:
        pages = [free.pop() for _ in range(-(-context // page_size))]
        k, v = torch.randn(2, context, kv_heads, head_dim, generator=draw).to(dtype)
        slots = torch.tensor([pages[p // page_size] * page_size + p % page_size for p in range(context)])
        store_kv(k, v, k_cache, v_cache, slots)
        # What stands past the last page must not be taken for a page: here it names none.
        tables.append(pages + [2**30] * (table_width - len(pages)))
        keys.append(k)
        values.append(v)
    query_lens = [count for count, _ in requests]
    metadata = AttentionMetadata(
        torch.tensor([0, *query_lens]).cumsum(0).int(),
        torch.tensor([context for _, context in requests]).int(),
        torch.tensor(tables).int(),
    )
    q = torch.randn(sum(query_lens), heads, head_dim, generator=draw).to(dtype)
    return Case(q, k_cache, v_cache, keys, values, query_lens, metadata)
