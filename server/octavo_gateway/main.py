"""The life of a gateway: listen, learn which replicas there are, serve, drain, end.

SIGTERM: `/ready` says 503 at once, while requests are still taken for `drain_delay_seconds`, until everybody has
noticed; then nothing new is, and open requests finish within `drain_seconds`. SIGINT, or another signal, ends at once.
"""

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
from collections.abc import Coroutine
from typing import Any, Final

import uvloop
from aiohttp import web

from octavo_common import logs
from octavo_common.access.file_watch import FileWatch
from octavo_common.access.tls import Tls
from octavo_common.errors import ConfigError
from octavo_gateway.config import GatewayConfig
from octavo_gateway.discovery import Discovery
from octavo_gateway.endpoints_file import EndpointsFile
from octavo_gateway.gateway import Gateway
from octavo_gateway.handler import Door, Handler
from octavo_gateway.listening import bind, listen_on

log = logging.getLogger(__name__)

INTERRUPTED: Final = 130
GC_THRESHOLDS: Final = (10_000, 20, 100)


def run(config: GatewayConfig) -> int:
    """Serve until a signal ends it; returns the exit status.

    Raises:
        OctavoError: the address is taken, a file cannot be used, or replicas cannot be found.
    """
    logs.configure(config.log_level, config.log_format)
    # A stream takes two descriptors, a client's and a replica's.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    tls = None if config.ssl_certfile is None else Tls(config, config.ssl_certfile)
    with contextlib.ExitStack() as sockets:
        main = sockets.enter_context(bind(config.host, config.port, "--port"))
        admin = None
        if config.admin_port is not None:
            host = config.host if config.admin_host is None else config.admin_host
            admin = sockets.enter_context(bind(host, config.admin_port, "--admin-port"))
        return uvloop.run(_serve(config, main, admin, tls))


async def _serve(config: GatewayConfig, main: socket.socket, admin: socket.socket | None, tls: Tls | None) -> int:
    gateway = Gateway(config)
    watch = FileWatch()
    watch.add(gateway.access.ring.files, gateway.access.ring.reload)
    if config.replica_api_key_file is not None:
        watch.add([config.replica_api_key_file], gateway.read_replica_key)
    if tls is not None and config.enable_ssl_refresh:
        watch.add(tls.files, tls.reload)
    context = None if tls is None else tls.main
    runner = await listen_on(main, Handler(gateway, Door(alone=admin is None)), context, config.max_connections)
    runners = [runner]
    if admin is not None:
        runners.append(await listen_on(admin, Handler(gateway, Door(admin=True)), None if tls is None else tls.admin))
        log.info("the admin port is %s", _url(admin, tls))
    work: list[Coroutine[Any, Any, None]] = [
        _discovery(config).run(gateway.publish),
        gateway.scraper.run(),
        gateway.means.attempts.watch(),
    ]
    tasks = [asyncio.create_task(each) for each in work]
    signals = _signals()
    print(f"octavo gateway: listening on {_url(main, tls)}", flush=True)
    watch.start()
    gc.collect()  # what the start made stays: the collector, for which all streams wait, has little to look at
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        return await _until_the_end(gateway, runner, tasks, signals)
    finally:
        watch.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in runners:
            await each.cleanup()
        await gateway.http.close()


def _discovery(config: GatewayConfig) -> Discovery:
    if config.endpoints_file is not None:
        return EndpointsFile(config.endpoints_file)
    if config.is_in_cluster:
        from octavo_gateway.endpoint_slices import (
            EndpointSlices,
        )  # imported where there is a cluster, and not elsewhere

        return EndpointSlices(config.namespace, config.kubeconfig)
    raise ConfigError("where are the replicas? Give --endpoints-file, or --namespace or --all-namespaces in a cluster")


def _signals() -> "asyncio.Queue[signal.Signals]":
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    return signals


async def _until_the_end(
    gateway: Gateway,
    runner: web.ServerRunner,
    tasks: "list[asyncio.Task[None]]",
    signals: "asyncio.Queue[signal.Signals]",
) -> int:
    """Serve until a signal (the exit status is returned), or until a part fails (its error is raised)."""
    ending = asyncio.create_task(signals.get())
    done, _ = await asyncio.wait({ending, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    if not ending.done():
        ending.cancel()
        raise ConfigError("a part of the gateway ended by itself")
    gateway.draining = True
    if ending.result() == signal.SIGINT:
        return INTERRUPTED
    hurry = asyncio.create_task(signals.get())
    await asyncio.wait({hurry}, timeout=gateway.config.drain_delay_seconds)
    for site in list(runner.sites):
        await site.stop()  # nothing new: connections are refused
    gateway.closing = True
    idle = asyncio.create_task(gateway.idle.wait())
    await asyncio.wait({hurry, idle}, timeout=gateway.config.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
    if not idle.done():
        log.warning("open requests are cut off: %d", gateway.open)
    for each in (hurry, idle):
        each.cancel()
    return 0


def _url(found: socket.socket, tls: Tls | None) -> str:
    host, port = found.getsockname()[:2]
    spelt = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{'http' if tls is None else 'https'}://{spelt}"
