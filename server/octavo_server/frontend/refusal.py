"""Errors as OpenAI error objects: `{"error": {"message", "type", "param", "code"}}`."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from octavo_server.errors import EngineError, EngineErrorKind, RequestError

log = logging.getLogger(__name__)

_SHOWN: Final = 100  # characters of a wrong value
_ENGINE_STATUS: Final[dict[EngineErrorKind, HTTPStatus]] = {
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "out_of_memory": HTTPStatus.SERVICE_UNAVAILABLE,
    "timeout": HTTPStatus.GATEWAY_TIMEOUT,
    "invalid": HTTPStatus.BAD_REQUEST,
    "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
}
_ENGINE_CODES: Final[dict[EngineErrorKind, str]] = {
    "timeout": "timeout",
    "out_of_memory": "out_of_memory",
    "invalid": "invalid_request",
}
_CODES: Final = {404: "unknown_url", 405: "method_not_allowed", 413: "body_too_large"}


# For the OpenAPI document, in place of FastAPI's own 422, which is never sent.
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
DESCRIBED_BODY: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
        }
    },
}
_JSON: Final = {"application/json": {"schema": DESCRIBED_BODY}}
DESCRIBED: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": f"{what}: an OpenAI error object says why", "content": _JSON}
    for status, what in (("4XX", "The request is refused"), ("5XX", "The server cannot answer it now, or failed"))
}


class ErrorObject(msgspec.Struct, frozen=True):
    """OpenAI's error object. `param` is the path of the field that is wrong."""

    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of an answer that refuses, and the last event of a stream that fails."""

    error: ErrorObject


def refuse(status: int, error: ErrorObject, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that carries an error."""
    body = msgspec.json.encode(ErrorBody(error))
    return Response(body, status_code=status, media_type="application/json", headers=dict(headers or {}))


def of_request_error(error: RequestError) -> Response:
    """The answer to a request that is refused."""
    wait = 1 if error.status == HTTPStatus.SERVICE_UNAVAILABLE else error.retry_after
    headers = None if wait is None else {"Retry-After": str(wait)}
    if wait is None and error.status == HTTPStatus.TOO_MANY_REQUESTS:  # it would never fit; OpenAI's clients heed this
        headers = {"x-should-retry": "false"}
    return refuse(error.status, ErrorObject(error.message, error.type, error.param, error.code), headers)


def engine_error(error: EngineError) -> ErrorObject:
    """The object for a request that the engine could not finish."""
    kind = "invalid_request_error" if error.kind == "invalid" else "server_error"
    return ErrorObject(str(error), type=kind, code=_ENGINE_CODES.get(error.kind, "engine_error"))


