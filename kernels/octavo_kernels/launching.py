"""Launches of kernels that a step cannot hide: past what Triton looks at before each.

`kernel[grid](…)` binds and classifies the arguments and compares every global that the kernel has seen, 40 µs a launch
where the kernel itself takes 5. What comes of that depends, for the kernels here, on little: the caller names it.
"""

from collections.abc import Hashable
from typing import Any


class Launcher:
    """A kernel, compiled once for each key."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._compiled: dict[Hashable, Any] = {}

    def __call__(
        self, key: Hashable, grid: tuple[int, int, int], arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        """Launches it. constants: those of the kernel's signature, which come last in it, in their order; `num_warps`.

        key: equal only where types, constants, the alignment of tensors to 16 bytes and the divisibility of numbers by
        16 are. Launches of different keys may share what is compiled.
        """
        compiled = self._compiled.get(key)
        if compiled is None:
            self._compiled[key] = self.kernel[grid](*arguments, **constants)  # None under the interpreter
            return
        compiled[grid](*arguments, *[value for name, value in constants.items() if name != "num_warps"])


def alignment(*tensors: Any) -> tuple[bool, ...]:
    """Whether they begin at multiples of 16 bytes: of tensors that may be views."""
    return tuple(tensor.data_ptr() % 16 == 0 for tensor in tensors)
