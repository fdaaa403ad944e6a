# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Attention over a paged KV cache in Triton; its twin and definition is `reference_attention.paged_attention`.

    o = Σⱼ pⱼ vⱼ / Σⱼ pⱼ,   pⱼ = exp(q · kⱼ · scale − maxⱼ(q · kⱼ · scale)),   j over the positions that q may see

A program works on some positions of one request and the query heads of one key head: they read the same K and V, so
they are the rows of one matrix product. It takes keys in tiles counted from position 0 and keeps a running maximum m,
sum l and mix acc (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al.,
"FlashAttention", 2022).

- **Decode**: requests with one token. Their rows are few and their keys many, so the keys are split over programs,
  which leave (m, total, acc) behind; a second kernel merges these ("Flash-Decoding", Dao et al., 2023). The grid is
  made from sizes that the host knows, so that a CUDA graph can replay it while contexts grow; a split without keys
  leaves at once, and what is not there is not merged.
- **Chunks**: requests with more tokens, cut into tiles of positions. A tile's program finds its request by bisection.

Both kernels are launched over the whole batch and each leaves the other's requests alone, so the order of requests does
not matter and nothing is read back from the device.

What other requests left in the cache has no influence, NaN included: keys that no row of a tile sees are never loaded.

**Batch invariance** (`invariant=True`): a row's bits depend on nothing but the row and its own keys, by construction:

- both kernels have one tile shape (rows, keys, warps), so a product sums alike whatever the row stands among; a tile
  that a row does not see multiplies by one and adds zeros;
- keys are split at fixed positions, and splits are merged from the first to the last by the same function, in decode
  by the second kernel, in chunks by the program itself;
- products and sums are not contracted (`enable_fp_fusion=False`), as two kernels could be contracted differently.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import torch
import triton

from octavo_kernels.attention_kernel import attention_kernel, merge_kernel
from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.programmatic_launch import overlap

LOG2_E: Final = 1.4426950408889634
INVARIANT_SPLIT: Final = 1024  # keys; a multiple of every BLOCK_N


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """How the work is cut. Rows are positions times query heads of a key head."""

    block_rows: int
    block_keys: int
    num_warps: int
    num_stages: int
    programs: int = 528  # decode: keys are split until there are so many programs
    min_split: int = 256  # decode: but no shorter than so many keys
    split: int = 0  # keys of a split at fixed positions; 0: a context is divided evenly
    ahead: int = field(default=0, kw_only=True)  # decode: keys of a split fetched before q is there; a power of two
    late: bool = field(
        default=True, kw_only=True
    )  # whether the next kernel comes only at the end (`programmatic_launch`)


# What was fastest on an H100 for heads of 128 in bf16, 4 query heads a key head, pages of 16 (benchmarks/LOG.md).
# Decode without splits: the largest tile. With them: a small one and two stages, which leave room for more programs on
# a processor. For one or two requests: a program a processor, the largest tile and whatever hides the way to memory.
_DECODE: Final = (128, 4, 2)  # keys, warps, stages
_DECODE_SPLIT: Final = (64, 4, 2)
_DECODE_SOME: Final = (128, 4, 2, 264, 256)  # and programs, and the least keys of a split
_DECODE_FEW: Final = (128, 4, 3, 128, 128)
_FEW, _SOME = 16, 64  # programs without splits
# Long chunks: the largest tile, each key read for 128 rows. Short ones: small tiles, as half lie on the diagonal.
_LONG_CHUNK: Final = (128, 128, 8, 3)  # rows, keys, warps, stages
_SHORT_CHUNK: Final = (64, 64, 4, 3)
_LONG: Final = 1024  # tokens; in between both were alike


def decode_config(dtype: torch.dtype, block_d: int, group: int, programs: int) -> AttentionConfig:
    """For one token a request. programs: requests times key heads, how many there are before keys are split."""
    rows = max(16, triton.next_power_of_2(group))
    if dtype == torch.float32:
        return AttentionConfig(rows, 32 if block_d <= 128 else 16, 4, 1)
    if block_d > 128:
        return AttentionConfig(rows, 32, 4, 3)
    if programs <= _FEW:
        return AttentionConfig(rows, *_DECODE_FEW, ahead=128, late=False)
    filled = AttentionConfig(rows, *_DECODE)
    if 2 * programs >= filled.programs:
        return filled
    return AttentionConfig(rows, *(_DECODE_SOME if programs <= _SOME else _DECODE_SPLIT), ahead=64)


