"""Processes that do what a thread could not be stopped from: asked a line of JSON at a time, killed when they stall.

What a request brings to be run or compiled (a chat template's messages, a grammar) may take any time and memory.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Collection
from typing import Any, Final

import msgspec

PIPE_BYTES: Final = 2**20  # what Linux allows everybody
READ_BYTES: Final = 64 * 1024  # at a time: room is made for as many
# No keys and no paths of the server's: the little that Python and the clock need.
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TZ", "LANG")


# By its own timer, or by what it did: whoever asks the same again gets no further.
_OWN_DOING: Final = (signal.SIGPROF, signal.SIGSEGV, signal.SIGABRT)


class Stopped(Exception):
    """A process gave no answer; the message says why. `by_question`: by what it was asked, and not by chance."""

    def __init__(self, message: str, *, by_question: bool = False) -> None:
        super().__init__(message)
        self.by_question = by_question


class LineProcess:
    """One process, asked one thing at a time."""

    def __init__(self, module: str) -> None:
        """module: what it runs, with nothing but the environment that Python needs."""
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # A session of its own: Ctrl-C in a terminal is for the server, which ends its processes in order.
        self._process = subprocess.Popen(
            (sys.executable, "-m", module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("a process was started without its pipes")
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        for pipe in (self._stdin, self._stdout):  # long chats in few pieces
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.questions, self.answers = self._stdin.fileno(), self._stdout.fileno()

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
        if not answer:
            raise self.stopped(late=time.monotonic() >= deadline)
        return reply_of(answer)

    def stopped(self, *, late: bool) -> Stopped:
        """Ends it, as it gave no answer; returns why. late: there was no time left for one."""
        self.end()
        number = -self._process.returncode
        if number == signal.SIGPROF:
            return Stopped("it came to no end in the time that it has, and was stopped", by_question=True)
        if late:
            return Stopped("the process that was to do it did not answer")
        return Stopped("the process that was to do it broke down", by_question=number in _OWN_DOING)

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

    def write(self, pending: memoryview) -> memoryview:
        """Never waits; returns what is left of it. Raises BrokenPipeError."""
        try:
            return pending[os.write(self.questions, pending[:PIPE_BYTES]) :]
        except BlockingIOError:
            return pending

    def read(self) -> bytes:
        """A piece of an answer, once there is one; empty if the process has gone."""
        return os.read(self.answers, READ_BYTES)

    def _exchange(self, line: bytes, deadline: float) -> bytes:
        """Writes a line and reads one; empty if the other side is gone or the deadline has passed."""
        poll, received = select.poll(), bytearray()
        poll.register(self._stdout, select.POLLIN)
        try:
            pending = self.write(memoryview(line))  # mostly all of it
            if pending:
                poll.register(self._stdin, select.POLLOUT)
            while not received.endswith(b"\n"):
                ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
                if not ready:
                    return b""
                for descriptor, _ in ready:
                    if descriptor == self.answers:
                        piece = self.read()
                        if not piece:
                            return b""
                        received += piece
                        continue
                    pending = self.write(pending)
                    if not pending:
                        poll.unregister(descriptor)
        except BrokenPipeError:
            return b""
        return bytes(received)


class LinePool:
    """Processes of one kind, which live on from line to line. Safe to use from several threads.

    There is one after `begin`, and more while others are busy: as many as threads ask. One that was killed is replaced
    when it is needed.
    """

    def __init__(self, module: str, start: Any, patience: float) -> None:
        """start: what each process is told first. patience: seconds for an answer."""
        self._module, self._start, self.patience = module, as_line(start), patience
        self._lock = threading.Lock()
        self._idle: list[LineProcess] = []
        self._all: set[LineProcess] = set()
        weakref.finalize(self, _end_all, self._all)

    def begin(self) -> dict[str, Any]:
        """Start a process, and say what it answers to the first line.

        Raises:
            Stopped: there was no answer.
        """
        process, reply = self._new()
        self.give_back(process)
        return reply

    def ask(self, question: Any) -> dict[str, Any]:
        """The answer to a line.

        Raises:
            Stopped: there was none in time, the process ended, or its first line is "invalid" to it.
        """
        process = self._take()
        reply = process.ask(as_line(question), self.patience)
        self.give_back(process)
        return reply

    def idle(self) -> LineProcess | None:
        """One that can be asked, whoever takes it; None if one had to be started."""
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.alive:
                    return process
                process.end()
        return None

    def give_back(self, process: LineProcess) -> None:
        """It has answered."""
        with self._lock:
            self._idle.append(process)

    def close(self) -> None:
        """End the processes, also those that are busy."""
        with self._lock:
            idle, self._idle = self._idle, []
            busy = self._all.difference(idle)
        _end_all(idle)
        for process in busy:
            process.kill()  # whoever waits for its answer ends it

    def _take(self) -> LineProcess:
        if (idle := self.idle()) is not None:
            return idle
        process, reply = self._new()
        if "invalid" in reply:
            process.end()
            raise Stopped(str(reply["invalid"]))
        return process

    def _new(self) -> tuple[LineProcess, dict[str, Any]]:
        process = LineProcess(self._module)
        with self._lock:
            self._all.difference_update([other for other in self._all if not other.alive])
            self._all.add(process)
        return process, process.ask(self._start, self.patience)


def reply_of(answer: bytes) -> dict[str, Any]:
    """What an answer says."""
    reply: dict[str, Any] = msgspec.json.decode(answer)
    return reply


def as_line(value: Any) -> bytes:
    """One line of JSON. Quick, as long texts hold the interpreter meanwhile; what is no UTF-8 is escaped."""
    try:
        return msgspec.json.encode(value) + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value).encode() + b"\n"


def _end_all(processes: Collection[LineProcess]) -> None:
    for process in tuple(processes):
        process.end()
