"""API keys: which there are, whose they are, and whether what a client brings is one.

A name stands for one tenant, whose keys share its limits and its cached pages: while a key is rotated it has two. Keys
are kept and compared as digests under a secret of this process, all of the same length.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from octavo_server.config import ServerConfig
from octavo_server.errors import ConfigError
from octavo_server.frontend.access.key_files import Entry, read_keys
from octavo_server.frontend.access.rates import Limits

MAX_KEYS: Final = 1000  # each is compared at every request: 0.1 ms
_SECRET: Final = secrets.token_bytes(32)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that is taken. `salt` keeps the cached pages of tenants apart. `gateway`: our own, which may do more."""

    name: str
    digest: bytes
    salt: bytes
    limits: Limits
    gateway: bool = False


class KeyRing:
    """The keys that are taken now. They may be replaced by another thread."""

    def __init__(self, config: ServerConfig) -> None:
        """Read them.

        Raises:
            ConfigError: a file cannot be used; the message names it and the line, and never tells a key.
        """
        self._config = config
        self.closed = bool(config.api_key or config.api_key_file)  # and stays so, whatever becomes of the files
        self.keys = self._read()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files and directories that keys come from."""
        gateway = self._config.gateway_api_key_file
        return self._config.api_key_file if gateway is None else (*self._config.api_key_file, gateway)

    def find(self, given: bytes) -> ApiKey | None:
        """The key that was given. All are compared, each in constant time: how long it takes tells nothing of them."""
        digest = _digest(given)
        matches = [key for key in self.keys if hmac.compare_digest(digest, key.digest)]
        return matches[0] if matches else None

    def reload(self) -> str | None:
        """Read the files again, and say what is new, if anything is. Where that fails, all stays as it is.

        Raises:
            ConfigError: as at the beginning.
        """
        old, new = self.keys, self._read()
        if new == old:
            return None
        self.keys = new  # at once: a request that is being looked up meets the old ones or the new ones
        before, after = ({key.digest: key for key in keys} for keys in (old, new))
        added, gone = after.keys() - before.keys(), before.keys() - after.keys()
        changed = sum(before[digest] != after[digest] for digest in before.keys() & after.keys())
        return f"API keys were read again: {len(added)} new, {changed} changed, {len(gone)} gone; {len(after)} in all"

    def _read(self) -> tuple[ApiKey, ...]:
        config = self._config
        entries = [Entry(f"api-key-{n}", key, named=False) for n, key in enumerate(dict.fromkeys(config.api_key), 1)]
        gateway: set[str] = set()
        for path in self.files:
            found = read_keys(path)
            entries += found
            if len(entries) > MAX_KEYS:
                raise ConfigError(f"{path}: there are more than {MAX_KEYS} API keys")
            if path == config.gateway_api_key_file:
                gateway.update(entry.key for entry in found)
        defaults = {
            "requests_per_minute": config.max_requests_per_minute,
            "tokens_per_minute": config.max_tokens_per_minute,
            "concurrent_requests": config.max_concurrent_requests,
        }
        keys = tuple(_key(entry, defaults, gateway=entry.key in gateway) for entry in entries)
        _check(entries, keys)
        return keys


def salt_of(key: str) -> bytes:
    """What stands for an API key in the prefix cache: the same for the same key, and no way back to it."""
    return b"key:" + hashlib.blake2b(key.encode(), digest_size=16, person=b"octavo key").digest()


def _salt_of_name(name: str) -> bytes:
    """The same for all keys of a name. Names are no secret; a digest, for a length of its own."""
    return b"name:" + hashlib.blake2b(name.encode(), digest_size=16, person=b"octavo name").digest()


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=32, key=_SECRET).digest()


def _key(entry: Entry, defaults: Mapping[str, int | None], *, gateway: bool) -> ApiKey:
    """Limits by flags are not for the gateway, which asks for all of its clients."""
    salt = _salt_of_name(entry.name) if entry.named else salt_of(entry.key)
    limits = Limits(**{**({} if gateway else defaults), **entry.limits})
    return ApiKey(entry.name, _digest(entry.key.encode()), salt, limits, gateway)


def _check(entries: Sequence[Entry], keys: Iterable[ApiKey]) -> None:
    """One key has one name, and one name one set of limits."""
    by_digest: dict[bytes, Entry] = {}
    by_name: dict[str, tuple[Entry, ApiKey]] = {}
    for entry, key in zip(entries, keys, strict=True):
        other = by_digest.setdefault(key.digest, entry)
        if other.name != entry.name:
            raise ConfigError(f"{entry.where}: the same key has another name, {other.name!r}, at {other.where}")
        first, same = by_name.setdefault(key.name, (entry, key))
        if same.limits != key.limits or first.named != entry.named:
            raise ConfigError(f"{entry.where}: {key.name!r} has other limits at {first.where}; a name has one set")