def of_engine_error(error: EngineError) -> Response:
    """The answer to a request that the engine could not finish."""
    status = _ENGINE_STATUS[error.kind]
    headers = {"Retry-After": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return refuse(status, engine_error(error), headers)


def validation_error(errors: Sequence[Any], body: Any) -> ErrorObject:
    """The object for a body that does not fit its model: the first error, or the deepest where a union has several."""
    found = max((_located(error, body) for error in errors), key=lambda entry: len(entry[0]))
    path, message, value = found
    param = _spell(path)
    return ErrorObject(f"{param}: {message}{_show(value)}" if param else message, param=param or None)


def install(app: FastAPI) -> None:
    """Make an app answer every error in this form."""

    async def refused(request: Request, error: Exception) -> Response:
        match error:
            case RequestError():
                return of_request_error(error)
            case EngineError():
                return of_engine_error(error)
            case RequestValidationError():
                return refuse(HTTPStatus.BAD_REQUEST, _of_body(request, error))
            case HTTPException():
                return refuse(error.status_code, _of_http(request, error), error.headers)
        log.error("unexpected error in %s %s", request.method, request.url.path, exc_info=error)
        return refuse(
            500, ErrorObject("the server failed to handle this request; its log says why", type="server_error")
        )

    for kind in (RequestError, EngineError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, refused)


def _of_body(request: Request, error: RequestValidationError) -> ErrorObject:
    first = error.errors()[0]
    if tuple(first["loc"]) == ("body",) and not isinstance(error.body, dict):
        content_type = request.headers.get("content-type", "")
        wrong_type = "json" not in content_type.lower()
        hint = f" with Content-Type: application/json (it was {content_type[:_SHOWN]!r})" if wrong_type else ""
        return ErrorObject(f"the body must be a JSON object{hint}")
    return validation_error(error.errors(), error.body)


def _of_http(request: Request, error: HTTPException) -> ErrorObject:
    path = request.url.path[:200]
    messages = {
        404: f"there is no {request.method} {path}{_alike(request, path)}",
        405: f"{path} does not take {request.method}",
    }
    return ErrorObject(messages.get(error.status_code, str(error.detail)), code=_CODES.get(error.status_code))


def _alike(request: Request, path: str) -> str:
    """A base URL without /v1, or with it twice, is the usual slip."""
    paths = [route.path for route in request.app.routes if getattr(route, "include_in_schema", False)]
    found = get_close_matches(path, paths, n=1, cutoff=0.8)
    return f"; did you mean {found[0]}?" if found else ""


def why_unreadable(error: ValueError | RecursionError) -> str:
    """What Python's JSON parser, which raised this, does not like about a text."""
    match error:
        case json.JSONDecodeError():
            return error.msg
        case UnicodeDecodeError():
            return f"it is not UTF-8 (byte {error.start})"
        case UnicodeEncodeError():
            return "it holds half of a surrogate pair, which is no character"
        case RecursionError():
            return "it is nested too deeply"
    return f"it holds a number of more than {sys.get_int_max_str_digits()} digits"


def _located(error: Mapping[str, Any], body: Any) -> tuple[list[str | int], str, Any]:
    """(path in the client's own terms, message, value there). pydantic's paths also name the members of unions."""
    if error["loc"][:1] in (("query",), ("path",)):  # none: of a whole body that was made here
        return list(error["loc"][1:]), _message(error, error.get("ctx") or {}), error.get("input")
    path: list[str | int] = []
    value = body
    names = [part for part in error["loc"] if part != "body"]
    for index, part in enumerate(names):
        if _has(value, part):
            value = value[part]
        elif error["type"] == "missing" and index == len(names) - 1:
            value = None
        else:
            continue
        path.append(part)
    context = error.get("ctx") or {}
    if error["type"] == "field":
        path.append(str(context["field"]))
        value = value.get(context["field"]) if isinstance(value, dict) else None
    elif error["type"] in ("union_tag_invalid", "union_tag_not_found") and "discriminator" in context:
        name = str(context["discriminator"]).strip("'")
        path.append(name)
        value = value.get(name) if isinstance(value, dict) else None
    return path, _message(error, context), value


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _message(error: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    """In terms of JSON: pydantic's own speak of Python's types."""
    match error["type"]:
        case "missing" | "union_tag_not_found":
            return "this field is required"
        case "union_tag_invalid":
            return f"must be one of {context['expected_tags']}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be an object"
        case "too_short" if context["min_length"] == 1:
            return "must not be empty"
        case "too_long" if context["field_type"] == "List":
            return f"{context['max_length']} entries are allowed at most"
    return str(error["msg"])


def _show(value: Any) -> str:
    """The value that was given, if it is short enough to help."""
    if value is None or isinstance(value, dict | list):
        return ""
    text = value[: _SHOWN + 1] if isinstance(value, str) else json.dumps(value)
    cut = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    shown = json.dumps(cut, ensure_ascii=False) if isinstance(value, str) else cut
    return f" (given: {shown.encode('utf-8', 'replace').decode()})"


def _spell(path: Sequence[str | int]) -> str:
    """["messages", 0, "role"] → "messages[0].role"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")[:_SHOWN]
