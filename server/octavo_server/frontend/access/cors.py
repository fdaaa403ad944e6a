"""Pages of other origins: which may ask this server from a browser. None, unless flags say so.

A preflight is answered without a key, as browsers send none with it; what it asks about needs one as ever.
"""

from typing import Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from octavo_server.config import ServerConfig

TOLD: Final = (
    "retry-after",
    "x-request-id",
    "x-should-retry",
    *(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")),
)


def allow_origins(app: FastAPI, config: ServerConfig) -> None:
    """Answer preflights, and mark answers that pages of the allowed origins may read, refusals too."""
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.allowed_origins),
            allow_methods=list(config.allowed_methods),
            allow_headers=list(config.allowed_headers),
            allow_credentials=config.allow_credentials,
            expose_headers=TOLD,
        )