def chunk_config(dtype: torch.dtype, block_d: int, group: int, longest: int) -> AttentionConfig:
    """For many tokens a request, `longest` at most."""
    rows = max(16, triton.next_power_of_2(group))
    if dtype == torch.float32:
        return AttentionConfig(*_fp32_shape(block_d, rows), 8, 1)
    if block_d > 128:
        return AttentionConfig(max(64, rows), 32, 4, 2)
    block_rows, *rest = _LONG_CHUNK if longest >= _LONG else _SHORT_CHUNK
    return AttentionConfig(max(block_rows, rows), *rest)


def _fp32_shape(block_d: int, rows: int) -> tuple[int, int]:
    """Rows and keys of a tile: exact products are done by the ordinary units, out of registers."""
    return (max(32, rows), 32) if block_d <= 128 else (rows, 16)


def invariant_config(dtype: torch.dtype, block_d: int, group: int) -> AttentionConfig:
    """The one shape for decode and chunks alike. 64 rows: the least of Hopper's matrix instructions."""
    rows = max(16, triton.next_power_of_2(group))
    if dtype == torch.float32:
        return AttentionConfig(*_fp32_shape(block_d, rows), 8, 1, split=INVARIANT_SPLIT)
    return AttentionConfig(max(64, rows), 64 if block_d <= 128 else 32, 4, 2, split=INVARIANT_SPLIT)


def _configs(
    q: torch.Tensor, shape: tuple[int, int, int], longest: int, invariant: bool
) -> tuple[AttentionConfig, AttentionConfig]:
    """shape: BLOCK_D, query heads a key head, and requests times key heads."""
    block_d, group, programs = shape
    if invariant:
        return (invariant_config(q.dtype, block_d, group),) * 2
    return decode_config(q.dtype, block_d, group, programs), chunk_config(q.dtype, block_d, group, longest)


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
    *,
    configs: tuple[AttentionConfig, AttentionConfig] | None = None,
    invariant: bool = False,
) -> torch.Tensor:
    """Causal attention of every row of q over its own request's pages: [T, heads, d] → [T, heads, d].

    k_cache, v_cache: [pages, page size, kv_heads, d], views of any strides but for the last, which is 1; page size is a
    power of two, heads a multiple of kv_heads. float16, bfloat16 or float32, in which products are exact to the type.
    With a sliding window of w tokens, a token sees itself and the w − 1 before it. No synchronisation with the device.
    configs: other ways to cut the work, of decode and of chunks, than the built-in ones.
    """
    num_tokens, heads, head_dim = q.shape
    _, page_size, kv_heads, _ = k_cache.shape
    num_requests, table_width = metadata.block_tables.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if num_tokens == 0:
        return out
    group, block_d = heads // kv_heads, max(16, triton.next_power_of_2(head_dim))
    longest = metadata.max_query_len or num_tokens
    decode, chunk = configs or _configs(q, (block_d, group, num_requests * kv_heads), longest, invariant)
    most_keys = min(metadata.max_context_len or table_width * page_size, table_width * page_size)
    launch = Launch(q, k_cache, v_cache, out, metadata, scale, sliding_window or 0, group, block_d)
    launch.decode(decode, num_requests, kv_heads, most_keys, invariant)
    if longest > 1:
        launch.chunks(chunk, num_tokens, num_requests, kv_heads, invariant)
    return out


