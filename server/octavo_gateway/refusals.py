"""Errors as OpenAI error objects, as bodies and as the last event of a stream."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from octavo_common.errors import RequestError


def error_body(
    message: str, *, type: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return msgspec.json.encode({"error": {"message": message, "type": type, "param": param, "code": code}})


def refuse(error: RequestError, headers: Mapping[str, str] | None = None) -> web.Response:
    """The answer to a request that is refused."""
    told = dict(headers or {})
    if error.retry_after is not None:
        told["Retry-After"] = str(error.retry_after)
    elif error.status == HTTPStatus.TOO_MANY_REQUESTS:  # it would never fit; OpenAI's clients heed this
        told["x-should-retry"] = "false"
    elif error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        told["Retry-After"] = "1"
    if error.status == HTTPStatus.UNAUTHORIZED:
        told["WWW-Authenticate"] = "Bearer"
    body = error_body(error.message, type=error.type, param=error.param, code=error.code)
    return web.Response(body=body, status=error.status, headers=told, content_type="application/json")


def lost(message: str) -> RequestError:
    """No replica brought the answer to its end."""
    return RequestError(message, code="replica_lost", status=HTTPStatus.BAD_GATEWAY, type="server_error")


def error_event(error: RequestError, *, of_responses: bool, number: int) -> bytes:
    """The last event of a stream that cannot go on. number: of events before it."""
    if of_responses:
        event: dict[str, Any] = {
            "type": "error",
            "sequence_number": number,
            "code": error.code,
            "message": error.message,
            "param": error.param,
        }
        return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
    return b"data: " + error_body(error.message, type=error.type, param=error.param, code=error.code) + b"\n\n"
