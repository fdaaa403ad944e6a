"""The life of the API process: listen, start the engine, serve, drain, end.

HTTP opens first, so that probes see the start's progress. SIGTERM: not ready at once, open requests finish within
`drain_seconds`, then the engine is ended. SIGINT, or a second SIGTERM, ends at once. Exit status: 0 after SIGTERM, 130
after SIGINT; what goes wrong is raised as an `OctavoError` of one line.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

import uvloop

from octavo_server.config import ServerConfig
from octavo_server.errors import ConfigError
from octavo_server.frontend.app import create_app
from octavo_server.frontend.engine_child import ENGINE_COMMAND, EngineChild
from octavo_server.frontend.http import HttpServer, http_server
from octavo_server.frontend.model import load_model
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.supervisor import Supervisor

log = logging.getLogger(__name__)

INTERRUPTED: Final = 130
ENGINE_GRACE_SECONDS: Final = 10.0
QUICK_GRACE_SECONDS: Final = 1.0
GC_THRESHOLDS: Final = (10_000, 20, 100)
_FLUSH_SECONDS: Final = 2  # for answers that are complete but not sent


def run(config: ServerConfig, engine_command: Sequence[str] = ENGINE_COMMAND, engine: EngineChild | None = None) -> int:
    """Serve until a signal ends it; returns the exit status.

    engine: one that was started early, with that command.

    Raises:
        OctavoError: the address is taken, the model cannot be served, or the engine died for good.
    """
    logging.basicConfig(level=config.log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    with _listen(config) as listener:
        return uvloop.run(_Server(config, listener, engine_command, engine).run())


class _Server:
    """The parts of a running server."""

    def __init__(
        self, config: ServerConfig, listener: socket.socket, engine_command: Sequence[str], engine: EngineChild | None
    ) -> None:
        self._config = config
        self._listener = listener
        self._engine_command = engine_command
        self._engine = engine
        self._grace_seconds = QUICK_GRACE_SECONDS
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()

    async def run(self) -> int:
        self._state = state = ServerState(self._config)
        self._take_signals()
        self._supervisor = Supervisor(state.client, self._config, command=self._engine_command, first=self._engine)
        http = http_server(create_app(state), log_level=self._config.log_level, graceful_seconds=_FLUSH_SECONDS)
        serving = asyncio.create_task(http.serve(sockets=[self._listener]), name="http")
        engine = asyncio.create_task(self._supervisor.run(), name="engine")
        loading = asyncio.create_task(self._load_model(), name="tokenizer")
        try:
            await self._say_where(http, serving)
            return await self._until_the_end(serving, engine, loading)
        finally:
            await self._end(http, serving, engine, loading)

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signals.put_nowait, number)

    async def _load_model(self) -> None:
        config = self._config
        parsers = config.tool_parser, config.reasoning_parser
        self._state.model = await self._state.in_thread(
            load_model, config.model, config.chat_template, config.chat_template_content_format, parsers
        )
        # What the start made stays, and what requests make is mostly gone with its last reference: the collector has
        # little to find, and all streams wait while it looks.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    async def _say_where(self, http: HttpServer, serving: "asyncio.Task[None]") -> None:
        """The line that `octavo up` waits for; the only one on stdout."""
        listening = asyncio.create_task(http.listening.wait(), name="listening")
        await asyncio.wait({listening, serving}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if http.listening.is_set():
            print(f"octavo: listening on http://{_spell(self._listener)}", flush=True)

    async def _until_the_end(self, *tasks: "asyncio.Task[None]") -> int:
        """Serve until a signal (the exit status is returned) or until a part fails (its error is raised)."""
        ending = asyncio.create_task(self._signals.get(), name="signals")
        pending: set[asyncio.Task[Any]] = {ending, *tasks}
        try:
            while not ending.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # raises the error of the part that failed
                    if task.get_name() == "http":
                        raise ConfigError("the HTTP server ended by itself")
        finally:
            ending.cancel()
        return await self._drain(ending.result())

    async def _drain(self, number: signal.Signals) -> int:
        """Let open requests finish, within bounds; a second signal ends the wait."""
        self._state.draining = True
        if number == signal.SIGINT:
            return INTERRUPTED
        self._grace_seconds = ENGINE_GRACE_SECONDS
        idle = asyncio.create_task(self._state.wait_until_idle(), name="idle")
        hurry = asyncio.create_task(self._signals.get(), name="hurry")
        done, late = await asyncio.wait(
            {idle, hurry}, timeout=self._config.drain_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for task in late:
            task.cancel()
        if idle not in done:
            log.warning(
                "open requests are cut off: %s", "a second signal" if hurry in done else "the time to drain is over"
            )
        return 0

    async def _end(self, http: HttpServer, *tasks: "asyncio.Task[None]") -> None:
        """Stop everything, whatever state it is in."""
        self._state.draining = True
        self._state.client.end_streams("the server is shutting down")
        await self._supervisor.stop(self._grace_seconds)
        http.should_exit = True
        serving, *others = tasks
        for task in others:
            task.cancel()
        await asyncio.gather(serving, *others, return_exceptions=True)
        self._state.close()


def _listen(config: ServerConfig) -> socket.socket:
    """The listening socket, bound before anything else is tried."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"--host {config.host}: {error.strerror or error}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise ConfigError(
            f"--port {config.port} on {config.host}: {reason}; choose another, or 0 for any free one"
        ) from error
    return listener


def _spell(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
