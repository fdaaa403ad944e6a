"""One running `octavo serve`: a process group of its own, its output, and a death that leaves nothing behind."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

LISTENING: Final = re.compile(r"^octavo: listening on (https?://\S+)$")
TAIL_LINES: Final = 40
LINE_LIMIT: Final = 64 * 1024
LAST_WORDS_SECONDS: Final = 5.0

OnLine = Callable[[str], None]


class ReplicaProcess:
    """A started replica. `url` is where it listens, once it has said so; `tail` the last lines of its output."""

    def __init__(self, process: asyncio.subprocess.Process, on_line: OnLine | None) -> None:
        self._process = process
        self._on_line = on_line
        self._swept = False
        self.url: str | None = None
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        # Both pipes are read all the time: a full pipe would stop the replica in the middle of a step.
        self._readers = [
            asyncio.create_task(self._read(stream)) for stream in (process.stdout, process.stderr) if stream is not None
        ]

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: Mapping[str, str], on_line: OnLine | None = None
    ) -> "ReplicaProcess":
        """Start `command` (its first word an absolute path), which dies with this process.

        Must be called in the main thread: the kernel's guard is tied to the thread that forks.

        Raises:
            OSError: the process cannot be started (no memory, no process left, no such file).
        """
        guard = Path(__file__).with_name("die_with_parent.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", str(guard), str(os.getpid())),
            *command,
            env=dict(environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
            start_new_session=True,  # Ctrl-C in the terminal is for us: we drain, then stop
        )
        return cls(process, on_line)

    @property
    def pid(self) -> int:
        """The process's id, and its group's."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for the end and clean up after it; the exit code, negative for a signal. Safe to cancel and repeat."""
        code = await self._process.wait()
        # Its leader is gone: whatever is left of the group (an engine that lost its API process) goes too.
        self.kill()
        self._swept = True
        # A grandchild that left the group could hold the pipes open for ever: last words are bounded in time.
        await asyncio.wait(self._readers, timeout=LAST_WORDS_SECONDS)
        for reader in self._readers:
            reader.cancel()
        return code

    async def stop(self, grace_seconds: float) -> int:
        """Ask the leader to drain (SIGTERM) and kill the whole group if it has not ended after `grace_seconds`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            return await asyncio.wait_for(self.wait(), grace_seconds)
        except TimeoutError:
            self.kill()
            return await self.wait()

    def kill(self) -> None:
        """SIGKILL to the whole group, now; nothing once it is known to be gone (its id may be another's by then)."""
        if self._swept:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                raw = await stream.readline()
            except ValueError:  # longer than LINE_LIMIT: the reader has dropped it
                continue
            if not raw:
                return
            self._take(raw.decode(errors="replace").rstrip())

    def _take(self, line: str) -> None:
        if (found := LISTENING.match(line)) and self.url is None:
            self.url = found.group(1)
        elif line:
            self.tail.append(line)
        if line and self._on_line is not None:
            self._on_line(line)
