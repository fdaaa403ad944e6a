"""How many pieces of memory Python holds in a process, asked for by a signal: to see what is kept of requests."""

import gc
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any, Final

import serving

_TOLD: Final = 12  # types of objects that the difference of two counts names


def install(directory: Path) -> None:
    """From now on SIGUSR1 leaves a count in the directory."""

    def count(_signal: int, _frame: FrameType | None) -> None:
        gc.collect()
        types = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
        found = {"blocks": sys.getallocatedblocks(), "types": types}
        fresh = directory / f"{os.getpid()}.new"
        fresh.write_text(json.dumps(found))
        fresh.rename(directory / f"{os.getpid()}.json")

    signal.signal(signal.SIGUSR1, count)


def ask(pid: int, directory: Path) -> dict[str, Any]:
    """What a process counts now."""
    path = directory / f"{pid}.json"
    path.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    serving.until(path.exists)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def growth(before: dict[str, Any], after: dict[str, Any]) -> tuple[int, list[tuple[str, int]]]:
    """(blocks, the types of which there are more now)."""
    more = Counter(after["types"])
    more.subtract(before["types"])
    return after["blocks"] - before["blocks"], [each for each in more.most_common(_TOLD) if each[1] > 0]
