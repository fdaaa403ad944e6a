"""The engine's last steps, in a file that outlives it: a ring of records in shared memory, written without a syscall.

The engine writes, the API process reads when the engine is gone. A record that was being written when the engine died
is left out: its number is written last.
"""

import mmap
import struct
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

STEPS: Final = 100


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One scheduler step: plain counts, and no text of anybody's. `at`: seconds of CLOCK_MONOTONIC when it began."""

    number: int
    at: float
    rows: int
    tokens: int
    running: int
    waiting: int
    new: int
    finished: int
    preempted: int
    pages_used: int
    pages_in: int
    pages_out: int

    def __str__(self) -> str:
        return " ".join(
            f"{field.name}={getattr(self, field.name):{'.6f' if field.type is float else ''}}" for field in fields(self)
        )


_RECORD: Final = struct.Struct("<qd10q")


class StepRing:
    """The engine's end."""

    def __init__(self, path: Path) -> None:
        """Make the file, or empty it."""
        with path.open("w+b") as file:
            file.truncate(STEPS * _RECORD.size)
            self._map = mmap.mmap(file.fileno(), STEPS * _RECORD.size)

    def write(self, record: StepRecord) -> None:
        """Put a step in the place of the oldest one. Numbers begin with 1."""
        at = record.number % STEPS * _RECORD.size
        packed = _RECORD.pack(*astuple(record))
        self._map[at : at + 8] = bytes(8)
        self._map[at + 8 : at + _RECORD.size] = packed[8:]
        self._map[at : at + 8] = packed[:8]


def read_steps(path: Path) -> list[StepRecord]:
    """The steps, oldest first; none where there is no such file or it holds something else."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    if len(data) != STEPS * _RECORD.size:
        return []
    records = (StepRecord(*_RECORD.unpack_from(data, at)) for at in range(0, len(data), _RECORD.size))
    return sorted((record for record in records if record.number > 0), key=lambda record: record.number)
