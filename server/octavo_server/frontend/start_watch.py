"""Tells an engine's start that takes long from one that hangs.

Reading a large model from a slow disk takes minutes without a word, so silence alone says nothing before the engine is
ready. A start hangs if for `START_HANG_SECONDS` its process neither said anything, nor computed, nor read: less than
a tenth of a second of CPU time and less than a MiB. One that spins is not found here, but by whoever bounds the time
until `/ready` (the operator's startup probe does). Linux tells these figures; elsewhere no start is ever called hung.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

START_HANG_SECONDS: Final = 120.0
LEAST_CPU_SECONDS: Final = 0.1
LEAST_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class Activity:
    """What a process did since its start."""

    cpu_seconds: float
    bytes_read: int


def activity_of(pid: int) -> Activity | None:
    """By /proc; None where that does not tell."""
    directory = Path("/proc") / str(pid)
    try:
        # The second field is the program's name in parentheses, and may hold anything.
        fields = (directory / "stat").read_text().rpartition(")")[2].split()
        cpu_seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
    return Activity(cpu_seconds, _bytes_read(directory))


def _bytes_read(directory: Path) -> int:
    """By read calls, and from disk for mapped files; 0 where the kernel keeps that to itself."""
    try:
        pairs = [line.split(": ") for line in (directory / "io").read_text().splitlines()]
        return sum(int(value) for name, value in pairs if name in ("rchar", "read_bytes"))
    except (OSError, ValueError):
        return 0


class StartWatch:
    """Looks at one engine process from its start until it is ready."""

    def __init__(
        self,
        pid: int,
        activity_of: Callable[[int], Activity | None] = activity_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pid = pid
        self._activity_of = activity_of
        self._clock = clock
        self._since = clock()
        self._then = activity_of(pid)

    def hangs(self, silent_seconds: float) -> bool:
        """Whether it does; `silent_seconds` is the time since its last word. To be asked every now and then."""
        now, activity = self._clock(), self._activity_of(self._pid)
        if activity is None or self._then is None or self._works(activity) or now - silent_seconds > self._since:
            self._since, self._then = now, activity
        return now - self._since > START_HANG_SECONDS

    def _works(self, activity: Activity) -> bool:
        if self._then is None:
            return True
        computed = activity.cpu_seconds - self._then.cpu_seconds
        return computed >= LEAST_CPU_SECONDS or activity.bytes_read - self._then.bytes_read >= LEAST_BYTES
