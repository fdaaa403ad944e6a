"""Sampling noise without a state: a function of (seed, choice, position, token id) and of nothing else.

A request therefore draws the same noise whatever it is batched with, after a preemption, and on another replica.

The function is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), with
the finalizer of D. Stafford's variant 13: with γ = 0x9E3779B97F4A7C15 and, modulo 2⁶⁴,

    mix(z):  z ← (z ⊕ z⋙30)·0xBF58476D1CE4E5B9;  z ← (z ⊕ z⋙27)·0x94D049BB133111EB;  z ⊕ z⋙31

the i-th number of the generator seeded with s is mix(s + (i + 1)·γ), computable without those before it. It is used
thrice: the first number of a seed's stream opens a stream of keys, one for each position; a key opens the stream of
that position, of which each number serves two token ids: of 4096 successive ones the first 2048 take the high words of
2048 numbers, the others the low words. Of several answers to one prompt (`choice` 1, 2, …) each has a seed of its
own, drawn from the stream that the second number of the request's seed opens; choice 0 has the request's. torch has no
unsigned 64-bit arithmetic; its signed products and sums wrap, which gives the same bits.
"""

from collections.abc import Sequence

import torch

from octavo_server.worker.transfer import upload

_MASK = (1 << 64) - 1
_WORD = (1 << 32) - 1
_HALF = 2048  # of the token ids that share numbers


def _signed(value: int) -> int:
    """The 64-bit two's complement number with the bits of `value` modulo 2⁶⁴."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift_right(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift: the vacated bits are 0, also where the number is negative."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: torch.Tensor) -> torch.Tensor:
    z = (z ^ _shift_right(z, 30)) * _FIRST
    z = (z ^ _shift_right(z, 27)) * _SECOND
    return z ^ _shift_right(z, 31)


def stream_of(seed: int, choice: int) -> int:
    """What opens the stream of the positions' keys: a signed number of 64 bits."""
    return _signed(_mix_int(choice_seed(seed, choice) + _GAMMA))


def choice_seed(seed: int, choice: int) -> int:
    """The seed of the choice-th answer, modulo 2⁶⁴; that of the first one is the request's own."""
    if choice == 0:
        return seed & _MASK
    opened = _mix_int(seed + 2 * _GAMMA)
    return _mix_int(opened + choice * _GAMMA)


def _mix_int(z: int) -> int:
    """`_mix` of one number, on the host."""
    z &= _MASK
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


def random_bits(seeds: Sequence[int], positions: Sequence[int], count: int, device: torch.device) -> torch.Tensor:
    """[n, count] int64 of 32 random bits each; row r is a function of seeds[r] (modulo 2⁶⁴) and positions[r]."""
    seed = upload([_signed(seed) for seed in seeds], torch.int64, device)
    position = upload(positions, torch.int64, device)
    key = _mix(_mix(seed + _GAMMA) + (position + 1) * _GAMMA)
    whole, rest = divmod(count, 2 * _HALF)
    index = torch.arange(1, whole * _HALF + min(rest, _HALF) + 1, dtype=torch.int64, device=device)
    number = _mix(key[:, None] + index * _GAMMA)
    high, low = _shift_right(number, 32), number & _WORD
    if count <= _HALF:
        return high
    paired = [words[:, : whole * _HALF].view(len(number), whole, _HALF) for words in (high, low)]
    tail = [high[:, whole * _HALF :], low[:, whole * _HALF : whole * _HALF + max(0, rest - _HALF)]]
    return torch.cat([torch.cat(paired, dim=2).flatten(1), *tail], dim=1)


def exponential_noise(seeds: Sequence[int], positions: Sequence[int], count: int, device: torch.device) -> torch.Tensor:
    """[n, count] float32, exponentially distributed with mean 1, each > 0 and finite.

    -log(1 - u), u being the bits over 2³². The least numbers decide who wins, so they are to be precise: a small u is
    as a float, 1 - u is not. 0 is taken for a half, and the last step below 1 for what lies above it.
    """
    bits = random_bits(seeds, positions, count, device).to(torch.float32)
    return bits.clamp_(min=0.5).mul_(2.0**-32).clamp_(max=1.0 - 2.0**-24).neg_().log1p_().neg_()
