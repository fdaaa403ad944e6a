"""The operations as a model calls them: the one place where their implementation is chosen.

A model is given one `Ops` when it is built: the plain-torch definitions (on a CPU, and on request), or the Triton
kernels. These are imported only when they are chosen: the CPU path needs no Triton.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from octavo_kernels import reference
from octavo_kernels.metadata import AttentionMetadata, Workspace
from octavo_kernels.reference_attention import paged_attention
from octavo_kernels.residual import Linear, Norm, Residual
from octavo_kernels.step_inputs import ExpandedStep, SlotState, expand_step

__all__ = [
    "REFERENCE",
    "AttentionMetadata",
    "Ops",
    "Residual",
    "Workspace",
    "has_triton",
    "pick_expand_step",
    "pick_ops",
    "triton_ops",
]

ExpandStep = Callable[[torch.Tensor, SlotState, ExpandedStep, int], None]
Pair = tuple[torch.Tensor, torch.Tensor]


class _Logits(Protocol):
    def __call__(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None, /) -> torch.Tensor: ...


class _PagedAttention(Protocol):
    def __call__(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        metadata: AttentionMetadata,
        scale: float,
        sliding_window: int | None,
        /,
    ) -> torch.Tensor: ...


class _RotateAndStore(Protocol):
    def __call__(
        self,
        qkv: torch.Tensor,
        rope: Pair,
        norms: tuple[torch.Tensor, torch.Tensor, float] | None,
        cache: Pair,
        slot_mapping: torch.Tensor,
        /,
    ) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Ops:
    """One implementation of each operation; the functions of these names in `reference` say what they compute.

    begin_step: from embeddings, and cos and sin of every position ([P, d / 2] float32 each), to a step's hidden states
        and to what `rotate_and_store` takes for its positions.
    """

    pack_weight: Callable[[torch.Tensor], torch.Tensor]
    norm_linear: Callable[[Residual, Norm, Linear], torch.Tensor]
    norm_gated_linear: Callable[[Residual, Norm, Linear], torch.Tensor]
    linear_add: Callable[[torch.Tensor, Linear, Residual], None]
    norm_residual: Callable[[Residual, Norm], torch.Tensor]
    logits: _Logits
    begin_step: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, Pair]
    ]
    rotate_and_store: _RotateAndStore
    paged_attention: _PagedAttention


REFERENCE = Ops(
    pack_weight=reference.pack_weight,
    norm_linear=reference.norm_linear,
    norm_gated_linear=reference.norm_gated_linear,
    linear_add=reference.linear_add,
    norm_residual=reference.norm_residual,
    logits=reference.logits,
    begin_step=reference.begin_step,
    rotate_and_store=reference.rotate_and_store,
    paged_attention=paged_attention,
)


def triton_ops(*, batch_invariant: bool = False) -> Ops:
    """The Triton kernels, for float16, bfloat16 and float32.

    batch_invariant: a row's bits depend on nothing but the row, at a price; linear maps are then not cuBLAS's.
    """
    from octavo_kernels import (
        gathered_attention,
        invariant_linear,
        paged_attention,
        rms_norm,
        rope,
        small_linear,
        step_start,
    )

    return Ops(
        pack_weight=lambda weight: weight,
        norm_linear=invariant_linear.norm_linear if batch_invariant else small_linear.norm_linear,
        norm_gated_linear=invariant_linear.norm_gated_linear if batch_invariant else small_linear.norm_gated_linear,
        linear_add=invariant_linear.linear_add if batch_invariant else small_linear.linear_add,
        norm_residual=partial(rms_norm.norm_residual, invariant=batch_invariant),
        logits=invariant_linear.logits if batch_invariant else small_linear.logits,
        begin_step=step_start.begin_step,
        rotate_and_store=rope.rotate_and_store,
        paged_attention=(
            paged_attention.paged_attention_invariant if batch_invariant else gathered_attention.attention
        ),
    )


def has_triton(device: torch.device) -> bool:
    """Whether the kernels can be used: they run on CUDA, where Triton is installed."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def pick_ops(device: torch.device, *, batch_invariant: bool = False) -> Ops:
    """Triton on CUDA, where it is installed, else the definitions; these are batch-invariant on a CPU by themselves.

    Raises:
        RuntimeError: batch invariance is asked for on CUDA, and Triton is not installed.
    """
    if has_triton(device):
        return triton_ops(batch_invariant=batch_invariant)
    if batch_invariant and device.type == "cuda":
        raise RuntimeError(
            "batch invariance on CUDA needs Triton, which is not installed: pip install 'octavo[server]'"
        )
    return REFERENCE


def pick_expand_step(device: torch.device) -> ExpandStep:
    """What works out the inputs of a step, see `step_inputs`."""
    if not has_triton(device):
        return expand_step
    from octavo_kernels import step_inputs_kernel

    return step_inputs_kernel.expand_step
