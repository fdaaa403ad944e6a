"""Bodies of requests, within bounds of size and time."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from aiohttp import web

from octavo_common.errors import RequestError

MAX_BODY_BYTES: Final = 16 * 2**20
BODY_SECONDS: Final = 120.0


async def read_body(request: web.BaseRequest, hold: Callable[[int], None]) -> bytes:
    """The body, as it came.

    Raises:
        RequestError: it is too large, packed, or does not come in time.
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RequestError(
            f"Content-Encoding: {encoding[:40]!r}: bodies are taken as they are; send it uncompressed",
            code="unsupported_content_encoding",
            status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise _too_large()
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    pieces, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while piece := await request.content.readany():
                size += len(piece)
                if size > MAX_BODY_BYTES:
                    raise _too_large()
                hold(size)
                pieces.append(piece)
    except TimeoutError:
        raise RequestError(
            "the request did not arrive in time", code="request_timeout", status=HTTPStatus.REQUEST_TIMEOUT
        ) from None
    return b"".join(pieces)


def _too_large() -> RequestError:
    message = f"the body is larger than {MAX_BODY_BYTES} bytes"
    return RequestError(message, code="body_too_large", status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
