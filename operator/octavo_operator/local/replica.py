"""Keeps one replica alive: starts it, asks whether it is ready, starts it again with growing delays when it dies."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import httpx

from octavo_operator.local.process import OnLine, ReplicaProcess

Phase = Literal["Pending", "Starting", "Ready", "NotReady", "Draining", "Backoff", "Stopped"]


@dataclass(frozen=True, slots=True)
class Launch:
    """How a replica is started: `command` makes the command line for a port (0: any free one).

    `port` is the wish: if it is taken, any free one is used. Times are in seconds.
    """

    command: Callable[[int], Sequence[str]]
    environment: Mapping[str, str]
    host: str = "127.0.0.1"
    port: int = 0
    ready_path: str = "/ready"
    poll_seconds: float = 0.2
    startup_seconds: float = 600.0
    grace_seconds: float = 30.0
    first_delay: float = 1.0
    longest_delay: float = 60.0
    on_line: Callable[[str, str], None] | None = None  # replica's name, line


@dataclass(slots=True)
class ReplicaState:
    """What is known of a replica now. `message` is the phase of its start, or why it is not ready.

    `since`: when it last began to be not ready, by the monotonic clock. `startup`: seconds that its last start took,
    from the process to ready; None while it starts.
    """

    name: str
    phase: Phase = "Pending"
    message: str = ""
    url: str | None = None
    pid: int | None = None
    restarts: int = 0
    ever_ready: bool = False
    last_exit: str | None = None  # in words
    exit_code: int | None = None
    tail: tuple[str, ...] = field(default=())
    since: float = field(default_factory=time.monotonic)
    startup: float | None = None

    @property
    def id(self) -> str:
        """Of this life: who knows what an earlier one had in its cache must not take it for this one."""
        return f"{self.name}.{self.restarts}" if self.restarts else self.name

    @property
    def ready(self) -> bool:
        """Whether it takes new requests."""
        return self.phase == "Ready"


class Replica:
    """One replica over all its lives. `changed` is called after each change of `state`."""

    def __init__(self, name: str, launch: Launch, client: httpx.AsyncClient, changed: Callable[[], None]) -> None:
        self.state = ReplicaState(name)
        self._launch = launch
        self._client = client
        self._changed = changed
        self._stopping = asyncio.Event()
        self._process: ReplicaProcess | None = None
        self._port = launch.port  # wished for
        self._asked_port = 0  # in this life
        self._ready_since: float | None = None  # of this life, by the monotonic clock

    async def run(self) -> None:
        """Live until `stop` is called; returns when no process is left."""
        failures = 0
        try:
            while not self._stopping.is_set():
                await self._live_once()
                if self._stopping.is_set() or self._lost_its_port():
                    continue
                failures = 1 if self._was_steady() else failures + 1
                await self._back_off(min(self._launch.first_delay * 2 ** (failures - 1), self._launch.longest_delay))
        finally:
            self.kill()
            self._set("Stopped", "")

    def stop(self) -> None:
        """Ask for the end: `run` drains the process and returns."""
        self._stopping.set()

    def kill(self) -> None:
        """SIGKILL to the process and all its children, now."""
        if self._process is not None:
            self._process.kill()

    async def _live_once(self) -> None:
        """Start a process and stay with it to its end."""
        self._process, self._ready_since = None, None
        self.state.startup, self.state.since = None, time.monotonic()
        self._set("Starting", "starting the process")
        try:
            process = self._process = self._start()
        except OSError as error:
            self._ended(f"cannot be started: {error.strerror or error}", None, ())
            return
        self.state.pid = process.pid
        exited = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        attending = asyncio.create_task(self._attend(process))
        try:
            await asyncio.wait({exited, stopping, attending}, return_when=asyncio.FIRST_COMPLETED)
            too_slow = attending.result() if attending.done() else None
            attending.cancel()
            if not exited.done():
                self._set("Draining", "")
                await process.stop(self._launch.grace_seconds)
            code = await exited
        finally:
            for task in (exited, stopping, attending):
                task.cancel()
        self._ended(too_slow or describe_exit(code), code, tuple(process.tail))

    def _start(self) -> ReplicaProcess:
        self._asked_port = self._port if is_free(self._launch.host, self._port) else 0
        on_line: OnLine | None = None
        if (tell := self._launch.on_line) is not None:
            name, say = self.state.name, tell

            def on_line(line: str) -> None:
                say(name, line)

        return ReplicaProcess.start(self._launch.command(self._asked_port), self._launch.environment, on_line)

    async def _attend(self, process: ReplicaProcess) -> str:
        """Ask for readiness again and again; returns, with the reason, only if the start takes too long."""
        deadline = time.monotonic() + self._launch.startup_seconds
        while self._ready_since is not None or time.monotonic() < deadline:
            if process.url is not None:
                self._listening(process.url)
                ready, message = await ask_ready(self._client, process.url + self._launch.ready_path)
                self._observed(ready, message)
            await asyncio.sleep(self._launch.poll_seconds)
        return f"was not ready within {self._launch.startup_seconds:g} s"

    def _listening(self, url: str) -> None:
        if self.state.url != url:
            self.state.url = url
            # After a restart the same address again, for the sake of those who hold it.
            self._port = httpx.URL(url).port or self._port

    def _observed(self, ready: bool, message: str) -> None:
        if ready:
            self.state.ever_ready = True
            if self._ready_since is None:
                self._ready_since = time.monotonic()
                self.state.startup = self._ready_since - self.state.since
            self._set("Ready", "")
        else:
            if self.state.ready:
                self.state.since = time.monotonic()
            self._set("Starting" if self._ready_since is None else "NotReady", message)

    def _was_steady(self) -> bool:
        """Whether the life that ended was long enough for the delays to begin anew."""
        return self._ready_since is not None and time.monotonic() - self._ready_since >= self._launch.longest_delay

    def _lost_its_port(self) -> bool:
        """Whether somebody took the port between our look and the replica's bind: then it just tries another."""
        died_unheard = self._process is not None and self._process.url is None
        return died_unheard and self._asked_port != 0 and not is_free(self._launch.host, self._asked_port)

    def _ended(self, reason: str, code: int | None, tail: tuple[str, ...]) -> None:
        self.state.pid = None
        self.state.last_exit, self.state.exit_code = reason, code
        self.state.tail = tail

    async def _back_off(self, seconds: float) -> None:
        self.state.restarts += 1
        self._set("Backoff", f"{self.state.last_exit}; starting again in {seconds:g} s")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _set(self, phase: Phase, message: str) -> None:
        if (phase, message) != (self.state.phase, self.state.message):
            self.state.phase, self.state.message = phase, message
            self._changed()


async def ask_ready(client: httpx.AsyncClient, url: str) -> tuple[bool, str]:
    """Whether the replica takes requests and, if not, the phase of its start or the reason that it gives."""
    try:
        answer = await client.get(url)
    except httpx.HTTPError as error:
        return False, f"does not answer ({type(error).__name__})"
    if answer.is_success:
        return True, ""
    try:
        body = answer.json()
    except ValueError:
        body = None
    told = body.get("phase") or body.get("status") or body.get("message") if isinstance(body, dict) else None
    return False, str(told) if told else f"answers {answer.status_code}"


def is_free(host: str, port: int) -> bool:
    """Whether one could listen on `port` now. It can be taken a moment later: be ready for that."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
