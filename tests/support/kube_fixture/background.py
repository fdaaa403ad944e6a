"""An event loop in a thread of its own: what a session starts outlives the loops of its single tests."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from aiohttp import web

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LARGEST_BODY = 16 * 2**20


class Background:
    """Runs coroutines and HTTP servers for callers in any thread, until `close`."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._runners: list[web.AppRunner] = []
        self._thread = threading.Thread(target=self.loop.run_forever, name="kube-fixture", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 30) -> T:
        """Run `work` on the loop and wait for what it returns or raises."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def serve(self, handler: Handler, tls: ssl.SSLContext | None = None) -> int:
        """Let `handler` answer every request to a port of 127.0.0.1, and return that port.

        A handler is cancelled when its client goes: a watch that nobody reads must not live on.
        """

        async def start() -> int:
            app = web.Application(client_max_size=LARGEST_BODY)
            app.router.add_route("*", "/{path:.*}", handler)
            runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            self._runners.append(runner)
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            return int(runner.addresses[0][1])

        return self.run(start())

    def close(self) -> None:
        """Stop the servers, cancel what still runs, and end the thread."""

        async def stop() -> None:
            for runner in self._runners:
                await runner.cleanup()
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self.run(stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=10)
        self.loop.close()
