"""A fleet from a file, replaced as a whole: `{"models": {"NAME": [{"id", "url", "ready", "draining"}]}}`."""

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec

from octavo_common.errors import ConfigError
from octavo_gateway.discovery import Endpoint, Fleet, Publish, Wishes

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.1  # of one file's attributes: some microseconds
MAX_FILE_BYTES: Final = 16 * 2**20


class _Replica(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    url: str
    ready: bool = True
    draining: bool = False
    metrics_url: str | None = None


class _Settings(msgspec.Struct, forbid_unknown_fields=True):
    ttft_target: Annotated[float, msgspec.Meta(gt=0)] | None = None
    tpot_target: Annotated[float, msgspec.Meta(gt=0)] | None = None
    hold_requests: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _File(msgspec.Struct):
    models: dict[str, list[_Replica]]
    settings: dict[str, _Settings] = {}


class EndpointsFile:
    """Watches the file. While it cannot be read or understood, what it said before stays."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def run(self, publish: Publish) -> None:
        """Publish the file's fleet whenever it is another one, until cancelled."""
        seen: tuple[int, ...] | None = None
        failure: str | None = None
        while True:
            signature = _signature(self._path)
            if signature != seen:
                try:
                    publish(*read_fleet(self._path))
                    failure = None
                except ConfigError as error:
                    if str(error) != failure:
                        log.error("%s; what was known before stays", error)
                    failure = str(error)
                seen = signature
            await asyncio.sleep(POLL_SECONDS)


def read_fleet(path: Path) -> tuple[Fleet, Mapping[str, Wishes]]:
    """The fleet in a file, and what it says of models.

    Raises:
        ConfigError: it cannot be read, or is not of the form above.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"--endpoints-file {path}: it is larger than {MAX_FILE_BYTES} bytes")
        found = msgspec.json.decode(data, type=_File)
    except OSError as error:
        raise ConfigError(f"--endpoints-file {path}: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--endpoints-file {path}: {error}") from error
    models = found.models.items()
    fleet = {name: tuple(_endpoint(path, name, replica) for replica in each) for name, each in models}
    wishes = {
        name: Wishes(each.ttft_target, each.tpot_target, each.hold_requests) for name, each in found.settings.items()
    }
    return fleet, wishes


def _endpoint(path: Path, model: str, replica: _Replica) -> Endpoint:
    for url in (replica.url, replica.metrics_url):
        if url is not None and not url.startswith(("http://", "https://")):
            raise ConfigError(f"--endpoints-file {path}: {model}: the url of {replica.id!r} is no http:// or https://")
    metrics_url = None if replica.metrics_url is None else replica.metrics_url.rstrip("/")
    return Endpoint(replica.id, replica.url.rstrip("/"), replica.ready, replica.draining, metrics_url)


def _signature(path: Path) -> tuple[int, ...]:
    try:
        found = os.stat(path)  # noqa: PTH116 (ten times a second)
    except OSError as error:
        return (error.errno or 0,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
