"""Sockets, and connections within bounds: in number, and in the time that a first request may take to arrive."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from octavo_common.errors import ConfigError

BACKLOG: Final = 2048
IDLE_SECONDS: Final = 60.0  # between two requests, the next one's head included
HEAD_SECONDS: Final = 20.0  # from a connection's beginning to the end of its first head
MAX_LINE_BYTES: Final = 16 * 1024
MAX_HEADER_BYTES: Final = 16 * 1024
MAX_CONNECTIONS: Final = 8192

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class BoundedServer(web.Server):
    """Closes connections that are too many, or from which no request comes."""

    def __init__(self, answer: Answer, most: int) -> None:
        async def heard(request: web.BaseRequest) -> web.StreamResponse:
            self._heard.add(request.protocol)
            return await answer(request)

        super().__init__(
            heard,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=IDLE_SECONDS,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        self._most = most
        self._heard: set[Any] = set()

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        """A client has come."""
        super().connection_made(handler, transport)
        if len(self.connections) > self._most:
            transport.abort()
        else:
            asyncio.get_running_loop().call_later(HEAD_SECONDS, self.look, handler, transport)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """It has gone."""
        self._heard.discard(handler)
        super().connection_lost(handler, exc)

    def look(self, handler: Any, transport: asyncio.Transport) -> None:
        """Close a connection from which nothing has come."""
        if handler not in self._heard:
            transport.abort()


def bind(host: str, port: int, flag: str) -> socket.socket:
    """A bound socket.

    Raises:
        ConfigError: the address is taken, or none of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise ConfigError(f"--host {host} {flag} {port}: {error.strerror or error}") from error
    return found


async def listen_on(
    found: socket.socket, answer: Answer, context: ssl.SSLContext | None = None, most: int | None = None
) -> web.ServerRunner:
    """Serve at a bound socket, at most so many connections."""
    runner = web.ServerRunner(BoundedServer(answer, MAX_CONNECTIONS if most is None else most), shutdown_timeout=1.0)
    await runner.setup()
    await web.SockSite(runner, found, ssl_context=context, backlog=BACKLOG).start()
    return runner
