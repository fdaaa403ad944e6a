"""API keys: which there are, whose they are, and whether what a client brings is one.

A name stands for one tenant, whose keys share its limits and its cached pages: while a key is rotated it has two. Keys
are kept and compared as digests under a secret of this process, all of the same length.
"""

import contextlib
import hashlib
import hmac
import logging
import secrets
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from octavo_common.access.config import AccessConfig
from octavo_common.access.key_files import Entry, is_empty_directory, read_each
from octavo_common.access.rates import Limits
from octavo_common.errors import ConfigError

log = logging.getLogger(__name__)

MAX_KEYS: Final = 1000  # each is compared at every request: 0.1 ms
_TOLD: Final = 3  # files that a line of the log names
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

    def __init__(self, config: AccessConfig, gateway_file: Path | None = None) -> None:
        """Read them. `gateway_file`: with the keys of our own gateway; an empty directory has none yet.

        Raises:
            ConfigError: a file cannot be used; the message names it and the line, and never tells a key.
        """
        self._config = config
        self._gateway_file = gateway_file
        self.closed = bool(config.api_key or config.api_key_file)  # and stays so, whatever becomes of the files
        self.keys: tuple[ApiKey, ...] = ()
        self._before: dict[Path, dict[Path, list[Entry]]] = {}  # what the files of each path held when last read
        for path, failure in self._read():
            flag = "--gateway-api-key-file" if path == gateway_file else "--api-key-file"
            raise ConfigError(f"{flag} {failure}") from None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files and directories that keys come from."""
        gateway = self._gateway_file
        return self._config.api_key_file if gateway is None else (*self._config.api_key_file, gateway)

    def find(self, given: bytes) -> ApiKey | None:
        """The key that was given. All are compared, each in constant time: how long it takes tells nothing of them."""
        digest = _digest(given)
        matches = [key for key in self.keys if hmac.compare_digest(digest, key.digest)]
        return matches[0] if matches else None

    def reload(self) -> str | None:
        """Read the files again, and say what is new, if anything is. Files that cannot be used keep their keys.

        Raises:
            ConfigError: there are such files; what the others have counts nevertheless.
        """
        before = {key.digest: key for key in self.keys}
        failures = [failure for _, failure in self._read()]
        after = {key.digest: key for key in self.keys}
        added, gone = after.keys() - before.keys(), before.keys() - after.keys()
        changed = sum(before[digest] != after[digest] for digest in before.keys() & after.keys())
        news = f"API keys were read again: {len(added)} new, {changed} changed, {len(gone)} gone; {len(after)} in all"
        is_new = bool(added or gone or changed)
        if failures:
            if is_new:
                log.info("%s", news)
            told = dict.fromkeys(str(failure) for failure in failures)
            raise ConfigError("; ".join(list(told)[:_TOLD]) + (" and others" if len(told) > _TOLD else ""))
        return news if is_new else None

    def _read(self) -> list[tuple[Path, ConfigError]]:
        """Read all files; those that cannot be used, of which this tells, keep what was in them before.

        What a file has from before gives way to what others have now: a key that was taken back or renamed is.
        """
        config, failures = self._config, list[tuple[Path, ConfigError]]()
        now = {path: self._each(path) for path in dict.fromkeys(self.files)}
        ours = () if self._gateway_file is None else now[self._gateway_file].values()
        gateway = {entry.key for entries, _ in ours for entry in entries}
        defaults = {
            "requests_per_minute": config.max_requests_per_minute,
            "tokens_per_minute": config.max_tokens_per_minute,
            "concurrent_requests": config.max_concurrent_requests,
        }
        flags = [Entry(f"api-key-{n}", key, named=False) for n, key in enumerate(dict.fromkeys(config.api_key), 1)]
        known, kept = _Known(defaults, gateway).having(flags), list[Entry]()
        files = [(path, file) for path, each in now.items() for file in each]
        files.sort(key=lambda at: now[at[0]][at[1]][0] != self._held(*at))  # what changed last is what is wrong
        for path, file in files:
            entries, failure = now[path][file]
            try:
                if failure is not None:
                    raise failure
                known = known.having(entries)
            except ConfigError as error:
                failures.append((path, error))
                now[path][file] = self._held(path, file), error
                kept += self._held(path, file)
        for entry in kept:
            with contextlib.suppress(ConfigError):
                known.add(entry)
        self._before = {path: {file: entries for file, (entries, _) in each.items()} for path, each in now.items()}
        self.keys = tuple(known.keys)  # at once: a request that is being looked up meets the old ones or the new ones
        return failures

    def _held(self, path: Path, file: Path) -> list[Entry]:
        return self._before.get(path, {}).get(file, [])

    def _each(self, path: Path) -> dict[Path, tuple[list[Entry], ConfigError | None]]:
        """Of each file what it holds, or held before, and why it cannot be used now."""
        before = self._before.get(path, {})
        if path == self._gateway_file and is_empty_directory(path):
            return {}  # nobody may resume: that opens nothing, as no clients' keys would
        try:
            found = read_each(path)
        except ConfigError as error:
            found = dict.fromkeys(before or [path], error)
        return {
            file: (self._held(path, file), each) if isinstance(each, ConfigError) else (each, None)
            for file, each in found.items()
        }


class _Known:
    """Keys that go together: one key has one name, and one name one set of limits."""

    def __init__(self, defaults: Mapping[str, int | None], gateway: AbstractSet[str]) -> None:
        """`defaults`: limits by flags; `gateway`: the keys that are the gateway's."""
        self._defaults = defaults
        self._gateway = gateway
        self.keys: list[ApiKey] = []
        self._by_digest: dict[bytes, Entry] = {}
        self._by_name: dict[str, tuple[Entry, ApiKey]] = {}

    def having(self, entries: Sequence[Entry]) -> "_Known":
        """These and a file's.

        Raises:
            ConfigError: they do not go together, or are too many.
        """
        self._check_room(entries)
        both = _Known(self._defaults, self._gateway)
        both.keys, both._by_digest, both._by_name = [*self.keys], {**self._by_digest}, {**self._by_name}
        for entry in entries:
            both.add(entry)
        return both

    def add(self, entry: Entry) -> None:
        """One more; raises as `having` does."""
        key = _key(entry, self._defaults, gateway=entry.key in self._gateway)
        self._check_room([entry])
        other = self._by_digest.get(key.digest, entry)
        if other.name != entry.name:
            raise ConfigError(f"{entry.where}: the same key has another name, {other.name!r}, at {other.where}")
        first, same = self._by_name.get(key.name, (entry, key))
        if same.limits != key.limits or first.named != entry.named:
            raise ConfigError(f"{entry.where}: {key.name!r} has other limits at {first.where}; a name has one set")
        self._by_digest[key.digest], self._by_name[key.name] = other, (first, same)
        self.keys.append(key)

    def _check_room(self, entries: Sequence[Entry]) -> None:
        if len(self.keys) + len(entries) > MAX_KEYS:
            raise ConfigError(f"{entries[0].where}: there are more than {MAX_KEYS} API keys")


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
