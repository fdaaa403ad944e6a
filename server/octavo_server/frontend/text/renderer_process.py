"""The process that renders chat templates, as its parent sees it: asked a line at a time, killed when it stalls."""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any, Final

PIPE_BYTES: Final = 2**20  # what Linux allows everybody
_COMMAND: Final = (sys.executable, "-m", "octavo_server.frontend.text.template_worker")
# No keys and no paths of the server's: the little that Python and the clock need.
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TZ", "LANG")


class Stopped(Exception):
    """A renderer gave no answer; the message says why."""


class Renderer:
    """One process, asked one thing at a time."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # A session of its own: Ctrl-C in a terminal is for the server, which ends its processes in order.
        self._process = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("a process was started without its pipes")
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        for pipe in (self._stdin, self._stdout):  # long chats in few pieces
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, line: bytes, seconds: float) -> dict[str, Any]:
        """Its answer to a line. Without one it is ended.

        Raises:
            Stopped: there was none within `seconds`, or the process ended.
        """
        deadline = time.monotonic() + seconds
        answer = self._exchange(line, deadline)
        if answer:
            reply: dict[str, Any] = json.loads(answer)
            return reply
        self.end()
        if self._process.returncode == -signal.SIGALRM or time.monotonic() >= deadline:
            raise Stopped("it came to no end in the time that it has, and was stopped")
        raise Stopped("the process that renders it broke down")

    def kill(self) -> None:
        """Whatever it does; of no effect if it has ended."""
        self._process.kill()

    def end(self) -> None:
        """Kill it and give back what it used."""
        self.kill()
        self._process.wait()
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                pipe.close()

    def _exchange(self, line: bytes, deadline: float) -> bytes:
        """Writes a line and reads one; empty if the other side is gone or the deadline has passed."""
        poll, pending, received = select.poll(), memoryview(line), bytearray()
        poll.register(self._stdin, select.POLLOUT)
        poll.register(self._stdout, select.POLLIN)
        while not received.endswith(b"\n"):
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                return b""
            for descriptor, _ in ready:
                if descriptor == self._stdout.fileno():
                    piece = os.read(descriptor, PIPE_BYTES)
                    if not piece:
                        return b""
                    received += piece
                    continue
                try:
                    pending = pending[os.write(descriptor, pending[:PIPE_BYTES]) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    return b""
                if not pending:
                    poll.unregister(descriptor)
        return bytes(received)
