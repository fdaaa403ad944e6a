"""Starts the engine process, watches it, and starts it again when it dies. One that hangs is killed.

Its start message is one line of JSON on stdin, `{"config":
EngineConfig, "socket": path, "epoch": integer, "log_level": text, "log_format": text}`; it connects to the socket,
which is bound before it is told. Should the API process be killed, the kernel and the engine's own look at its parent
end it.
"""

import asyncio
import json
import logging
import secrets
import signal
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from octavo_server.config import ServerConfig
from octavo_server.errors import EngineError
from octavo_server.frontend.client import EngineClient
from octavo_server.frontend.crash_report import Crash, keep_report
from octavo_server.frontend.engine_child import ENGINE_COMMAND, EngineChild, bytecode_environment
from octavo_server.frontend.start_watch import StartWatch
from octavo_server.step_ring import read_steps, steps_path

log = logging.getLogger(__name__)

RESTARTS: Final = 3
RESTARTS_WITHIN_SECONDS: Final = 300.0
LOOK_SECONDS: Final = 1.0


class Supervisor:
    """Keeps one engine process alive for the client."""

    def __init__(
        self,
        client: EngineClient,
        config: ServerConfig,
        *,
        command: Sequence[str] = ENGINE_COMMAND,
        first: EngineChild | None = None,
    ) -> None:
        """first: an engine that is there already, and has been told nothing yet."""
        self._client = client
        self._config = config
        self._engine_config = config.engine()
        self._command = tuple(command)
        self._environment = bytecode_environment(config.compile_cache_dir)
        self._first = first
        self._deaths: deque[float] = deque()
        self._process: EngineChild | None = None
        self._crash: Crash | None = None
        self._stopping = False

    async def run(self) -> None:
        """Until `stop`, or until there is no use in starting the engine again.

        Raises:
            EngineError: the engine cannot start, or died too often. The message is one line.
        """
        was_ready = False
        while not self._stopping:
            with tempfile.TemporaryDirectory(prefix="octavo-") as directory:  # of mode 0700
                ended = await self._run_once(Path(directory) / "engine.sock")
                failure, was_ready = self._client.failure, was_ready or self._client.ready is not None
                self._client.close(f"{ended} while it worked on this request")
                if self._crash is not None:
                    await self._report(self._crash)
            if self._stopping:
                return
            if not was_ready:
                raise EngineError(failure or f"{ended} while starting (phase: {self._client.phase})")
            self._client.phase = "restarting"
            self._count_death(failure or ended)

    async def stop(self, grace_seconds: float) -> None:
        """End the engine: asked first, killed after `grace_seconds`."""
        self._stopping = True
        process = self._process
        if process is None or process.has_ended:
            return
        if self._client.ready is not None:
            self._client.shut_down()
        else:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), grace_seconds)
        except TimeoutError:
            log.warning("the engine did not end within %.0f s and is killed", grace_seconds)
            process.kill()
            await process.wait()

    async def _run_once(self, socket: Path) -> str:
        """One life of the engine; returns how it ended."""
        epoch = secrets.randbits(53)
        self._client.open(socket, epoch)
        start = {
            "config": self._engine_config.model_dump(mode="json"),
            "socket": str(socket),
            "epoch": epoch,
            "log_level": self._config.log_level,
            "log_format": self._config.log_format,
        }
        process, self._first = self._first or EngineChild(self._command, self._environment), None
        self._process = process
        self._crash = None
        started = time.monotonic()
        try:
            await _write_line(process, json.dumps(start))
            if self._stopping:
                process.kill()
            ended = await self._watch(process)
            # One that refused to start said why itself, and that is all there is to say.
            if not self._stopping and (self._client.ready is not None or self._client.failure is None):
                self._crash = self._examine(ended, process.pid, time.monotonic() - started, socket)
            return ended
        finally:
            process.discard()

    async def _watch(self, process: EngineChild) -> str:
        """Until the process has ended; returns how. One that is silent for too long is killed."""
        ended, hung = asyncio.create_task(process.wait(), name="end of the engine"), False
        start = StartWatch(process.pid)
        try:
            while not (await asyncio.wait({ended}, timeout=LOOK_SECONDS))[0]:
                silent, starting = self._client.silent_seconds, self._client.ready is None
                hangs = start.hangs(silent) if starting else self._client.hangs
                # Looked at twice: if it was this process that stood still, the engine's words are there, not read yet.
                if hung and hangs:
                    process.kill()  # also ends a process that is stopped
                    return f"the engine process was silent for {silent:.0f} s and was killed"
                hung = hangs
            code = ended.result()
        finally:
            ended.cancel()
        if code > 0:
            await self._client.last_words()
        return _describe_end(code)

    def _examine(self, ended: str, pid: int, lived_seconds: float, socket: Path) -> Crash:
        """What is known of an engine's end, as long as it is."""
        client = self._client
        return Crash(
            ended=ended if client.failure is None else f"{ended}: {client.failure}",
            pid=pid,
            phase=client.phase,
            lived_seconds=lived_seconds,
            open_choices=client.num_open,
            some_ids=client.some_ids,
            stats=client.stats,
            steps=read_steps(steps_path(str(socket))),
        )

    async def _report(self, crash: Crash) -> None:
        """Log it, and keep it in a file."""
        report = crash.report(self._engine_config)
        path = await asyncio.to_thread(keep_report, report, self._config.crash_report_dir)
        log.error("crash report%s:\n%s", "" if path is None else f" (also in {path})", report)

    def _count_death(self, reason: str) -> None:
        now = time.monotonic()
        while self._deaths and now - self._deaths[0] > RESTARTS_WITHIN_SECONDS:
            self._deaths.popleft()
        self._deaths.append(now)
        if len(self._deaths) > RESTARTS:
            minutes = RESTARTS_WITHIN_SECONDS / 60
            raise EngineError(f"the engine died {len(self._deaths)} times within {minutes:.0f} minutes, last: {reason}")
        log.error("%s; starting it again (%d of %d)", reason, len(self._deaths), RESTARTS)


async def _write_line(process: EngineChild, line: str) -> None:
    try:
        await process.tell(line.encode() + b"\n")
    except OSError:
        log.debug("the engine ended before it read its start message")


def _describe_end(code: int) -> str:
    if code >= 0:
        return f"the engine process ended with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"the engine process was ended by {name}"
