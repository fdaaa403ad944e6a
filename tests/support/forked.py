"""Processes of the API server that begin with its modules imported, which takes most of the time of a start.

One process imports them and nothing else, has no thread, and forks for each server, which then is a process as any
other: session, environment, working directory and descriptors are its own.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any, Final

_MODULES: Final = ("octavo_server.frontend.server", "octavo_server.frontend.start_watch", "serving")
_LONGEST: Final = 1 << 20


class ForkedProcess:
    """As much of `subprocess.Popen` as tests use."""

    def __init__(self, pid: int, stdout: IO[str], status: int) -> None:
        self.pid = pid
        self.stdout: IO[str] | None = stdout
        self.returncode: int | None = None
        self._status = status
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit status, negative for a signal, if it has ended."""
        with self._lock:
            if self.returncode is None and select.select([self._status], [], [], 0)[0]:
                told = os.read(self._status, 64)
                os.close(self._status)
                if not told:
                    raise RuntimeError("the process that forks has gone")
                self.returncode = int(told)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked server", timeout or 0.0)
            with contextlib.suppress(OSError, ValueError):  # another thread was told, and has closed it
                select.select([self._status], [], [], 0.1)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Forker:
    """The process that forks, as its parent sees it. It ends with the parent, however that ends."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST)
        path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        self._socket = ours
        self._lock = threading.Lock()
        atexit.register(self._end)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()

    def fork(self, arguments: list[str], environment: Mapping[str, str], log: IO[bytes]) -> ForkedProcess:
        out, out_end = os.pipe()
        status, status_end = os.pipe()
        message = json.dumps({"arguments": arguments, "environment": dict(environment), "directory": str(Path.cwd())})
        with self._lock:
            socket.send_fds(self._socket, [message.encode()], [out_end, log.fileno(), status_end])
            told = self._socket.recv(64)
        os.close(out_end)
        os.close(status_end)
        if not told:
            raise RuntimeError("the process that forks has gone")
        return ForkedProcess(int(told), os.fdopen(out), status)


_forker = cache(_Forker)


def start(arguments: list[str], environment: Mapping[str, str], log: IO[bytes]) -> ForkedProcess:
    """`serving.main(*arguments)` in a process of its own, stderr being the log and stdout a pipe."""
    return _forker().fork(arguments, environment, log)


def _become(request: dict[str, Any], out: int, log: int) -> int:
    """In the child: all that was the parent's is left behind. Returns the server's exit status."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(out, 1)
    os.dup2(log, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    return int(sys.modules["serving"].main(*request["arguments"]))


def _child(request: dict[str, Any], out: int, log: int) -> None:
    code = 1
    try:
        code = _become(request, out, log)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _reap(pipes: dict[int, int]) -> None:
    """Tells what became of those that have ended."""
    while pipes:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        pipe = pipes.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(pipe, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(pipe)


def main(descriptor: int) -> None:
    """Forks until its parent has gone."""
    for module in _MODULES:
        importlib.import_module(module)
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise RuntimeError("a module starts threads when it is imported: there is no forking with them")
    gc.collect()
    gc.freeze()  # no collection in a child touches, and so copies, what all share
    parent = socket.socket(fileno=descriptor)
    woken, wakeup = os.pipe()
    for end in (woken, wakeup):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pipes: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([parent, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        _reap(pipes)
        if parent not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(parent, _LONGEST, 3)
        if not message:
            return
        out, log, status = descriptors
        pid = os.fork()
        if pid == 0:
            _child(json.loads(message), out, log)
        os.close(out)
        os.close(log)
        pipes[pid] = status
        parent.send(str(pid).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
