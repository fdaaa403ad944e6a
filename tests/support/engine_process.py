"""The engine process as the API process sees it: started with a line on stdin, spoken to through the socket."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

from octavo_server import ipc
from octavo_server.ipc import AddRequest, Outputs, RequestOutput, SamplingParams

PATIENCE = 60.0  # seconds until a test gives up; nothing is measured by it

_LAUNCH = "import sys\n{prelude}\nfrom octavo_server.engine_process import main\nsys.exit(main())"
_BETWEEN = """
import subprocess, sys
child = subprocess.Popen([sys.executable, *sys.argv[2:]], stdin=subprocess.PIPE)
open(sys.argv[1], "w").write(str(child.pid))
child.stdin.write(sys.stdin.buffer.readline())
child.stdin.flush()
child.wait()
"""


class EngineProcess:
    """Starts an engine and talks to it.

    `prelude` is code that the process runs first, to break something on purpose. With `between` there is a process
    between this one and the engine, which can be killed.
    """

    def __init__(
        self, model: Path, *, prelude: str | None = None, between: bool = False, epoch: int = 7, **config: Any
    ) -> None:
        self.epoch = epoch
        self.inbox: list[ipc.EngineMessage] = []
        self.results: dict[str, list[RequestOutput]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="octavo-test-")
        self.path = str(Path(self._folder.name) / "engine.sock")
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(f"ipc://{self.path}")
        how = ["-m", "octavo_server.engine_process"] if prelude is None else ["-c", _LAUNCH.format(prelude=prelude)]
        self._pid_file = Path(self._folder.name) / "pid"
        how = ["-c", _BETWEEN, str(self._pid_file), *how] if between else how
        self.log = Path(self._folder.name) / "stderr"
        with self.log.open("wb") as stderr:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                [sys.executable, *how], stdin=subprocess.PIPE, stderr=stderr, env=environment
            )
        start = {"config": {"model": str(model), "device": "cpu", **config}, "socket": self.path, "epoch": epoch}
        self.start_line = json.dumps(start).encode() + b"\n"
        self._write_stdin(self.start_line)

    def _write_stdin(self, line: bytes) -> None:
        if self.process.stdin is None:
            raise RuntimeError("stdin is no pipe")
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.socket.close()
        self._context.term()
        self._folder.cleanup()

    @property
    def engine_pid(self) -> int:
        """Also where it is a grandchild."""
        return int(self._pid_file.read_text()) if self._pid_file.exists() else self.process.pid

    def send(self, message: ipc.FrontendMessage) -> None:
        self.socket.send(ipc.encoder.encode(message))

    def add(self, request_id: str, prompt: list[int], **sampling: Any) -> None:
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 8, **sampling})
        self.send(AddRequest(self.epoch, request_id, prompt, params, time.time()))

    def abort(self, *request_ids: str) -> None:
        self.send(ipc.Abort(self.epoch, list(request_ids)))

    def receive(self) -> ipc.EngineMessage:
        if not self.socket.poll(int(PATIENCE * 1000)):
            raise AssertionError(f"the engine says nothing; its log:\n{self.log.read_text()}")
        message: ipc.EngineMessage = ipc.engine_decoder.decode(self.socket.recv())
        assert message.epoch == self.epoch
        self.inbox.append(message)
        if isinstance(message, Outputs):
            for output in message.outputs:
                self.results.setdefault(output.request_id, []).append(output)
        return message

    def wait_for(self, kind: type[Any], accept: Callable[[Any], bool] = lambda _message: True) -> Any:
        """The next message of a kind that is accepted."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            message = self.receive()
            if isinstance(message, kind) and accept(message):
                return message
            if isinstance(message, ipc.Failed):
                raise AssertionError(f"the engine failed: {message.message}\n{self.log.read_text()}")
        raise AssertionError(f"no such {kind.__name__} came")

    def ready(self) -> ipc.Ready:
        message: ipc.Ready = self.wait_for(ipc.Ready)
        return message

    def finish(self, *request_ids: str) -> dict[str, tuple[list[int], RequestOutput]]:
        """(all tokens, last output) of each request, once all have ended."""
        while not all(
            self.results.get(name, [None])[-1] and self.results[name][-1].finish_reason for name in request_ids
        ):
            self.wait_for(Outputs)
        return {
            name: ([token for output in self.results[name] for token in output.token_ids], self.results[name][-1])
            for name in request_ids
        }

    def idle(self) -> ipc.EngineStats:
        """The state once nothing runs and nothing waits."""
        message: Outputs = self.wait_for(Outputs, lambda m: m.stats.running + m.stats.waiting == 0 and not m.outputs)
        return message.stats

    def wait_for_exit(self) -> int:
        return self.process.wait(PATIENCE)
