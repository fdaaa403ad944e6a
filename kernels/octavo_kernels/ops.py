"""The operations as the models call them: the one place where their implementation is chosen.

So far there is one, in plain torch, for every device.
"""

from octavo_kernels.metadata import AttentionMetadata, Workspace
from octavo_kernels.reference import apply_rope, linear, pack_weight, rms_norm, silu_and_mul, store_kv
from octavo_kernels.reference_attention import paged_attention

__all__ = [
    "AttentionMetadata",
    "Workspace",
    "apply_rope",
    "linear",
    "pack_weight",
    "paged_attention",
    "rms_norm",
    "silu_and_mul",
    "store_kv",
]
