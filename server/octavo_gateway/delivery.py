"""One request, from replica to replica until it is answered.

Before the first byte of an answer any other replica may try, from the beginning: nothing has happened yet that
anybody could see. Behind it a stream of one answer goes on from its tokens (`octavo_resume`), and its client sees one
stream; any other one ends with an error event.
"""

import asyncio
import secrets
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from octavo_common.errors import RequestError
from octavo_gateway import response_ids
from octavo_gateway.access import Caller
from octavo_gateway.answer_so_far import AnswerSoFar
from octavo_gateway.asked import Asked
from octavo_gateway.attempts import Attempt
from octavo_gateway.means import Means
from octavo_gateway.model_pool import ModelPool, Place, Wanted
from octavo_gateway.plain_stream import NO_USAGE, PlainStream, Usage, read_usage
from octavo_gateway.refusals import error_event, lost
from octavo_gateway.replicas_http import Exchange, ReplicaLost
from octavo_gateway.timing import Timing

AGAIN_SECONDS: Final = 0.02  # between two tries at replicas that are there and take nothing

FAR_ENOUGH: Final = 64  # events that a replica brought before it broke down: the request did not cause it


class Delivery:
    """Answers one request; `run` once."""

    def __init__(
        self,
        means: Means,
        request: web.BaseRequest,
        asked: Asked,
        pool: ModelPool,
        caller: Caller,
        timing: Timing,
    ) -> None:
        self._means, self._request, self._asked, self._pool, self._caller = means, request, asked, pool, caller
        self._timing = timing
        self._headers = means.http.headers(request.headers, timing.request_id)
        self._response: web.StreamResponse | None = None
        self._waits_since = self._timing.arrival  # for a replica, or since the last one brought something
        self._losses = 0  # in a row
        self._passed = 0
        self._avoid: frozenset[str] = frozenset()
        self._random = secrets.token_hex(16)
        self._loop = asyncio.get_running_loop()
        self._so_far: AnswerSoFar | PlainStream
        if asked.counts_tokens:
            self._so_far = AnswerSoFar(strips=not asked.wants_ids, strips_usage=not asked.wants_usage)
        else:
            self._so_far = PlainStream()

    async def run(self) -> web.StreamResponse:
        """The answer, sent as far as it is a stream.

        Raises:
            RequestError: there is none.
        """
        try:
            while True:
                if (answer := await self._once()) is not None:
                    return answer
        except RequestError as error:
            if error.code == "replica_lost":
                self._means.metrics.lost.add(self._pool.name)
            if self._response is None:
                raise
            return await self._end_with(self._response, error)

    async def _once(self) -> web.StreamResponse | None:
        """Try one replica; None: try again."""
        place = await self._place()
        replica = place.replica
        self._timing.replica = replica.endpoint.id
        try:
            async with self._means.attempts.at(replica) as attempt:
                body = self._body(replica.endpoint.id)
                exchange = await self._means.http.send(replica, "POST", self._asked.path, self._headers, body)
                async with exchange:
                    attempt.latest = self._loop.time()
                    return await self._answer(exchange, place, attempt)
        except ReplicaLost as error:
            if self._so_far.ended:
                return await self._end()
            replica.failed(self._loop.time())
            self._note_loss(replica.endpoint.id, error)
            return None
        finally:
            place.leave()

    async def _place(self) -> Place:
        asked, since = self._asked, self._loop.time()
        begun, tenant = self._response is not None, self._caller.tenant or ""
        wanted = Wanted(asked.prompt, tenant, asked.size, asked.stream, self._avoid, begun)
        try:
            if asked.previous is not None:
                holder = response_ids.holder(asked.previous, tenant, self._pool.replicas.values())
                place = None if holder is None else self._pool.place_at(holder.endpoint.id, wanted)
                if place is None:
                    raise response_ids.previous_not_found(asked.previous)
                return place
            left = self._means.hold_seconds - (since - self._waits_since)
            return await self._pool.place(wanted, max(0.0, left))
        except RequestError as error:
            if error.code in ("queue_full", "no_replica"):
                self._means.metrics.refused.add(self._pool.name, error.code)
            raise
        finally:
            self._timing.held += self._loop.time() - since

    def _body(self, replica_id: str) -> bytes:
        asked = self._asked
        if asked.path == "/v1/responses":
            return response_ids.body_of(asked, self._random, replica_id, self._caller.tenant or "")
        if self._response is not None and isinstance(self._so_far, AnswerSoFar):
            resume = self._so_far.resume()
            return asked.body() if resume is None else asked.body(octavo_resume=resume)
        return asked.body()

    async def _answer(self, exchange: Exchange, place: Place, attempt: Attempt) -> web.StreamResponse | None:
        status = exchange.status
        if status == HTTPStatus.OK:
            place.replica.answered()
            if exchange.headers.get("Content-Type", "").startswith("text/event-stream"):
                return await self._stream(exchange, place, attempt)
        body = await exchange.whole()
        now = self._loop.time()
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            place.replica.failed(now)
        elif status == HTTPStatus.TOO_MANY_REQUESTS and not exchange.is_limit_of_key:
            place.replica.busy(now)
        else:
            if self._response is not None:  # it went on there, and was refused
                raise lost(f"the answer broke off, and another replica did not go on with it (status {status})")
            return self._whole(exchange, place, body)
        if self._asked.previous is not None:  # no other one has it
            return self._whole(exchange, place, body)
        self._avoid = frozenset()
        self._means.metrics.retried.add(self._pool.name)
        self._timing.retried += 1
        await asyncio.sleep(AGAIN_SECONDS)
        return None

    def _whole(self, exchange: Exchange, place: Place, body: bytes) -> web.Response:
        headers = {**exchange.headers, **self._told()}
        content_type = headers.pop("Content-Type", "application/json")
        if exchange.status == HTTPStatus.OK:
            self._used(place, read_usage(body))
        else:
            self._timing.prompt_tokens = 0  # it used none
        if exchange.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) and self._means.http.key is not None:
            raise lost("the replica does not take the gateway's key: see --replica-api-key-file")
        return web.Response(body=body, status=exchange.status, headers={**headers, "Content-Type": content_type})

    async def _stream(self, exchange: Exchange, place: Place, attempt: Attempt) -> web.StreamResponse | None:
        so_far, timing = self._so_far, self._timing
        while piece := await exchange.piece():
            self._waits_since = exchange.latest
            try:
                data = so_far.feed(piece)
            except (ValueError, msgspec.DecodeError) as error:
                raise ReplicaLost("what it says is not understood") from error
            if not attempt.begun:
                attempt.begun = True
                place.has_begun()
                if timing.first is None:
                    timing.first = exchange.latest
            if data:
                timing.latest = attempt.writing = exchange.latest
                await self._write(data, exchange)
                attempt.writing = None
            attempt.latest = self._loop.time()
            if so_far.broken is not None:
                raise ReplicaLost("its engine failed")
        if not so_far.ended:
            raise ReplicaLost("it ended too early")
        if so_far.usage is not NO_USAGE:
            self._used(place, so_far.usage)
        return await self._end()

    async def _write(self, data: bytes, exchange: Exchange) -> None:
        response = self._response
        if response is None:
            response = self._response = web.StreamResponse(headers={**exchange.headers, **self._told()})
            await response.prepare(self._request)
        await response.write(data)

    async def _end(self) -> web.StreamResponse:
        response = self._response
        if response is None:
            raise lost("the replica sent a stream of nothing")
        await response.write_eof()
        return response

    async def _end_with(self, response: web.StreamResponse, error: RequestError) -> web.StreamResponse:
        """The status has long been sent: the last event tells what happened."""
        self._timing.error = error.code
        of_responses = self._asked.kind == "responses"
        await response.write(error_event(error, of_responses=of_responses, number=self._so_far.passed))
        return await self._end()

    def _note_loss(self, replica_id: str, error: ReplicaLost) -> None:
        """Whether and how it goes on.

        Raises:
            RequestError: it does not.
        """
        brought = self._so_far.passed - self._passed
        self._passed = self._so_far.passed
        if error.reached:
            self._losses = 1 if brought >= FAR_ENOUGH else self._losses + 1
        self._avoid |= {replica_id}
        if self._asked.previous is not None and self._response is None:
            raise lost(f"the replica that has the conversation broke down ({error})")
        if self._losses >= self._means.most_losses:
            raise lost(f"{self._losses} replicas broke down with this request, the last one: {error}")
        if self._response is None:
            self._means.metrics.retried.add(self._pool.name)
            self._timing.retried += 1
        elif self._asked.resumable:
            self._means.metrics.resumed.add(self._pool.name)
            self._timing.resumed += 1
        else:
            what = "several answers" if self._asked.choices > 1 else "a response's events"
            raise lost(f"the replica broke down ({error}), and a stream of {what} cannot go on at another one")

    def _used(self, place: Place, usage: Usage) -> None:
        self._timing.prompt_tokens, self._timing.completion_tokens = usage.prompt, usage.completion
        if usage.cached is not None:
            self._pool.learned(place, self._asked.prompt, usage.prompt, usage.cached)

    def count_tokens(self) -> None:
        """What a stream used that did not come to its end, as far as it is known."""
        if isinstance(self._so_far, AnswerSoFar) and self._so_far.usage is NO_USAGE:
            self._timing.completion_tokens = len(self._so_far.tokens)

    def _told(self) -> dict[str, str]:
        return {"x-request-id": self._timing.request_id, "Server": "octavo", **self._caller.headers()}
