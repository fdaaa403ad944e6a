"""The operations as the models call them: the one place where their implementation is chosen.

So far there is one, in plain torch, for every device.
"""

from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.reference import apply_rope, linear, rms_norm, silu_and_mul, store_kv
from octavo_kernels.reference_attention import paged_attention

__all__ = [
    "AttentionMetadata",
    "apply_rope",
    "linear",
    "paged_attention",
    "rms_norm",
    "silu_and_mul",
    "store_kv",
]
