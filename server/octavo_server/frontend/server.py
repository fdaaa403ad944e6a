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
from collections.abc import Sequence
from typing import Any, Final

import uvloop

from octavo_common import logs
from octavo_common.access.file_watch import FileWatch
from octavo_common.access.tls import Tls
from octavo_server.config import ServerConfig
from octavo_server.errors import ConfigError
from octavo_server.frontend.app import create_app
from octavo_server.frontend.descriptors import check_limit
from octavo_server.frontend.engine_child import ENGINE_COMMAND, EngineChild
from octavo_server.frontend.http import HttpServer, Listener, http_server
from octavo_server.frontend.listening import is_exposed, listen
from octavo_server.frontend.model import load_model
from octavo_server.frontend.observed import ObservedRequests
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.supervisor import Supervisor
from octavo_server.frontend.tracing import OtlpTracing

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
    logs.configure(config.log_level, config.log_format)
    with contextlib.ExitStack() as sockets:
        tls = None if config.ssl_certfile is None else Tls(config, config.ssl_certfile)
        listeners = listen(config, tls, sockets)
        if is_exposed(config, listeners[0].socket):
            told = "whoever reaches %s may use it: give --api-key-file, or put something before it that asks for keys"
            log.warning(told, listeners[0].url)
        return uvloop.run(_Server(config, listeners, tls, (engine_command, engine)).run())


class _Server:
    """The parts of a running server."""

    def __init__(
        self,
        config: ServerConfig,
        listeners: Sequence[Listener],
        tls: Tls | None,
        engine: tuple[Sequence[str], EngineChild | None],
    ) -> None:
        self._config = config
        self._listeners = listeners
        self._tls = tls
        self._engine_command, self._engine = engine
        self._grace_seconds = QUICK_GRACE_SECONDS
        self._watch = FileWatch()
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._tracing: OtlpTracing | None = None

    async def run(self) -> int:
        self._state = state = ServerState(self._config)
        check_limit(state.admission.limit)
        self._take_signals()
        self._supervisor = Supervisor(state.client, self._config, command=self._engine_command, first=self._engine)
        if (endpoint := self._config.otlp_traces_endpoint) is not None:
            self._tracing = OtlpTracing(endpoint, state.names[0])
        app = ObservedRequests(create_app(state), self._config.log_requests, self._tracing)
        level = self._config.log_level
        http = http_server(app, self._listeners, log_level=level, graceful_seconds=_FLUSH_SECONDS)
        serving = asyncio.create_task(http.serve(), name="http")
        engine = asyncio.create_task(self._supervisor.run(), name="engine")
        loading = asyncio.create_task(self._load_model(), name="tokenizer")
        try:
            await self._say_where(http, serving)
            self._watch_files()
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
            main, *others = self._listeners
            for other in others:
                log.info("the admin port is %s", other.url)
            print(f"octavo: listening on {main.url}", flush=True)

    def _watch_files(self) -> None:
        """Keys, and certificates, may change."""
        self._watch.add(self._state.keys.files, self._state.keys.reload)
        if self._tls is not None and self._config.enable_ssl_refresh:
            self._watch.add(self._tls.files, self._tls.reload)
        self._watch.start()

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
        self._watch.stop()
        self._state.draining = True
        for end in (self._state.client.end_streams, self._state.grammars.end_waiting):
            end("the server is shutting down")
        await self._supervisor.stop(self._grace_seconds)
        http.should_exit = True
        serving, *others = tasks
        for task in others:
            task.cancel()
        await asyncio.gather(serving, *others, return_exceptions=True)
        if self._tracing is not None:
            await self._tracing.close(self._grace_seconds)
        self._state.close()
