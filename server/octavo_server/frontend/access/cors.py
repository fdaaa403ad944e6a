"""Pages of other origins: which may ask this server from a browser. None, unless flags say so.

A preflight is answered without a key, as browsers send none with it; what it asks about needs one as ever.
"""

from typing import Final

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from octavo_server.config import ServerConfig
from octavo_server.frontend.refusal import ErrorObject, refuse

TOLD: Final = (
    "retry-after",
    "x-request-id",
    "x-should-retry",
    *(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")),
)
_FLAGS: Final = {"origin": "--allowed-origins", "method": "--allowed-methods", "headers": "--allowed-headers"}


class Cors(CORSMiddleware):
    """Starlette's, which refuses as all else here does."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks what a page may do."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        said = bytes(answer.body).decode()
        why = " and ".join(flag for what, flag in _FLAGS.items() if what in said) or said
        headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
        return refuse(answer.status_code, ErrorObject(f"a page may not ask this: not allowed by {why}"), headers)


def allow_origins(app: FastAPI, config: ServerConfig) -> None:
    """Answer preflights, and mark answers that pages of the allowed origins may read, refusals too."""
    if config.allowed_origins:
        app.add_middleware(
            Cors,
            allow_origins=list(config.allowed_origins),
            allow_methods=list(config.allowed_methods),
            allow_headers=list(config.allowed_headers),
            allow_credentials=config.allow_credentials,
            expose_headers=TOLD,
        )
