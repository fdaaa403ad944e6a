"""Every request comes here: routes, keys, bounds, the log's line."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, unquote

import msgspec
from aiohttp import web

from octavo_common import logs
from octavo_common.errors import RequestError
from octavo_common.version import __version__
from octavo_gateway import response_ids
from octavo_gateway.access import Caller
from octavo_gateway.asked import ROUTES, parse
from octavo_gateway.bodies import read_body
from octavo_gateway.delivery import Delivery
from octavo_gateway.gateway import Gateway
from octavo_gateway.refusals import refuse
from octavo_gateway.replicas_http import ReplicaLost
from octavo_gateway.request_ids import new_id, sane_id
from octavo_gateway.timing import Timing

log = logging.getLogger("octavo.access")

PARSE_HERE_BYTES: Final = 256 * 1024  # more is parsed by a thread
OPEN: Final = frozenset({"/health", "/ready"})
_QUIET: Final = frozenset({"/", "/health", "/ready", "/metrics", "/version"})
_RESPONSE: Final = re.compile(r"/v1/responses/([^/]{1,512})(/input_items|/cancel)?")
Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Door:
    """A port. admin: the one for probes and scrapers, where nobody needs a key; alone: there is no other one."""

    admin: bool = False
    alone: bool = True


class Handler:
    """Answers the requests of one port."""

    def __init__(self, gateway: Gateway, door: Door) -> None:
        self._gateway = gateway
        self._door = door
        self._short: dict[str, Answer] = {"/health": self._health, "/ready": self._ready, "/version": self._version}
        if door.admin or door.alone:
            self._short["/metrics"] = self._metrics
        if not door.admin:
            self._short |= {"/": self._root, "/v1/models": self._models}
        log.setLevel(logging.CRITICAL if gateway.config.log_requests == "none" else logging.NOTSET)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer, count, and log."""
        loop = asyncio.get_running_loop()
        timing = Timing(sane_id(request.headers.get("X-Request-Id")) or new_id(), loop.time())
        logs.request_id.set(timing.request_id)  # from here on no exception's words, which may quote, are logged
        self._gateway.begins()
        timing.status = 499  # what other logs call a client that left
        try:
            answer = await self._answered(request, timing)
            timing.status = answer.status
            if not answer.prepared:
                answer.headers.update({"x-request-id": timing.request_id, "Server": "octavo"})
                if self._gateway.draining:  # the next request goes to another gateway
                    answer.force_close()
            return answer
        finally:
            self._gateway.ended(timing)
            self._log(request, timing, loop.time())

    async def _answered(self, request: web.BaseRequest, timing: Timing) -> web.StreamResponse:
        try:
            return await self._route(request, timing)
        except RequestError as error:
            timing.error = error.code or error.type
            return refuse(error, timing.limits)
        except ConnectionResetError:  # the client's: a replica's is a ReplicaLost
            raise asyncio.CancelledError from None
        except Exception:
            log.exception("a request failed")
            told = RequestError(
                "the gateway failed to handle this request; its log says why", status=500, type="server_error"
            )
            timing.error = "server_error"
            return refuse(told)

    async def _route(self, request: web.BaseRequest, timing: Timing) -> web.StreamResponse:
        path, method = request.path, request.method
        key = None if path in OPEN or self._door.admin else self._gateway.access.check(request.headers)
        if (short := self._short.get(path)) is not None:
            _only(request, "GET", "HEAD")
            return await short(request)
        if self._door.admin:
            raise _nothing_at(request)
        caller = self._gateway.access.enter(key)
        timing.key = caller.tenant
        try:
            if path in ROUTES:
                _only(request, "POST")
                return await self._generate(request, caller, timing)
            if path.startswith("/v1/models/"):
                _only(request, "GET", "HEAD")
                return self._model(unquote(path.removeprefix("/v1/models/")))
            if (kept := _RESPONSE.fullmatch(path)) is not None and method in ("GET", "DELETE", "POST"):
                return await self._kept(request, kept[1], kept[2] or "", caller, timing)
            raise _nothing_at(request)
        finally:
            caller.ticket.leave()
            timing.limits = caller.headers()

    async def _generate(self, request: web.BaseRequest, caller: Caller, timing: Timing) -> web.StreamResponse:
        gateway = self._gateway
        if gateway.closing:  # on a connection that was open already
            message = "the gateway is shutting down"
            raise RequestError(message, code="not_ready", status=HTTPStatus.SERVICE_UNAVAILABLE, type="server_error")
        share = gateway.room.share()
        try:
            raw = await read_body(request, share.hold)
            if len(raw) <= PARSE_HERE_BYTES:
                asked = parse(request.path, raw, tenant=caller.tenant)
            else:
                asked = await asyncio.to_thread(parse, request.path, raw, tenant=caller.tenant)
            del raw
            pool = gateway.pool(asked.model)
            caller.ticket.reserve(asked.prompt.total, asked.max_tokens, asked.choices)
            timing.model, timing.stream, timing.prompt_tokens = pool.name, asked.stream, asked.prompt.total
            gateway.metrics.arrivals.add(pool.name)
            gateway.metrics.arrived_tokens.add(pool.name, amount=asked.prompt.total)
            with pool.open_request():
                return await self._deliver(
                    Delivery(gateway.means, request, asked, pool, caller, timing), caller, timing
                )
        finally:
            share.release()

    async def _deliver(self, delivery: Delivery, caller: Caller, timing: Timing) -> web.StreamResponse:
        try:
            return await delivery.run()
        except RequestError:
            timing.prompt_tokens = 0
            raise
        finally:
            delivery.count_tokens()
            if timing.prompt_tokens:
                caller.ticket.used(timing.prompt_tokens, iter([timing.completion_tokens]))

    async def _kept(
        self, request: web.BaseRequest, name: str, rest: str, caller: Caller, timing: Timing
    ) -> web.StreamResponse:
        """A response that a replica keeps, asked for by its name; `rest`: of the path."""
        gateway = self._gateway
        replicas = (replica for pool in gateway.pools.values() for replica in pool.replicas.values())
        replica = response_ids.holder(name, caller.tenant or "", replicas)
        if replica is None:
            raise response_ids.not_found(name)
        headers = gateway.http.headers(request.headers, timing.request_id)
        query = f"?{request.query_string}" if request.query_string else ""
        path = f"/v1/responses/{quote(name, safe='')}{rest}{query}"
        try:
            async with asyncio.timeout(30), await gateway.http.send(replica, request.method, path, headers) as exchange:
                body = await exchange.whole()
                return web.Response(body=body, status=exchange.status, headers=exchange.headers)
        except (ReplicaLost, TimeoutError):
            raise response_ids.not_found(name) from None

    async def _health(self, request: web.BaseRequest) -> web.Response:
        return _json(b'{"status":"alive"}')

    async def _ready(self, request: web.BaseRequest) -> web.Response:
        gateway = self._gateway
        if gateway.draining:
            return _json(b'{"status":"draining"}', 503)
        return _json(b'{"status":"ready"}') if gateway.known else _json(b'{"status":"starting"}', 503)

    async def _version(self, request: web.BaseRequest) -> web.Response:
        return _json(msgspec.json.encode({"version": __version__}))

    async def _root(self, request: web.BaseRequest) -> web.Response:
        return _json(msgspec.json.encode({"name": "octavo gateway", "version": __version__}))

    async def _metrics(self, request: web.BaseRequest) -> web.Response:
        body, content_type = self._gateway.metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _models(self, request: web.BaseRequest) -> web.Response:
        cards = b",".join(self._card(name) for name in sorted(self._gateway.pools))
        return _json(b'{"data":[' + cards + b'],"object":"list"}')

    def _model(self, name: str) -> web.Response:
        return _json(self._card(self._gateway.pool(name).name))

    def _card(self, name: str) -> bytes:
        card = self._gateway.pools[name].card
        if card is not None:
            return card
        return msgspec.json.encode({"id": name, "created": 0, "object": "model", "owned_by": "octavo"})

    def _log(self, request: web.BaseRequest, timing: Timing, now: float) -> None:
        failed = timing.status >= 500 or (timing.error is not None and timing.status < 400)
        if self._gateway.config.log_requests == "errors" and not failed and timing.status < 400:
            return
        known = request.path in ROUTES or request.path in _QUIET
        route = request.path if known else quote(request.path[:128], safe="/{}:.,~@+-_%")
        level = logging.DEBUG if route in _QUIET and not failed else logging.WARNING if failed else logging.INFO
        if log.isEnabledFor(level):
            told = timing.fields(request.method, route, now)
            log.log(level, "%s %s %d", quote(request.method[:32]), route, timing.status, extra=logs.fields(**told))


def _nothing_at(request: web.BaseRequest) -> RequestError:
    message = f"there is no {request.method[:32]} {request.path[:200]}"
    return RequestError(message, code="unknown_url", status=HTTPStatus.NOT_FOUND)


def _only(request: web.BaseRequest, *methods: str) -> None:
    if request.method not in methods:
        message = f"{request.path[:200]} does not take {request.method[:32]}"
        raise RequestError(message, code="method_not_allowed", status=HTTPStatus.METHOD_NOT_ALLOWED)


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")
