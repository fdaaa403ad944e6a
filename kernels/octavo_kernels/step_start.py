# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""What a step begins with, in one Triton kernel: its tokens' embeddings, and the angles of their positions.

Three kernels of torch's do the same, one after the other, in 10 µs where this takes 3 (one row, benchmarks/LOG.md).
It is launched the ordinary way: the kernels after it overlap, and rely on there being one such before them
(`programmatic_launch`). The twin is `reference.begin_step`.
"""

from typing import Final

import torch
import triton
import triton.language as tl

_BLOCK: Final = 1024


def begin_step(
    embedding: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Embeddings [T, n], and cos and sin, [T, d / 2] each, from tables with a row a token and a row a position.

    Tables are contiguous; token_ids, positions: [T] int64.
    """
    tokens, width, half = len(token_ids), embedding.shape[1], cos.shape[1]
    hidden = embedding.new_empty(tokens, width)
    angles = cos.new_empty(2, tokens, half)
    if tokens:
        _begin_step_kernel[(tokens, triton.cdiv(width, _BLOCK) + 1)](
            embedding,
            cos,
            sin,
            token_ids,
            positions,
            hidden,
            angles,
            tokens,
            WIDTH=width,
            HALF=half,
            BLOCK=_BLOCK,
            BLOCK_HALF=triton.next_power_of_2(half),
        )
    return hidden, (angles[0], angles[1])


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["token_ids_ptr", "positions_ptr"])
def _begin_step_kernel(
    embedding_ptr,
    cos_ptr,
    sin_ptr,
    token_ids_ptr,
    positions_ptr,
    hidden_ptr,
    angles_ptr,
    tokens,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """Grid: (tokens, blocks of columns, and one more for the angles)."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    if block < tl.num_programs(1) - 1:
        column = block * BLOCK + tl.arange(0, BLOCK)
        row = tl.load(token_ids_ptr + token)
        found = tl.load(embedding_ptr + row * WIDTH + column, mask=column < WIDTH, other=0.0)
        tl.store(hidden_ptr + token * WIDTH + column, found, mask=column < WIDTH)
    else:
        i = tl.arange(0, BLOCK_HALF)
        at = tl.load(positions_ptr + token) * HALF + i
        tl.store(angles_ptr + token * HALF + i, tl.load(cos_ptr + at, mask=i < HALF, other=0.0), mask=i < HALF)
        sin_at = angles_ptr + (tokens + token) * HALF + i
        tl.store(sin_at, tl.load(sin_ptr + at, mask=i < HALF, other=0.0), mask=i < HALF)
