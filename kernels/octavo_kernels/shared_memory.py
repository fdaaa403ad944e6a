"""How much shared memory a program may have, by the device: an H100 has more than twice what most others have."""

from functools import cache

import torch

_HOPPER = 227 * 1024


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program may have; as on Hopper where there is no GPU."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin if device.type == "cuda" else _HOPPER


def fitting(rows: int, keys: int, stages: int, row_bytes: int, device: torch.device) -> tuple[int, int]:
    """Keys of a tile, and stages, of attention: as given where they fit, else fewer stages, and then fewer keys.

    rows: of q's tile, which is there once; K and V have a tile in each stage.
    """
    room = shared_memory(device) // row_bytes - rows
    while 2 * keys * stages > room and (stages > 2 or keys > 16):
        keys, stages = (keys, stages - 1) if stages > 2 else (keys // 2, stages)
    return keys, stages
