"""The engine's last hundred steps, in a file that outlives it: what a crash report shows.

A ring of records of fixed size in a mapped file beside the socket. A record is written with a copy in memory, so it is
there after a SIGKILL, and costs a step a microsecond. The API process reads it once the engine is gone.
"""

import mmap
import time
from pathlib import Path
from typing import Final

from octavo_server.step import SchedulerOutput

NUM_RECORDS: Final = 100
RECORD_BYTES: Final = 256


def steps_path(socket: str) -> Path:
    """Where the engine that is connected to this socket keeps its ring."""
    return Path(f"{socket}.steps")


def describe(output: SchedulerOutput, num_prefill_tokens: int, running: int, waiting: int, num_free: int) -> str:
    """What a record says of a step, all but what became of it: requests, tokens, free pages and moves of pages."""
    moves = (output.swap_out, output.swap_in, output.disk_stores, output.disk_loads)
    return (
        f"{time.time():.3f} {running} running, {waiting} waiting, "
        f"{output.total_tokens} tokens ({num_prefill_tokens} of prefill), "
        f"{num_free} pages free, {len(output.preempted_ids)} preempted, "
        f"moves {'/'.join(str(len(each)) for each in moves)}"
    )


class StepRing:
    """Writes the ring. A record is one line of text behind the number of its step."""

    def __init__(self, path: Path | None = None) -> None:
        """Begins an empty ring; without a path it is in memory alone. Raises OSError."""
        if path is None:
            self._map = mmap.mmap(-1, NUM_RECORDS * RECORD_BYTES)
            return
        with path.open("w+b") as file:
            file.truncate(NUM_RECORDS * RECORD_BYTES)
            self._map = mmap.mmap(file.fileno(), NUM_RECORDS * RECORD_BYTES)

    def write(self, step: int, text: str) -> None:
        """Writes a step's record, in place of its former one or of that a hundred steps ago."""
        record = f"{step} {text}".encode()[: RECORD_BYTES - 1]
        start = step % NUM_RECORDS * RECORD_BYTES
        self._map[start : start + RECORD_BYTES] = record.ljust(RECORD_BYTES, b"\0")

    def read(self) -> list[str]:
        """The records, oldest first."""
        return _records(bytes(self._map))

    def close(self) -> None:
        """Lets go of the file, and leaves it."""
        self._map.close()


def read_steps(path: Path) -> list[str]:
    """The records, oldest first; of one that was being written, what there is of it. None if there is no ring."""
    try:
        return _records(path.read_bytes())
    except OSError:
        return []


def _records(content: bytes) -> list[str]:
    records = []
    for start in range(0, len(content), RECORD_BYTES):
        text = content[start : start + RECORD_BYTES].rstrip(b"\0").decode(errors="replace")
        number = text.partition(" ")[0]
        if number.isdecimal():
            records.append((int(number), text))
    return [text for _, text in sorted(records)]
