"""The sockets that the server listens on, and how many connections they may bring."""

import contextlib
import ipaddress
import socket
import ssl
from typing import Final

from octavo_common.access.tls import Tls
from octavo_server.config import ServerConfig
from octavo_server.errors import ConfigError
from octavo_server.frontend.access.doors import Door
from octavo_server.frontend.descriptors import OTHERS, raise_limit
from octavo_server.frontend.http import Listener
from octavo_server.frontend.http_protocol import SPARE_CONNECTIONS

DEFAULT_CONNECTIONS: Final = 8192


def listen(config: ServerConfig, tls: Tls | None, sockets: contextlib.ExitStack) -> list[Listener]:
    """The ports that clients come to, the main one first; bound before anything else is tried.

    Raises:
        ConfigError: an address is taken or is none; there cannot be as many connections.
    """
    most = _max_connections(config, ports=1 if config.admin_port is None else 2)
    main = Door("only" if config.admin_port is None else "main", most)
    listener = sockets.enter_context(_bind("port", config.host, config.port))
    found = [Listener(listener, main, None if tls is None else tls.main)]
    if config.admin_port is not None:
        host = config.host if config.admin_host is None else config.admin_host
        listener = sockets.enter_context(_bind("admin-port", host, config.admin_port))
        found.append(Listener(listener, Door("admin", most), None if tls is None else tls.admin))
    return found


def is_exposed(config: ServerConfig, listener: socket.socket) -> bool:
    """Whether others than this machine reach the API and are asked for nothing."""
    address = ipaddress.ip_address(str(listener.getsockname()[0]).partition("%")[0])
    local = (getattr(address, "ipv4_mapped", None) or address).is_loopback
    shown = config.ssl_ca_certs is not None and config.ssl_cert_reqs in (None, ssl.CERT_REQUIRED)
    return not (local or config.api_key or config.api_key_file or shown)


def _bind(flag: str, host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"--{flag.replace('port', 'host')} {host}: {error.strerror or error}") from error
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
        raise ConfigError(f"--{flag} {port} on {host}: {reason}; choose another, or 0 for any free one") from error
    return listener


def _max_connections(config: ServerConfig, ports: int) -> int:
    """How many each port may take: a connection is an open file.

    Raises:
        ConfigError: more are asked for than the system allows.
    """
    asked, limit = config.max_connections or DEFAULT_CONNECTIONS, raise_limit()
    most = (limit - OTHERS) // ports - SPARE_CONNECTIONS
    if config.max_connections is not None and asked > most:
        raise ConfigError(
            f"--max-connections {asked}: that takes {ports * (asked + SPARE_CONNECTIONS) + OTHERS} open files, and "
            f"this process may have {limit} (ulimit -Hn): choose fewer"
        )
    return max(1, min(asked, most))
