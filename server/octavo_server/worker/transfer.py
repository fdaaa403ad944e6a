"""Copies between host and device that nobody waits for.

From memory that is not pinned, CUDA lets the caller wait until the device has come to the copy: a step that is launched
behind a running one would wait for that one. The caching allocator keeps a pinned tensor until its copy is through.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

_ALIGNMENT: Final = 64  # bytes, of each tensor within a common copy: a multiple of what kernels read at once


def upload(
    values: Sequence[int] | Sequence[float] | np.ndarray, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """A tensor of `values` on the device; on CUDA its copy is only enqueued."""
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def download(tensor: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
    """The tensor in host memory; on CUDA not to be read before what was enqueued until here is through.

    memory: that is pinned already, as wide as the tensor, and as long or longer.
    """
    if tensor.device.type == "cpu":
        return tensor
    if memory is None:
        memory = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return memory[: len(tensor)].copy_(tensor, non_blocking=True)


def upload_together(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Tensors of all the arrays, in one copy; on CUDA it is only enqueued. On the CPU they share the arrays' memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    ends = np.cumsum([-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays]).tolist()
    host = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=True)
    memory = host.numpy()
    for start, array in zip([0, *ends], arrays, strict=False):
        memory[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    there = host.to(device, non_blocking=True)
    return [
        there[start : start + array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
        for start, array in zip([0, *ends], arrays, strict=False)
    ]
