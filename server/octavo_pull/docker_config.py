"""A registry's user and password out of a docker config file, as an image pull secret holds one."""

import base64
import binascii
import json
import os
from pathlib import Path
from typing import Any, Final

from octavo_pull.errors import RefusedError

LONGEST_CONFIG: Final = 1024 * 1024
DOCKER_HUB: Final = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")


def find_config(given: Path | None) -> Path | None:
    """The file that is given, else that of DOCKER_CONFIG, else the user's own; None if there is none of those two."""
    if given is not None:
        return given
    directory = os.environ.get("DOCKER_CONFIG")
    path = Path(directory) if directory else Path("~/.docker").expanduser()
    return path / "config.json" if (path / "config.json").is_file() else None


def credentials(path: Path | None, registry: str) -> tuple[str, str] | None:
    """(user, password) for a registry, None if the file has none.

    Raises:
        RefusedError: the file cannot be read, or keeps them where only another program finds them.
    """
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            config: Any = json.loads(file.read(LONGEST_CONFIG))
        entries: dict[str, Any] = config.get("auths", {})
        helper = config.get("credHelpers", {}).get(registry) or config.get("credsStore")
    except OSError as error:
        raise RefusedError(f"--docker-config {path}: {error.strerror}") from error
    except (ValueError, AttributeError):
        raise RefusedError(f"--docker-config {path}: is no docker config in JSON") from None
    entry = next((entries[name] for name in _names(registry) if name in entries), None)
    if isinstance(entry, dict):
        found = _of_entry(entry)
        if found is not None:
            return found
        if entry.get("identitytoken"):
            raise RefusedError(
                f"--docker-config {path}: {registry} has an identity token, which is not taken; log in "
                "with a user and a password or access token"
            )
    if helper:
        raise RefusedError(
            f"--docker-config {path}: keeps the password of {registry} in {helper!r}, which is not asked"
        )
    return None


def _names(registry: str) -> list[str]:
    if registry in DOCKER_HUB:
        return list(DOCKER_HUB)
    return [
        registry,
        f"https://{registry}",
        f"https://{registry}/",
        f"https://{registry}/v1/",
        f"https://{registry}/v2/",
    ]


def _of_entry(entry: dict[str, Any]) -> tuple[str, str] | None:
    if entry.get("username") and entry.get("password"):
        return str(entry["username"]), str(entry["password"])
    try:
        user, colon, password = base64.b64decode(str(entry.get("auth", ""))).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (user, password) if colon and user and user != "00000000-0000-0000-0000-000000000000" else None
