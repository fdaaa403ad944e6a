"""Host memory that a step's inputs go up from and its tokens come down to, with the event that says it is through.

Kept and used again: to ask for pinned memory and events takes the host several times as long as to use them.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

MOST_JOINING: Final = 64  # requests for whose rows of the sampling table there is room


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Of one step. words: `packed` [n] int32 as numpy's. tokens: [rows] int32. event: None on the CPU.

    joining: [MOST_JOINING, words] int64, what requests that join bring, see `sampling_slots`.
    """

    packed: torch.Tensor
    words: np.ndarray
    tokens: torch.Tensor
    joining: torch.Tensor
    event: torch.cuda.Event | None
    _pool: "StepMemoryPool"

    def record(self) -> None:
        """The event comes when all is through that was enqueued until here."""
        if self.event is not None:
            self.event.record()

    def release(self) -> None:
        """The event has come, and nobody reads any more what the step has left here."""
        self._pool.free.append(self)


class StepMemoryPool:
    """Memory for steps under way, as many as there happen to be. That of a step that broke does not come back."""

    def __init__(self, words: int, rows: int, device: torch.device, joining_words: int = 0) -> None:
        self._words = words
        self._rows = rows
        self._joining_words = joining_words
        self._is_cuda = device.type == "cuda"
        self.free: list[StepMemory] = []

    def take(self) -> StepMemory:
        """What it holds is of no meaning."""
        if self.free:
            return self.free.pop()
        packed, tokens = (
            torch.empty(size, dtype=torch.int32, pin_memory=self._is_cuda) for size in (self._words, self._rows)
        )
        joining = torch.empty(MOST_JOINING, self._joining_words, dtype=torch.int64, pin_memory=self._is_cuda)
        event = torch.cuda.Event(blocking=True) if self._is_cuda else None  # type: ignore[no-untyped-call]
        return StepMemory(packed, packed.numpy(), tokens, joining, event, self)
