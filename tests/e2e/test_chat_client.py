"""The small OpenAI client of the command line, against a server that breaks off in each way that one can."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from aiohttp import web

from octavo_cli.chat_client import ChatError, ChatPiece, stream_chat

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[str]]

HELLO = 'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\n'
STOP = 'data: {"choices": [{"delta": {"content": "lo"}, "finish_reason": "stop"}]}\n\n'
USAGE = 'data: {"choices": [], "usage": {"total_tokens": 3}}\n\ndata: [DONE]\n\n'


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server with one route for chats; gives its base URL."""
    runners: list[web.AppRunner] = []

    async def begin(handler: Handler) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", handler)
        runner = web.AppRunner(app)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    yield begin
    for runner in runners:
        await runner.cleanup()


async def events(request: web.Request, *parts: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for part in parts:
        await response.write(part.encode())
    return response


async def chat(url: str) -> list[ChatPiece]:
    async with httpx.AsyncClient(trust_env=False) as client:
        return [piece async for piece in stream_chat(client, url, "demo", "Hello")]


async def test_pieces_come_one_by_one_while_the_server_still_works(serve: Serve) -> None:
    taken = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await events(request, HELLO)
        await taken.wait()  # nothing more until the first piece has been seen
        for part in (": a comment\n\n", STOP[:30], STOP[30:], USAGE):
            await response.write(part.encode())
        return response

    pieces: list[ChatPiece] = []
    async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(30):
        async for piece in stream_chat(client, await serve(handler), "demo", "Hello"):
            pieces.append(piece)
            taken.set()
    assert "".join(piece.text for piece in pieces) == "Hello"
    assert [piece.finish_reason for piece in pieces] == [None, "stop", None]
    assert pieces[-1].usage == {"total_tokens": 3}


async def test_the_servers_refusal_is_told_in_its_own_words(serve: Serve) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "the prompt is too long"}}, status=400)

    with pytest.raises(ChatError, match=r"^the prompt is too long \(HTTP 400\)$"):
        await chat(await serve(handler))


async def test_a_refusal_without_words_is_told_by_its_status(serve: Serve) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>", status=502)

    with pytest.raises(ChatError, match="HTTP 502"):
        await chat(await serve(handler))


async def test_an_error_event_ends_the_chat(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await events(request, HELLO, 'data: {"error": {"message": "the engine died"}}\n\n')

    with pytest.raises(ChatError, match=r"^the engine died$"):
        await chat(await serve(handler))


async def test_an_answer_without_a_finish_reason_is_broken(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await events(request, HELLO)

    with pytest.raises(ChatError, match="broke off without a finish reason"):
        await chat(await serve(handler))


async def test_a_connection_that_breaks_is_told(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await events(request, HELLO)
        assert request.transport is not None
        request.transport.abort()
        return response

    with pytest.raises(ChatError, match=r"the connection broke \("):
        await chat(await serve(handler))


async def test_nobody_listening_is_told() -> None:
    with pytest.raises(ChatError, match=r"the connection broke \(ConnectError"):
        await chat("http://127.0.0.1:1/v1")
