# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Sampling noise in Triton: the same bits as `octavo_server.worker.noise`, which says what function it is.

Noise comes as the logarithm, to base 2, of exponential noise E (times a constant): with scores s = log₂ p − log₂ E the
greatest one is token i with probability pᵢ (the exponential race; as well, Gumbel's). E = −log(1 − u) is taken from a
series where u is small: it is the small ones that win, and 1 − u would round them.
"""

from typing import Final

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

# Of 2 · HALF successive tokens, the first HALF take the high words of HALF numbers of the stream, the others the low.
HALF: Final = tl.constexpr(2048)
INTERPRETED: Final = tl.constexpr(triton.knobs.runtime.interpret)  # the interpreter knows no libdevice
LOG2_E: Final = tl.constexpr(1.4426950408889634)


@triton.jit
def mix(z):
    """SplitMix64's finalizer; uint64."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def position_key(stream, position):
    """The key of the stream of numbers for a position: both int64; uint64."""
    return mix(stream.to(tl.uint64) + (position + 1).to(tl.uint64) * 0x9E3779B97F4A7C15)


@triton.jit
def words(key, index):
    """The numbers of these indices, from 0, in a key's stream, as (high, low) words; uint32."""
    z = key + (index + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    high = (z >> 32).to(tl.uint32)  # taken apart before the last step: 64-bit numbers are slow to convert
    return high ^ (high >> 31), z.to(tl.uint32) ^ (z >> 31).to(tl.uint32)


@triton.jit
def log2(x):
    """Of normal numbers above 0: the device's own approximation, to 22 bits; Triton's takes a polynomial."""
    return tl.log2(x) if INTERPRETED else libdevice.fast_log2f(x)


@triton.jit
def log2_exponential(bits):
    """From uint32 to the logarithm of exponential noise, finite for any bits."""
    u = tl.minimum(tl.maximum(bits.to(tl.float32), 0.5) * 2.3283064365386963e-10, 0.9999999403953552)
    series = u * (1.4426950408889634 + u * (0.7213475204444817 + u * (0.4808983469629878 + u * 0.36067376022224085)))
    return log2(tl.where(u < 0.015625, series, -log2(1.0 - u)))


@triton.jit
def log2_noise(key, token):
    """The noise of any tokens, int32 or int64."""
    high, low = words(key, (token // (2 * HALF)) * HALF + token % HALF)
    return log2_exponential(tl.where(token % (2 * HALF) < HALF, high, low))
