"""Attention of decode steps over shared prefixes in plain torch: the twin of `shared_prefix_attention`."""

import torch

from octavo_kernels.metadata import AttentionMetadata


def shared_prefix_attention(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, metadata: AttentionMetadata, scale: float
) -> torch.Tensor:
    """One token of each request over all of its keys: [R, heads, d] → [R, heads, d].

    It takes `metadata.shared` at its word: the keys of a shared prefix come from the pages of its tile's first member.
    So it tells right groups from wrong ones, which `reference_attention.paged_attention` does not, that reads each
    request's own table. One request at a time, in float32 at least.
    """
    shared = metadata.shared
    if shared is None:
        raise ValueError("metadata.shared is missing: it says which requests share a prefix")
    tables = metadata.block_tables.long()
    leaders: dict[int, int] = {}
    for first, count in shared.tiles.tolist():
        members = shared.members[first : first + count].tolist()
        leaders.update((member, members[0]) for member in members)
    out = torch.empty_like(q)
    for request, (context, prefix) in enumerate(zip(metadata.context_lens.tolist(), shared.lens.tolist(), strict=True)):
        k, v = (
            torch.cat(
                (
                    _tokens(cache, tables[leaders[request] if prefix else request], 0, prefix),
                    _tokens(cache, tables[request], prefix, context),
                )
            ).to(torch.promote_types(q.dtype, torch.float32))
            for cache in (k_cache, v_cache)
        )
        rows = q[request].to(k.dtype).view(k.shape[1], -1, k.shape[2])  # [kv_heads, group, d]
        weights = torch.softmax(rows @ k.permute(1, 2, 0) * scale, -1)
        out[request] = (weights @ v.transpose(0, 1)).flatten(0, 1).to(q.dtype)
    return out


def _tokens(cache: torch.Tensor, table: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    """[end − begin, kv_heads, d] of a request with this table."""
    position = torch.arange(begin, end, device=cache.device)
    return cache[table[position // cache.shape[1]], position % cache.shape[1]]
