"""Attention the plain way: one row and one head at a time, densely, in float64. The truth for every implementation."""

import torch


def dense_attention(
    q: torch.Tensor,
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
    query_lens: list[int],
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """[T, heads, d] float64. q: [T, heads, d]; keys, values: [context, kv_heads, d] of each request.

    A request's rows of q are its last positions.
    """
    out = torch.zeros(q.shape, dtype=torch.float64)
    row = 0
    for k, v, count in zip(keys, values, query_lens, strict=True):
        context, group = len(k), q.shape[1] // k.shape[1]
        for position in range(context - count, context):
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(q.shape[1]):
                seen_k = k[first : position + 1, head // group].double()
                seen_v = v[first : position + 1, head // group].double()
                weights = torch.softmax(seen_k @ q[row, head].double() * scale, dim=0)
                out[row, head] = weights @ seen_v
            row += 1
    return out
