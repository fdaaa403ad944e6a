# mypy: disable-error-code="no-untyped-call"
"""Launches of kernels whose cost for the host shows: past what Triton looks at before each.

`kernel[grid](…)` binds and classifies the arguments and compares every global that the kernel has seen, and then asks
the driver about each tensor: 48 µs where the device is busy for 5. What comes of all that depends, for the kernels
here, on little, which the caller names.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from triton.runtime.driver import driver


@dataclass(frozen=True, slots=True)
class _Compiled:
    """What a launch takes: Triton's launcher, CUDA's function, and what stands in their arguments every time."""

    run: Any
    function: Any
    metadata: Any
    constants: tuple[Any, ...]


class Launcher:
    """A kernel, compiled once for each key."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._compiled: dict[Hashable, _Compiled] = {}

    def __call__(
        self, key: Hashable, grid: tuple[int, int, int], arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        """Launches it on the first argument's device, in the current stream.

        constants: those of the kernel's signature, which come last in it, in their order; `num_warps`. key: equal only
        where types, constants, the alignment of tensors to 16 bytes and the divisibility of numbers by 16 are. Hooks
        of Triton's profiler are not called.
        """
        compiled = self._compiled.get(key)
        if compiled is None:
            found = self.kernel[grid](*arguments, **constants)
            # None under the interpreter; without a function where kernels are compiled ahead, and this one is noted.
            if getattr(found, "function", None) is not None:
                values = tuple(value for name, value in constants.items() if name != "num_warps")
                self._compiled[key] = _Compiled(found.run, found.function, found.packed_metadata, values)
            return
        stream = driver.active.get_current_stream(arguments[0].get_device())
        compiled.run(
            *grid,
            stream,
            compiled.function,
            compiled.metadata,
            None,  # for hooks, of which there are none
            None,
            None,
            *[argument.data_ptr() if isinstance(argument, torch.Tensor) else argument for argument in arguments],
            *compiled.constants,
        )


def alignment(*tensors: Any) -> tuple[bool, ...]:
    """Whether they begin at multiples of 16 bytes: of tensors that may be views."""
    return tuple(tensor.data_ptr() % 16 == 0 for tensor in tensors)