def paged_attention_invariant(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """As `paged_attention`; a row's bits depend on nothing but the row and its keys."""
    return paged_attention(q, k_cache, v_cache, metadata, scale, sliding_window, invariant=True)


@dataclass(slots=True)
class Launch:
    """The arguments that both kernels share."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    out: torch.Tensor
    metadata: AttentionMetadata
    scale: float
    window: int
    group: int
    block_d: int

    def decode(self, config: AttentionConfig, num_requests: int, kv_heads: int, most_keys: int, exact: bool) -> None:
        splits = num_splits(config, num_requests * kv_heads, most_keys)
        heads = kv_heads * self.group
        mix, stats = self.out, self.out
        if splits > 1:
            mix = self.q.new_empty((num_requests, heads, splits, self.block_d), dtype=torch.float32)
            stats = self.q.new_empty((num_requests, heads, splits, 2), dtype=torch.float32)
        attention_kernel[(num_requests, kv_heads, splits)](
            *self._arguments(mix, stats),
            **self._constants(config, exact),
            DECODE=True,
            PARTIAL=splits > 1,
            FETCH=self._pages_ahead(config),
        )
        if splits > 1:
            merge_kernel[(num_requests, heads)](
                mix,
                stats,
                self.out,
                self.metadata.query_start,
                self.metadata.context_lens,
                splits,
                self.out.stride(0),
                self.out.stride(1),
                HEAD_DIM=self.q.shape[2],
                BLOCK_D=self.block_d,
                WINDOW=self.window,
                BLOCK_N=config.block_keys,
                SPLIT=config.split,
                LEAST=_least_tiles(config),
                num_warps=1,
                enable_fp_fusion=not exact,
                **overlap(self.q.device),
            )

    def chunks(self, config: AttentionConfig, num_tokens: int, num_requests: int, kv_heads: int, exact: bool) -> None:
        tiles = num_tokens // (config.block_rows // self.group) + num_requests
        attention_kernel[(tiles, kv_heads, 1)](
            *self._arguments(self.out, self.out), **self._constants(config, exact), DECODE=False, PARTIAL=False, FETCH=0
        )

    def gathered_chunks(
        self, config: AttentionConfig, num_tokens: int, kv_heads: int, gathered: tuple[Any, Any, int]
    ) -> None:
        """gathered: descriptors of K and V, and rows of a request."""
        k, v, length = gathered
        tiles = num_tokens // (config.block_rows // self.group) + len(self.metadata.block_tables)
        arguments = self._arguments(self.out, self.out)
        attention_kernel[(tiles, kv_heads, 1)](
            arguments[0],
            k,
            v,
            *arguments[3:-6],
            length,
            *arguments[-5:],
            **{**self._constants(config, False), "GATHERED": True},
            DECODE=False,
            PARTIAL=False,
            FETCH=0,
        )

    def _pages_ahead(self, config: AttentionConfig) -> int:
        """Of a split, that are fetched while q is worked out: where a page's tokens lie together, and in 16 bits."""
        _, page_size, _, head_dim = self.k_cache.shape
        together = self.k_cache.stride(1) == self.v_cache.stride(1) == head_dim
        if not together or self.q.element_size() != 2 or head_dim % 8:
            return 0
        return config.ahead // page_size

    def _arguments(self, mix: torch.Tensor, stats: torch.Tensor) -> tuple[Any, ...]:
        meta = self.metadata
        return (
            self.q,
            self.k_cache,
            self.v_cache,
            self.out,
            mix,
            stats,
            meta.query_start,
            meta.context_lens,
            meta.block_tables,
            self.scale * LOG2_E,
            len(meta.block_tables),
            meta.block_tables.stride(0),
            *self.q.stride()[:2],
            *self.out.stride()[:2],
            *self.k_cache.stride()[:3],
            *self.v_cache.stride()[:3],
        )

    def _constants(self, config: AttentionConfig, exact: bool) -> dict[str, Any]:
        return {
            "GROUP": self.group,
            "HEAD_DIM": self.q.shape[2],
            "BLOCK_D": self.block_d,
            "PAGE_SIZE": self.k_cache.shape[1],
            "WINDOW": self.window,
            "BLOCK_M": config.block_rows,
            "BLOCK_N": config.block_keys,
            "SPLIT": config.split,
            "LEAST": _least_tiles(config),
            "GATHERED": False,
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            "enable_fp_fusion": not exact,
            **overlap(self.q.device, config.late),
        }


def _least_tiles(config: AttentionConfig) -> int:
    """Of a split, however long contexts can be: so a graph made for long ones divides short ones as if it were not."""
    return max(1, config.min_split // config.block_keys)


def num_splits(config: AttentionConfig, programs: int, most_keys: int) -> int:
    """Over how many programs the keys of a request and key head are split, `programs` being those without."""
    if config.split:
        return -(-most_keys // config.split)
    # With as many programs as two a processor, splitting costs more (a second kernel, partial sums) than it evens out.
    wanted = 1 if 2 * programs >= config.programs else -(-config.programs // programs)
    return max(1, min(wanted, -(-most_keys // config.min_split)))
