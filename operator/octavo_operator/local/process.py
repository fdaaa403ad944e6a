"""One running `octavo serve` or `octavo gateway`: a process group of its own, its output, a death without remains."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

LISTENING: Final = re.compile(r"^octavo(?: gateway)?: listening on (https?://\S+)$")
TAIL_LINES: Final = 40
LINE_LIMIT: Final = 64 * 1024
LAST_WORDS_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.05

OnLine = Callable[[str], None]


class ReplicaProcess:
    """A started replica. `url` is where it listens, once it has said so; `tail` the last lines of its output.

    Not asyncio's subprocess: its `wait` returns only when the pipes are closed, which a surviving grandchild holds
    open, and it reaps the leader before the rest of the group could be ended under an id that is still surely theirs.
    """

    def __init__(self, process: subprocess.Popen[bytes], on_line: OnLine | None) -> None:
        self._process = process
        self._on_line = on_line
        self.url: str | None = None
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        # Both pipes are read all the time: a full pipe would stop the replica in the middle of a step.
        self._readers = [asyncio.create_task(self._read(pipe)) for pipe in (process.stdout, process.stderr) if pipe]

    @classmethod
    def start(
        cls, command: Sequence[str], environment: Mapping[str, str], on_line: OnLine | None = None
    ) -> "ReplicaProcess":
        """Start `command` (its first word an absolute path), which dies with this process.

        Must be called in the main thread: the kernel's guard is tied to the thread that forks.

        Raises:
            OSError: no process can be started (no memory, no process left).
        """
        guard = Path(__file__).with_name("die_with_parent.py")
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(guard), str(os.getpid()), *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is for us: we drain, then stop
        )
        return cls(process, on_line)

    @property
    def pid(self) -> int:
        """The process's id, and its group's."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for the end and clean up after it; the exit code, negative for a signal. Safe to cancel and repeat."""
        while not self._has_ended():  # noqa: ASYNC110 (the kernel sets no event that leaves the leader unreaped everywhere)
            await asyncio.sleep(POLL_SECONDS)
        # The leader is gone but not reaped, so the group's id is still its own: whatever is left of it (an engine that
        # lost its API process) goes too.
        self.kill()
        code = self._process.wait()
        # A grandchild that left the group could hold the pipes open for ever: last words are bounded in time.
        await asyncio.wait(self._readers, timeout=LAST_WORDS_SECONDS)
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        return code

    async def stop(self, grace_seconds: float) -> int:
        """Ask the leader to drain (SIGTERM) and kill the whole group if it has not ended after `grace_seconds`."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            return await asyncio.wait_for(self.wait(), grace_seconds)
        except TimeoutError:
            self.kill()
            return await self.wait()

    def kill(self) -> None:
        """SIGKILL to the whole group, now; nothing once the leader is reaped (the id may be another's by then)."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _has_ended(self) -> bool:
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    async def _read(self, pipe: IO[bytes]) -> None:
        stream = asyncio.StreamReader(limit=LINE_LIMIT)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), pipe
        )
        try:
            while not stream.at_eof():
                with contextlib.suppress(ValueError):  # longer than LINE_LIMIT: dropped
                    self._take((await stream.readline()).decode(errors="replace").rstrip())
        finally:
            transport.close()

    def _take(self, line: str) -> None:
        if not line:
            return
        if (found := LISTENING.match(line)) and self.url is None:
            self.url = found.group(1)
        else:
            self.tail.append(line)
        if self._on_line is not None:
            self._on_line(line)
