"""Copies between host and device that nobody waits for.

From memory that is not pinned, CUDA lets the caller wait until the device has come to the copy: a step that is launched
behind a running one would wait for that one. The caching allocator keeps a pinned tensor until its copy is through.
"""

from collections.abc import Sequence

import numpy as np
import torch


def upload(
    values: Sequence[int] | Sequence[float] | np.ndarray, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """A tensor of `values` on the device; on CUDA its copy is only enqueued."""
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def download(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in host memory; on CUDA not to be read before what was enqueued until here is through."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
