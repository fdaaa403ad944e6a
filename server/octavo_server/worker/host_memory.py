"""Host memory for pages: slots of one page each, over all layers, in chunks that are reserved one at a time.

On CUDA a chunk is pinned (page-locked), which takes some tens of milliseconds: so one chunk at a time, between steps.
It is registered with the driver rather than taken from torch's pinned allocator, which rounds up to powers of two and
returns nothing to the system.
"""

import logging
import mmap
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import torch

CHUNK_BYTES: Final = 256 * 2**20
_log = logging.getLogger(__name__)


class HostMemory:
    """`num_slots` slots of `page_bytes` contiguous bytes, of which the first `ready` are there."""

    def __init__(self, num_slots: int, page_bytes: int, word: torch.dtype, device: torch.device) -> None:
        """word: the dtype that `rows` come in; its size divides `page_bytes`."""
        self.num_slots = num_slots
        self.page_bytes = page_bytes
        self.ready = 0
        self._word = word
        self._device = device
        self._slots_per_chunk = max(1, CHUNK_BYTES // page_bytes)
        self._chunks: list[mmap.mmap] = []
        self._rows: list[torch.Tensor] = []
        self._pinned: list[int] = []  # addresses
        # Memory that is given back while it is registered spoils what is allocated in its place later.
        weakref.finalize(self, unpin, self._pinned).atexit = False

    def grow(self) -> int:
        """Reserves the next chunk; the number of slots that it adds, 0 if all are there or the system gives no more."""
        count = min(self._slots_per_chunk, self.num_slots - self.ready)
        if count <= 0:
            return 0
        try:
            chunk = map_memory(count * self.page_bytes)
            rows = torch.frombuffer(chunk, dtype=self._word).view(count, -1)
            if self._device.type == "cuda":
                pin(rows, self._device)
                self._pinned.append(rows.data_ptr())
        except (OSError, RuntimeError) as error:
            _log.warning("host memory for pages ends at %d of %d slots: %s", self.ready, self.num_slots, error)
            self.num_slots = self.ready
            return 0
        self._chunks.append(chunk)
        self._rows.append(rows)
        self.ready += count
        return count

    def rows(self, first: int, count: int) -> torch.Tensor:
        """[count, words of a page]: neighbouring slots of one chunk."""
        chunk, row = divmod(first, self._slots_per_chunk)
        return self._rows[chunk][row : row + count]

    def buffer(self, slot: int) -> memoryview:
        """The bytes of one slot, writable."""
        chunk, row = divmod(slot, self._slots_per_chunk)
        return memoryview(self._chunks[chunk])[row * self.page_bytes : (row + 1) * self.page_bytes]

    def stretches(self, slots: Sequence[int]) -> list[tuple[int, int, int]]:
        """(index of the first, that slot, how many): where `slots` are neighbours, in memory too."""
        found: list[tuple[int, int, int]] = []
        for index, slot in enumerate(slots):
            if found:
                begin, first, count = found[-1]
                if slot == first + count and slot % self._slots_per_chunk:
                    found[-1] = (begin, first, count + 1)
                    continue
            found.append((index, slot, 1))
        return found

    def close(self) -> None:
        """Gives the memory back. No copy may be under way."""
        unpin(self._pinned)
        self._rows.clear()
        self._chunks.clear()
        self.num_slots = self.ready = 0


def map_memory(num_bytes: int) -> mmap.mmap:
    """Memory of its own, which goes back to the system as a whole. Raises OSError if there is not so much."""
    chunk = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for advice in ("MADV_HUGEPAGE", "MADV_DONTFORK"):  # a fork would copy what the device writes to
        if hasattr(mmap, advice):
            with suppress(OSError):  # kernels without it
                chunk.madvise(getattr(mmap, advice))
    return chunk


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def unpin(addresses: list[int]) -> None:
    """Takes all of them out of the list, and from the driver."""
    while addresses:
        _cudart().cudaHostUnregister(addresses.pop())


def pin(rows: torch.Tensor, device: torch.device) -> None:
    """Registers the tensor's memory with the driver. Raises RuntimeError if that refuses."""
    code = _cudart().cudaHostRegister(rows.data_ptr(), rows.numel() * rows.element_size(), 0)
    if int(code) == 0:
        return
    # The driver's last error stays until it is asked for, by whatever kernel is launched next: let it be this one.
    with suppress(RuntimeError):
        torch.zeros(1, device=device).add_(1)
    raise RuntimeError(f"cudaHostRegister: error {int(code)}")
