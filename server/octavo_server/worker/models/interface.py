"""What the runner hands to a model and gets back. T tokens in the step, R requests, B pages in the longest table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from octavo_kernels.metadata import SharedPrefixes

KVCache = list[tuple[torch.Tensor, torch.Tensor]]  # K and V of each layer


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """Describes the KV cache; the one place that knows its order. Kernels take strides and assume none.

    Each layer's cache is two views (K and V) of shape [num_blocks, block_size, num_kv_heads, head_dim].
    """

    num_layers: int
    num_blocks: int
    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one page over all layers, K and V."""
        element = torch.empty((), dtype=self.dtype).element_size()
        return 2 * self.num_layers * self.block_size * self.num_kv_heads * self.head_dim * element

    def allocate(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The (K, V) views of each layer. Page first: a page is one stretch of memory over all layers, K and V.

        So a page moves between device and host as one piece; attention does not notice. Within an array of the page
        heads come before tokens, so that the tokens of one head are one stretch.
        """
        shape = (self.num_blocks, self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim)
        pages = torch.zeros(shape, dtype=self.dtype, device=self.device).transpose(3, 4)
        return [(pages[:, layer, 0], pages[:, layer, 1]) for layer in range(self.num_layers)]


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The inputs of one forward pass; tokens of a request are consecutive, requests follow each other.

    token_ids, positions, slot_mapping: [T] int64; slot = page * block_size + offset, where this token's K and V go.
    query_start: [R + 1] int32, row r's tokens are token_ids[query_start[r]:query_start[r + 1]].
    context_lens: [R] int32, tokens of the request whose K and V are in the cache after this step's store.
    block_tables: [R, B] int32, page numbers of each request, padded with 0.
    max_query_len, max_context_len: upper bounds of a request's tokens in the pass and in the cache, as far as the host
        knows them; with max_query_len 1 no kernel for chunks is launched.
    shared: in a step in which each request has one token, which of them share the beginnings of their tables.
    all_chunks: no request has one token in the pass; no kernel for single tokens is launched then.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    max_query_len: int | None = None
    max_context_len: int | None = None
    shared: SharedPrefixes | None = None
    all_chunks: bool = False


class Decoder(Protocol):
    """What the runner needs of a model."""

    def forward(
        self,
        batch: ForwardBatch,
        kv_cache: KVCache,
        on_progress: Callable[[], None],
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[T, hidden]: the last hidden states; stores K and V of the batch's tokens in their slots.

        rows: those of these tokens alone, places [n] int64: [n, hidden].

        Calls `on_progress` whenever a part of the work is done, some times in each layer.
        """
        ...

    def logits(self, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[n, vocab] float32 from [n, hidden], into `out` if it is given."""
        ...
