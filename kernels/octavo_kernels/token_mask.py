# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Keeps rows of logits to the tokens that a grammar allows.

A row's mask has a bit for each token: of word w the bit b stands for token 32·w + b, as llguidance writes them.
Where it is not set the logit becomes −∞. A *forced* row's allowed tokens have their logits set to 0 besides: they win
over whatever was excluded before.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from octavo_kernels.launching import Launcher, alignment

_BLOCK: Final = tl.constexpr(2048)


def apply_token_mask(logits: torch.Tensor, masks: torch.Tensor, forced: torch.Tensor) -> None:
    """Changes logits [n, vocab] of any float in place. masks: [n, words ≥ vocab / 32] int32. forced: [n] int32, 0 or 1.

    The twin is `reference.apply_token_mask`.
    """
    rows, vocab_size = logits.shape
    key = (logits.device, logits.dtype, logits.stride(0) % 16 == 0, masks.stride(0) % 16 == 0, vocab_size % 16 == 0)
    _mask(
        (*key, alignment(logits, masks, forced)),
        (triton.cdiv(vocab_size, _BLOCK.value), rows, 1),
        (logits, masks, forced, vocab_size, logits.stride(0), masks.stride(0)),
        {"num_warps": 4},
    )


@triton.jit
def _mask_kernel(logits_ptr, masks_ptr, forced_ptr, vocab_size, stride_logits, stride_masks):
    """Grid: (blocks of the vocabulary, rows)."""
    row = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * _BLOCK + tl.arange(0, _BLOCK)
    there = token < vocab_size
    word = tl.load(masks_ptr + row * stride_masks + token // 32, mask=there, other=0)
    allowed = ((word >> (token % 32)) & 1) != 0
    forced = tl.load(forced_ptr + row) != 0
    at = logits_ptr + row * stride_logits + token
    tl.store(at, tl.zeros([_BLOCK], tl.float32), mask=there & allowed & forced)
    tl.store(at, tl.full([_BLOCK], float("-inf"), tl.float32), mask=there & (allowed == 0))


_mask = Launcher(_mask_kernel)
