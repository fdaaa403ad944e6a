"""A gateway in this process, and replicas that do what they are told, good or bad: for tests without engines.

A fake replica speaks as `octavo serve` does: the answer's tokens depend on the prompt and the seed alone, and it goes
on with `octavo_resume`.
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
from aiohttp import web

from octavo_gateway.config import GatewayConfig
from octavo_gateway.discovery import Endpoint, Fleet
from octavo_gateway.gateway import Gateway
from octavo_gateway.handler import Door, Handler
from octavo_gateway.listening import bind, listen_on

Answer = Callable[[web.BaseRequest], Any]


@dataclass
class FakeReplica:
    """What it does is set by its fields, and may be changed at any time.

    dies_after: tokens of a stream after which the connection breaks; fails_after: likewise, with the event that tells
    of a dead engine; stalls_after: it says nothing more; only_at_first: not in streams that go on; status: of every
    answer, if not 200.
    """

    name: str
    tokens: int = 8
    dies_after: int | None = None
    fails_after: int | None = None
    stalls_after: int | None = None
    only_at_first: bool = False
    pause: float = 0.0
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    waiting: int = 0
    needs_key: str | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    stored: dict[str, str] = field(default_factory=dict)
    running: int = 0
    left: int = 0  # requests whose client went away
    url: str = ""

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.name, self.url)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/metrics":
            labels = '{engine="0",model_name="m"}'
            figures = {"running": self.running, "waiting": self.waiting}
            lines = [f"vllm:num_requests_{name}{labels} {count}" for name, count in figures.items()]
            return web.Response(text="\n".join([*lines, f"octavo:kv_tokens_total{labels} 100000", ""]))
        if request.path == "/ready":
            return web.Response(status=self.status)
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": "m", "created": 5, "max_model_len": 77}]})
        self.asked.append((request.path, {name.lower(): value for name, value in request.headers.items()}))
        if self.needs_key is not None and request.headers.get("Authorization") != f"Bearer {self.needs_key}":
            return web.json_response({"error": {"message": "no"}}, status=401)
        body = json.loads(await request.read()) if request.method == "POST" else {}
        self.bodies.append(body)
        if self.status != 200:
            return web.json_response(
                {"error": {"message": f"{self.name} says no"}}, status=self.status, headers=self.headers
            )
        self.running += 1
        try:
            if self.gate is not None:
                await self.gate.wait()
            return await self._answer(request, body)
        except asyncio.CancelledError:
            self.left += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        if request.path.startswith("/v1/responses"):
            return await self._response(request, body)
        if not body.get("stream"):
            if self.dies_after is not None:
                request.transport.abort()  # type: ignore[union-attr]
            return web.json_response(whole(body, self.tokens, self.name))
        return await self._stream(request, body)

    async def _stream(self, request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        resume = body.get("octavo_resume") or {"output_token_ids": []}
        sent = -1000 if self.only_at_first and "octavo_resume" in body else 0
        for event, tokens in events(body, self.tokens, resume, self.name):
            await response.write(event)
            sent += tokens
            if tokens and self.pause:
                await asyncio.sleep(self.pause)
            if self.stalls_after == sent:
                await asyncio.sleep(1000)
            if self.dies_after == sent and tokens:
                request.transport.abort()  # type: ignore[union-attr]
                return response
            if self.fails_after == sent and tokens:
                error = {"message": "the engine died", "type": "server_error", "param": None, "code": "engine_error"}
                await response.write(b"data: " + compact({"error": error}) + b"\n\n")
                return response
        return response

    async def _response(self, request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        name = request.path.removeprefix("/v1/responses/")
        if request.method == "GET":
            found = self.stored.get(name)
            return web.json_response({"id": name, "text": found}, status=404 if found is None else 200)
        made = f"resp_{body['request_id']}"
        self.stored[made] = str(body["input"])
        answer = {"id": made, "usage": {"input_tokens": 3, "output_tokens": 4}}
        if not body.get("stream"):
            return web.json_response(answer)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(4):
            kind = "response.completed" if number == 3 else "response.output_text.delta"
            told = {"type": kind, "sequence_number": number, **({"response": answer} if number == 3 else {})}
            await response.write(f"event: {kind}\n".encode() + b"data: " + compact(told) + b"\n\n")
            if self.dies_after == number:
                request.transport.abort()  # type: ignore[union-attr]
                return response
        return response


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def answer_tokens(body: dict[str, Any], count: int, choice: int = 0) -> list[int]:
    """Those of the whole answer: they depend on the prompt, the seed and the choice."""
    seed = json.dumps([body.get("messages"), body.get("prompt"), body.get("seed"), choice])
    digest = hashlib.sha256(seed.encode()).digest()
    return [digest[at % 32] * 3 + at for at in range(min(count, body.get("max_tokens", count)))]


def text_of(tokens: list[int]) -> str:
    return "".join(f" w{token}" for token in tokens)


def whole(body: dict[str, Any], count: int, name: str) -> dict[str, Any]:
    texts = [text_of(answer_tokens(body, count, choice)) for choice in range(body.get("n") or 1)]
    choices = [{"index": at, "message": {"content": text}, "finish_reason": "stop"} for at, text in enumerate(texts)]
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": len(answer_tokens(body, count)) * len(texts),
        "total_tokens": 3 + count,
    }
    return {"id": "chatcmpl-1", "created": 1, "model": "m", "choices": choices, "usage": usage, "by": name}


def events(body: dict[str, Any], count: int, resume: dict[str, Any], name: str) -> list[tuple[bytes, int]]:
    """A stream's events, each with the tokens in it."""
    called = {"id": resume.get("response_id", f"chatcmpl-{name}"), "created": resume.get("created", 17), "model": "m"}
    told: list[tuple[dict[str, Any], int]] = []
    done, ids = resume["output_token_ids"], body.get("return_token_ids")
    for choice in range(body.get("n") or 1):
        tokens = answer_tokens(body, count, choice)
        if tokens[: len(done)] != done:
            raise ValueError("these are no tokens of this answer")
        if not done:
            told.append(({"index": choice, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}, 0))
        for token in tokens[len(done) :]:
            entry = {"index": choice, "delta": {"content": text_of([token])}, "finish_reason": None, "logprobs": None}
            told.append((entry | ({"token_ids": [token]} if ids else {}), 1))
        told.append(({"index": choice, "delta": {}, "finish_reason": "stop"}, 0))
    chunks = [(called | {"choices": [entry], "object": "chat.completion.chunk"}, number) for entry, number in told]
    if not done and ids:
        chunks[0][0]["prompt_token_ids"] = [1, 2, 3]
    if (body.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": count + 3}
        chunks.append((called | {"choices": [], "usage": usage}, 0))
    return [(b"data: " + compact(chunk) + b"\n\n", number) for chunk, number in chunks] + [(b"data: [DONE]\n\n", 0)]


async def until(condition: Callable[[], object]) -> None:
    """Let others run until it is so; pytest bounds the time."""
    while not condition():  # noqa: ASYNC110 (what is waited for has no event)
        await asyncio.sleep(0.001)


class GatewayUnderTest:
    """A gateway, with replicas, and a client."""

    def __init__(self, gateway: Gateway, url: str, client: aiohttp.ClientSession) -> None:
        self.gateway, self.url, self.client = gateway, url, client

    def publish(self, *replicas: FakeReplica, model: str = "m", **others: Fleet) -> None:
        self.gateway.publish({model: tuple(replica.endpoint for replica in replicas)})

    def post(self, body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> Any:
        return self.client.post(self.url + path, json=body, headers=headers)

    async def read(self, body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> tuple[int, str]:
        async with self.post(body, path, **headers) as answer:
            return answer.status, await answer.text()

    def metric(self, name: str, **labels: str) -> float:
        labels = labels or {"model": "m"}
        return self.gateway.metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def gateway_over(*replicas: FakeReplica, **config: Any) -> AsyncIterator[GatewayUnderTest]:
    """A gateway before replicas of the model `m`, all in this event loop."""
    async with contextlib.AsyncExitStack() as stack:
        for replica in replicas:
            replica.url = await stack.enter_async_context(listening(replica))
        gateway = Gateway(GatewayConfig(port=0, log_requests="none", **config))
        stack.push_async_callback(gateway.http.close)
        url = await stack.enter_async_context(listening(Handler(gateway, Door())))
        timeout, connector = aiohttp.ClientTimeout(total=20), aiohttp.TCPConnector(limit=0)
        client = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout, connector=connector))
        under_test = GatewayUnderTest(gateway, url, client)
        under_test.publish(*replicas)
        yield under_test


@contextlib.asynccontextmanager
async def listening(answer: Answer) -> AsyncIterator[str]:
    """A server in this loop; its URL."""
    runner = await listen_on(bind("127.0.0.1", 0, ""), answer)
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class Stream:
    """What a client reads of a chat's stream."""

    text: str = ""
    ids: set[str] = field(default_factory=set)
    roles: int = 0
    finishes: list[str] = field(default_factory=list)
    usages: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False
    extra: set[str] = field(default_factory=set)
    calls: dict[int, str] = field(default_factory=dict)  # name and arguments, one behind the other
    logprobs: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, text: str) -> Self:
        stream = cls()
        for line in filter(None, text.split("\n\n")):
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                stream.done = True
                continue
            stream.add(json.loads(data))
        return stream

    def add(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.errors.append(event["error"])
            return
        self.ids.add(f"{event['id']} {event['created']}")
        self.extra |= event.keys() & {"prompt_token_ids"}
        if event.get("usage"):
            self.usages.append(event["usage"])
        for choice in event["choices"]:
            delta = choice.get("delta", {})
            self.text += choice.get("text") or delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                function = call["function"]
                told = (function.get("name") or "") + (function.get("arguments") or "")
                self.calls[call["index"]] = self.calls.get(call["index"], "") + told
            self.logprobs += [entry["logprob"] for entry in (choice.get("logprobs") or {}).get("content") or []]
            self.roles += "role" in delta
            self.extra |= choice.keys() & {"token_ids"}
            if choice["finish_reason"]:
                self.finishes.append(choice["finish_reason"])
