"""Which requests are the gateway's: those that bring a key of `--gateway-api-key-file`."""

import hmac
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo_server.errors import ConfigError

MAX_FILE_BYTES: Final = 64 * 1024


def read_gateway_keys(path: Path | None) -> tuple[str, ...]:
    """The keys in the file, one a line; none where there is no file.

    Raises:
        ConfigError: it cannot be read, is too large, or holds no key.
    """
    if path is None:
        return ()
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        lines = content.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--gateway-api-key-file: {path} cannot be read ({error})") from error
    keys = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not keys or len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"--gateway-api-key-file: {path} must hold keys, one a line, {MAX_FILE_BYTES} bytes at most")
    return keys


class GatewayKey:
    """Tells routes, by `is_gateway` in the request's state, whether its key is one of the gateway's."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] == "http" and self._keys:
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            key = given.strip().encode("latin-1", "replace")
            matches = [hmac.compare_digest(key, known) for known in self._keys]
            scope.setdefault("state", {})["is_gateway"] = scheme.lower() == "bearer" and any(matches)
        await self._app(scope, receive, send)
