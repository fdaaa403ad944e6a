"""How much shared memory a program may have, by the device: an H100 has more than twice what most others have."""

from functools import cache

import torch
from triton.runtime.driver import driver

_HOPPER = 227 * 1024


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program may have, as Triton will check; those of Hopper where there is no GPU."""
    if device.type != "cuda":
        return _HOPPER
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(driver.active.utils.get_device_properties(index)["max_shared_mem"])


def fitting(rows: int, keys: int, stages: int, row_bytes: int, device: torch.device) -> tuple[int, int]:
    """Keys of a tile, and stages, of attention: as given where they fit, else fewer stages, and then fewer keys.

    rows: of q's tile, which is there once; K and V have a tile in each stage.
    """
    room = shared_memory(device) // row_bytes - rows
    while 2 * keys * stages > room and (stages > 2 or keys > 16):
        keys, stages = (keys, stages - 1) if stages > 2 else (keys // 2, stages)
    return keys, stages
