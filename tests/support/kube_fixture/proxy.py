"""A proxy in front of any API server, real or emulated, that breaks what `Faults` says.

The faults live on the road, not in the server: each test of them runs unchanged on every kind of control plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from kube_fixture.background import Background
from kube_fixture.faults import Faults, RequestRecord

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length"}
)
REASONS = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}


@dataclass(frozen=True)
class Upstream:
    """An API server and how to be its administrator. `headers` take the place of the proxy's own token."""

    url: str
    tls: ssl.SSLContext | None = None
    headers: dict[str, str] = field(default_factory=dict)


def failure(code: int, message: str) -> dict[str, Any]:
    """A Status object as the API server writes it."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": REASONS.get(code, "Unknown"),
        "code": code,
    }


EXPIRED = json.dumps({"type": "ERROR", "object": failure(410, "too old resource version")}).encode() + b"\n"


@dataclass(eq=False)
class OpenWatch:
    """A watch in progress, and whether what was sent of it ends with a whole event."""

    request: web.Request
    response: web.StreamResponse
    whole: bool = True


class FaultProxy:
    """Serves `upstream` at `url` to whoever has `token`; other credentials are passed on as they are.

    With TLS, also in front of the emulator: kubectl sends no token without.
    """

    def __init__(self, background: Background, upstream: Upstream, token: str, tls: ssl.SSLContext) -> None:
        self.faults = Faults()
        self.faults.on_change = self._changed
        self._background = background
        self._upstream = upstream
        self._token = f"Bearer {token}"
        self._watches: set[OpenWatch] = set()
        self._breaks = 0
        self._oldest_watch = 0
        self._last_lists: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self._healed = asyncio.Event()
        self._session = background.run(self._connect())
        self.url = f"https://127.0.0.1:{background.serve(self._handle, tls)}"

    def close(self) -> None:
        self._background.run(self._session.close())

    async def _connect(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._upstream.tls or True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        return aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        record = RequestRecord(
            method=request.method,
            path=request.path,
            query=dict(request.query),
            content_type=request.headers.get("Content-Type", ""),
            user_agent=request.headers.get("User-Agent", ""),
            body=body,
        )
        fault = self.faults.take(record)
        outcome = fault.outcome if fault else None
        if fault and outcome not in {"after", "hang"}:
            fault.hit.set()
        if self.faults.hanging:
            await self._healed.wait()
            return self._abort(request)
        if self.faults.refusing or outcome == "disconnect":
            return self._abort(request)
        if isinstance(outcome, int):
            record.status = outcome
            return self._refuse(outcome, "injected by the test")
        if record.watch:
            return await self._watch(request, record)
        if self.faults.lists_stale and request.raw_path in self._last_lists:
            return self._answer(record, *self._last_lists[request.raw_path])
        async with self._forward(request, body) as answer:
            status, headers, content = answer.status, self._headers(answer.headers), await answer.read()
        if fault and outcome in {"after", "hang"}:
            fault.hit.set()
            if outcome == "hang":
                await self._healed.wait()
            return self._abort(request)
        if request.method == "GET" and record.name is None and status == 200:
            self._last_lists[request.raw_path] = (status, headers, content)
        return self._answer(record, status, headers, content)

    async def _watch(self, request: web.Request, record: RequestRecord) -> web.StreamResponse:
        if self.faults.watches_refused:
            record.status = 503
            return self._refuse(503, "watches are down")
        version = record.query.get("resourceVersion", "")
        if version.isdigit() and 0 < int(version) < self._oldest_watch:
            record.status = 200
            return web.Response(body=EXPIRED, content_type="application/json")
        breaks = self._breaks
        async with self._forward(request, b"") as answer:
            if breaks != self._breaks:  # broken while it began
                return self._abort(request)
            record.status = answer.status
            response = web.StreamResponse(status=answer.status, headers=self._headers(answer.headers))
            response.enable_chunked_encoding()
            watch = OpenWatch(request, response)
            self._watches.add(watch)
            try:
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                    watch.whole = piece.endswith(b"\n")
                await response.write_eof()
            except (ConnectionError, aiohttp.ClientError):
                self._abort(request)
            finally:
                self._watches.discard(watch)
            return response

    def _forward(self, request: web.Request, body: bytes) -> Any:
        headers = self._headers(request.headers)
        if headers.get("Authorization") == self._token:
            del headers["Authorization"]
            headers |= self._upstream.headers
        url = URL(self._upstream.url + request.raw_path, encoded=True)
        return self._session.request(request.method, url, headers=headers, data=body or None, allow_redirects=False)

    @staticmethod
    def _headers(headers: Any) -> dict[str, str]:
        return {name.title(): value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}

    @staticmethod
    def _answer(record: RequestRecord, status: int, headers: dict[str, str], body: bytes) -> web.Response:
        record.status = status
        return web.Response(status=status, headers=headers, body=body)

    @staticmethod
    def _refuse(code: int, message: str) -> web.Response:
        retry = {"Retry-After": "1"} if code in {429, 503} else {}
        return web.json_response(failure(code, message), status=code, headers=retry)

    @staticmethod
    def _abort(request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)

    def _changed(self, change: str) -> None:
        self._background.run(self._change(change))

    async def _change(self, change: str) -> None:
        if change == "reset":
            self._last_lists.clear()
        if change in {"heal", "reset"}:
            self._healed.set()
            self._healed = asyncio.Event()
            return
        self._breaks += 1
        if change == "expire":
            self._oldest_watch = await self._revision()
        for watch in list(self._watches):
            with contextlib.suppress(ConnectionError):
                if change == "expire" and watch.whole and watch.response.prepared:
                    await watch.response.write(EXPIRED)
                    await watch.response.write_eof()
            if watch.request.transport is not None:
                watch.request.transport.close() if change == "expire" else watch.request.transport.abort()

    def version(self) -> str:
        """Of the API server, as v1.36.2."""
        return str(self._background.run(self._get("/version"))["gitVersion"])

    async def _revision(self) -> int:
        return int((await self._get("/api/v1/namespaces?limit=1"))["metadata"]["resourceVersion"])

    async def _get(self, path: str) -> Any:
        headers = {**self._upstream.headers, "Accept": "application/json", "Accept-Encoding": "identity"}
        async with self._session.get(self._upstream.url + path, headers=headers) as answer:
            answer.raise_for_status()
            return await answer.json()
