"""What malloc keeps of memory that nobody uses."""

import ctypes
from collections.abc import Callable
from typing import Final

_malloc_trim: Final[Callable[[int], int] | None] = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's


def give_memory_back() -> None:
    """To the system: steps leave megabytes of free pages in malloc's heap, which by itself gives back only its end."""
    if _malloc_trim is not None:
        _malloc_trim(0)
