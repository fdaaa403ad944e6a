"""One chat with an OpenAI-compatible server, streamed, without the `openai` package: httpx and the lines of the stream.

Source of the format: server-sent events (WHATWG HTML, 9.2) as the OpenAI API uses them: one JSON object a `data:` line,
`data: [DONE]` at the end.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import httpx

SILENCE_SECONDS: Final = 300.0


class ChatError(Exception):
    """The server refused the request or broke off. The message is its own, as one line."""


@dataclass(frozen=True, slots=True)
class ChatPiece:
    """What one event brought: text, and at the end the reason for it and the usage."""

    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None


async def stream_chat(
    client: httpx.AsyncClient, base_url: str, model: str, prompt: str, **fields: Any
) -> AsyncIterator[ChatPiece]:
    """Send `prompt` as a user's message and yield the answer as it comes. `base_url` ends in /v1; `fields` are of the
    request's body, as `temperature`.

    Raises:
        ChatError: refused, broken off, or ended without a finish reason.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    timeout = httpx.Timeout(SILENCE_SECONDS, connect=10.0)
    finished = False
    try:
        async with client.stream("POST", f"{base_url}/chat/completions", json=body, timeout=timeout) as answer:
            if not answer.is_success:
                raise ChatError(_refusal(answer.status_code, await answer.aread()))
            async for line in _lines(answer.aiter_bytes()):
                piece = _piece(line)
                if piece is not None:
                    finished = finished or piece.finish_reason is not None
                    yield piece
    except httpx.HTTPError as error:
        raise ChatError(f"the connection broke ({type(error).__name__}{': ' if str(error) else ''}{error})") from error
    if not finished:
        raise ChatError("the answer broke off without a finish reason")


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Lines that end in a line feed. (httpx's own also end at U+2028 and its like, which may stand in an answer.)"""
    unfinished = b""
    async for piece in pieces:
        *lines, unfinished = (unfinished + piece).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    if unfinished:
        yield unfinished.decode(errors="replace")


def _piece(line: str) -> ChatPiece | None:
    """The piece in one line of the stream; None for comments, blank lines and the end mark."""
    if not line.startswith("data:"):
        return None
    data = line.removeprefix("data:").strip()
    if data == "[DONE]":
        return None
    event = json.loads(data)
    if "error" in event:
        raise ChatError(str(event["error"].get("message", event["error"])))
    choices: list[dict[str, Any]] = event.get("choices") or [{}]
    choice = choices[0]
    text = (choice.get("delta") or {}).get("content") or ""
    return ChatPiece(text, choice.get("finish_reason"), event.get("usage"))


def _refusal(status: int, body: bytes) -> str:
    try:
        return f"{json.loads(body)['error']['message']} (HTTP {status})"
    except (ValueError, KeyError, TypeError):
        return f"the server answered HTTP {status}"
