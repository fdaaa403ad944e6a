"""Bodies of requests: from bytes to a checked model, beside the event loop where that takes long."""

import inspect
import json
from collections.abc import Callable, Coroutine
from email.message import Message
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, TypeVar

import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from octavo_server.errors import RequestError
from octavo_server.frontend.json_bounds import JSONBounds
from octavo_server.frontend.refusal import why_unreadable
from octavo_server.frontend.sse import ClientGone
from octavo_server.frontend.state import ServerState

M = TypeVar("M", bound=BaseModel)

PARSE_HERE_BYTES: Final = 64 * 1024  # a millisecond or two at most


def body_route(state: ServerState) -> type[APIRoute]:
    """Routes whose endpoint takes a `body` get it from here; FastAPI describes them as its own.

    A full server refuses such a request before it looks at the body, if that is large or of unknown length. A small one
    is looked at: whoever asks for what can never fit should not try again.
    """

    class BodyRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            parameter = inspect.signature(self.endpoint, eval_str=True).parameters.get("body")
            if parameter is None:
                return super().get_route_handler()
            endpoint, model = self.endpoint, parameter.annotation

            async def handle(request: Request) -> Response:
                _check_encoding(request)
                if state.readiness().ready and _may_be_large(request):  # not ready: that is what is to be said
                    state.admission.check()
                body = await _received(request, model, state)
                response: Response = await endpoint(body=body, request=request)
                return response

            return handle

    return BodyRoute


def _check_encoding(request: Request) -> None:
    """Raises RequestError (415): a few bytes could become gigabytes, and clients of OpenAI's send none."""
    encoding = request.headers.get("content-encoding", "").strip()
    if encoding.lower() not in ("", "identity"):
        raise RequestError(
            f"Content-Encoding: {encoding[:40]!r}: bodies are taken as they are; send it uncompressed",
            code="unsupported_content_encoding",
            status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )


async def _received(request: Request, model: type[M], state: ServerState) -> M:
    """The body, parsed; its bytes are kept by nobody, as `request.body()` would."""
    try:
        raw = b"".join([chunk async for chunk in request.stream()])
    except ClientDisconnect as error:
        raise ClientGone from error
    content_type = request.headers.get("content-type", "")
    if len(raw) <= PARSE_HERE_BYTES:
        return parse_body(model, raw, content_type)
    return await state.in_thread(parse_body, model, raw, content_type)


def _may_be_large(request: Request) -> bool:
    declared = request.headers.get("content-length", "")
    return not declared.isdecimal() or int(declared) > PARSE_HERE_BYTES


def parse_body(model: type[M], raw: bytes, content_type: str) -> M:
    """The body as `model`.

    Raises:
        RequestError: it is no JSON, or holds too many values.
        RequestValidationError: it is JSON that does not fit the model; its locations begin with "body".
    """
    value = _parse(raw) if raw and _is_json(content_type) else raw or None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        try:
            located = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors(include_url=False)]
        except UnicodeEncodeError as unprintable:  # pydantic cannot tell of a name or a word with such a half in it
            why = why_unreadable(unprintable)
            raise RequestError(f"the body is not valid JSON: {why}", code="invalid_json") from error
        raise RequestValidationError(located, body=value) from error


def _parse(raw: bytes) -> Any:
    JSONBounds().add(raw)
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if len(raw) > PARSE_HERE_BYTES:  # it would take the other one many times as long
            why = str(error) if isinstance(error, msgspec.DecodeError) else why_unreadable(error)
            raise RequestError(f"the body is not valid JSON: {why}", code="invalid_json") from error
    # Python's parser takes a little more (NaN, halves of surrogate pairs), and says better what is wrong.
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {why_unreadable(error)}", code="invalid_json") from error


@lru_cache(maxsize=64)
def _is_json(content_type: str) -> bool:
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))
