"""The angles of rotary position embedding, with the scalings that stretch a model's context."""

import math
from typing import Final

import torch

from octavo_common.model_config import RopeScaling

_POSITIONS_AT_ONCE: Final = 1 << 16


def rope_cache(
    rope: RopeScaling, head_dim: int, num_positions: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every position's angles, each [num_positions, head_dim / 2] float32, the attention factor in them.

    The product of position and frequency is taken in float32, as transformers does: at position 100,000 a float64 one
    would be another angle than the model was trained with.
    """
    frequencies, factor = inverse_frequencies(rope, head_dim)
    cos = torch.empty(num_positions, head_dim // 2, device=device)
    sin = torch.empty_like(cos)
    for start in range(0, num_positions, _POSITIONS_AT_ONCE):
        end = min(start + _POSITIONS_AT_ONCE, num_positions)
        angles = torch.arange(start, end).float().unsqueeze(1) * frequencies
        cos[start:end] = angles.cos() * factor
        sin[start:end] = angles.sin() * factor
    return cos, sin


def inverse_frequencies(rope: RopeScaling, head_dim: int) -> tuple[torch.Tensor, float]:
    """Radians per position of each pair of elements, [head_dim / 2] float32, and the factor for cos and sin.

    "linear": Chen et al., "Extending Context Window of Large Language Models via Positional Interpolation", 2023.
    "yarn": Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023.
    "llama3": as in Meta's Llama 3.1 code.
    """
    base = rope.theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    plain = 1.0 / base
    if rope.kind == "linear":
        return plain / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(rope, plain), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, base, head_dim), _yarn_attention_factor(rope)
    return plain, 1.0


def _original_length(rope: RopeScaling) -> int:
    if rope.original_max_position_embeddings is None:
        raise ValueError(f"rope kind {rope.kind} needs original_max_position_embeddings")
    return rope.original_max_position_embeddings


def _llama3(rope: RopeScaling, plain: torch.Tensor) -> torch.Tensor:
    """Long waves are stretched, short ones kept, those between blended."""
    original = _original_length(rope)
    wavelength = 2 * math.pi / plain
    blend = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - blend) * plain / rope.factor + blend * plain
    stretched = torch.where(wavelength > original / rope.low_freq_factor, plain / rope.factor, blended)
    return torch.where(wavelength < original / rope.high_freq_factor, plain, stretched)


def _yarn(rope: RopeScaling, base: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Pairs that turn often over the original context stay, those that turn seldom are stretched; a ramp between."""
    original = _original_length(rope)

    def pair_with(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = (high - low) or 0.001
    kept = 1 - ((torch.arange(head_dim // 2).float() - low) / width).clamp(0, 1)
    return (1.0 / (rope.factor * base)) * (1 - kept) + (1.0 / base) * kept


def _yarn_attention_factor(rope: RopeScaling) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def scale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)
