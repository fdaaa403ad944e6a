"""uvicorn, embedded: its signals are ours, it listens at one or two ports, and it looks after slow connections."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import uvicorn

from octavo_server.frontend.access.doors import Door
from octavo_server.frontend.http_protocol import HEAD_SECONDS, IDLE_SECONDS, BoundedHttpProtocol

BACKLOG: Final = 2048  # connections that the kernel has made and we have not taken
_TICKS_PER_LOOK: Final = 10  # a tick is a tenth of a second


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound socket, the door behind it, and the TLS that it speaks, if any."""

    socket: socket.socket
    door: Door
    tls: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.socket.getsockname()[:2]
        spelt = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return f"{'http' if self.tls is None else 'https'}://{spelt}"


class HttpServer(uvicorn.Server):
    """uvicorn that leaves the signals to the process it runs in."""

    def __init__(self, config: uvicorn.Config, listeners: Sequence[Listener]) -> None:
        super().__init__(config)
        self._listeners = listeners
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so by the event."""
        self.servers = [await self._listen(listener) for listener in self._listeners]
        self.started = True
        self.listening.set()

    async def _listen(self, listener: Listener) -> asyncio.Server:
        """Of a request's `state`, uvicorn makes a copy of what is given here: the door is where it came through."""

        def connection() -> BoundedHttpProtocol:
            return BoundedHttpProtocol(self.config, self.server_state, {"door": listener.door})

        tls: dict[str, Any] = {} if listener.tls is None else {"ssl_handshake_timeout": HEAD_SECONDS}
        loop = asyncio.get_running_loop()
        return await loop.create_server(connection, sock=listener.socket, ssl=listener.tls, backlog=BACKLOG, **tls)

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections now and then."""
        if counter % _TICKS_PER_LOOK == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, BoundedHttpProtocol):
                    connection.look(now)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take none."""
        yield


def http_server(app: Any, listeners: Sequence[Listener], *, log_level: str, graceful_seconds: int) -> HttpServer:
    """A server for an ASGI app; what it does not answer within `graceful_seconds` of its end is cut off."""
    config = uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning" if log_level == "info" else log_level,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(IDLE_SECONDS),
        timeout_graceful_shutdown=graceful_seconds,
    )
    return HttpServer(config, listeners)
