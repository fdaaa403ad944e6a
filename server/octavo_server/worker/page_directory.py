"""The pages of all models that lie in one directory: which there are, in what order they were used, within a bound.

`<directory>/<fingerprint>/<2 hex>/<hash>.page`. Several processes may share it (replicas on one volume): files appear
whole, by a rename, and one that has vanished is a miss. Each process keeps the bound over all that lies there, other
models' pages too, as of its last look; it looks again each minute and each time it wrote an eighth of the bound. So n
processes may together exceed it by n eighths, for a minute at most. The least recently used page goes first, whoever
wrote it; a file's time of modification says when it was last stored or loaded. A page passes for a little older than
the one before it if that was wanted just now too: so the ends of sequences go first, without which the rest is still
of use.

The content is users' data: files have mode 0600, the directories that are made here 0700.
"""

import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from octavo_server.step import PageEvent, PageKey
from octavo_server.worker import page_file
from octavo_server.worker.file_order import FileOrder

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_SCANS: Final = 60.0
_SCAN_SHARE: Final = 0.05  # of the time, at most, goes into scans: on a slow volume there are fewer
_SECONDS_SILENT: Final = 60.0
_TOGETHER: Final = 60.0  # seconds between a page and the one before it, if they were wanted at the same time
_STEP: Final = 1e-5  # seconds by which the former then passes for older
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_FILE: Final = re.compile(r"[0-9a-f]{32}" + re.escape(page_file.SUFFIX))


class PageDirectory:
    """Files with pages of one model, beside those of others, `size_bytes` in all. For any number of threads.

    fingerprint: 32 hex digits that stand for all that decides what a page holds (see `fingerprint.py`).

    `events` gets "evicted" and "stored" for this model's pages that the bound or other processes removed or brought.
    """

    def __init__(self, directory: Path, size_bytes: int, fingerprint: str) -> None:
        if not _NAME.fullmatch(fingerprint):
            raise ValueError(f"a fingerprint is 32 hex digits, not {fingerprint!r}")
        self.directory = directory
        self.size_bytes = size_bytes
        self.events: deque[PageEvent] = deque()
        self._fingerprint = fingerprint
        self._files = FileOrder()  # by path below the directory
        self._lock = threading.Lock()  # of it; never held while the disk is waited for
        self._next_scan, self._bytes_until_scan = 0.0, 0
        self._silent_until = 0.0
        self._complaints: set[str] = set()
        self.rescan()
        self._make_room(0)
        self.events.clear()  # who asks for `pages` knows all this

    @property
    def is_silent(self) -> bool:
        """Whether writing failed lately, so that it is not tried."""
        return time.monotonic() < self._silent_until

    def pages(self) -> list[bytes]:
        """Names of the pages that are there, the least recently used first."""
        with self._lock:
            return [name for path in self._files.paths() if (name := self._own(path)) is not None]

    def holds(self, page_hash: bytes) -> bool:
        """Whether a page of this name was there at the last look."""
        with self._lock:
            return self._files.size(self._path(page_hash)) is not None

    def write(self, key: PageKey, payload: memoryview, *, modified: float | None = None) -> bool:
        """Writes a page that is not there yet, at once, in the caller's thread; False if that failed.

        modified: when it was last wanted, if not now, in seconds since 1970.
        """
        size = page_file.file_bytes(key, len(payload))
        if size > self.size_bytes:
            return False
        path, when = self._path(key.page_hash), self._when(key) if modified is None else modified
        if self._touch(path, when):
            return True
        try:
            if time.monotonic() >= self._next_scan or self._bytes_until_scan <= 0:
                self.rescan()
            self._make_room(size)
            target = self.directory / path
            self._make_folder(target.parent)
            page_file.write(target, key, payload, modified=when)
        except FileNotFoundError:  # another process tidied up between two of our steps
            return False
        except OSError as error:
            self._silent_until = time.monotonic() + _SECONDS_SILENT
            self._complain("writing", f"the disk cache in {self.directory} cannot be written ({error.strerror})")
            return False
        with self._lock:
            self._files.put(path, size, when)
        self._bytes_until_scan -= size
        return True

    def read(self, key: PageKey, into: memoryview) -> bool:
        """Reads a page; False, and its file is gone, if there is none that is exactly this one's."""
        path = self._path(key.page_hash)
        if self._read(path, key, into):
            self._touch(path, self._when(key))
            return True
        with self._lock:
            self._files.drop(path)
        self._unlink(path)
        return False

    def rescan(self) -> None:
        """Looks what lies in the directory, which other processes may share; removes what dead ones left half done."""
        begin = time.monotonic()
        found = FileOrder()
        for when, path, size in self._scan():
            found.put(path, size, when)
        with self._lock:
            before, self._files = set(self._files.paths()), found
        after = set(found.paths())
        for kind, paths in (("evicted", before - after), ("stored", after - before)):
            for path in paths:
                if (name := self._own(path)) is not None:
                    self.events.append(PageEvent("stored" if kind == "stored" else "evicted", name))
        now = time.monotonic()
        self._next_scan = now + max(_SECONDS_BETWEEN_SCANS, (now - begin) / _SCAN_SHARE)
        self._bytes_until_scan = self.size_bytes // 8

    def _read(self, path: str, key: PageKey, into: memoryview) -> bool:
        try:
            if page_file.read(self.directory / path, key, into):
                return True
            self._complain("content", f"a page in {self.directory} is broken or another one's: removed")
        except FileNotFoundError:
            return False
        except OSError as error:
            self._complain("reading", f"the disk cache in {self.directory} cannot be read ({error.strerror})")
        return False

    def _when(self, key: PageKey) -> float:
        """The time to note for a page that is wanted now."""
        now = time.time()
        with self._lock:
            before = self._files.when(self._path(key.previous))
        return now if before is None or before < now - _TOGETHER else min(now, before - _STEP)

    def _touch(self, path: str, when: float) -> bool:
        """Notes that a page was wanted; False if it is not there."""
        with self._lock:
            if (size := self._files.size(path)) is None:
                return False
            self._files.put(path, size, when)
        try:
            page_file.touch(self.directory / path, when)
        except FileNotFoundError:
            return False
        except OSError:  # a volume that is read-only serves what it has
            return True
        return True

    def _make_room(self, size: int) -> None:
        """Removes pages until `size` bytes more are within the bound."""
        victims = []
        with self._lock:
            while self._files.total + size > self.size_bytes and (path := self._files.pop_oldest()) is not None:
                victims.append(path)
        for path in victims:
            self._unlink(path)
            if (name := self._own(path)) is not None:
                self.events.append(PageEvent("evicted", name))

    def _unlink(self, path: str) -> None:
        try:
            (self.directory / path).unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._complain("removing", f"the disk cache in {self.directory} cannot remove a page ({error.strerror})")

    def _scan(self) -> Iterator[tuple[float, str, int]]:
        """(time of modification, path below the directory, bytes) of each page, of all models. Strangers are left."""
        try:
            self._make_folder(self.directory / self._fingerprint)
        except OSError as error:
            self._complain("reading", f"the disk cache in {self.directory} cannot be used ({error.strerror})")
            return
        models = [entry.name for entry in _entries(self.directory) if _NAME.fullmatch(entry.name)]
        folders = [f"{model}/{entry.name}" for model in models for entry in _entries(self.directory / model)]
        for folder in folders:
            for entry in _entries(self.directory / folder):
                if entry.name.endswith(page_file.TEMPORARY):
                    page_file.remove_leftover(Path(entry.path))
                elif _FILE.fullmatch(entry.name) and (status := _status(entry)) is not None:
                    yield status.st_mtime, f"{folder}/{entry.name}", status.st_size

    def _make_folder(self, folder: Path) -> None:
        """Makes a folder of one model; what is made new is the owner's alone."""
        for path in (self.directory, self.directory / self._fingerprint, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _path(self, page_hash: bytes) -> str:
        name = page_hash.hex()
        return f"{self._fingerprint}/{name[:2]}/{name}{page_file.SUFFIX}"

    def _own(self, path: str) -> bytes | None:
        """The name of this model's page at that path; None for those of others."""
        return bytes.fromhex(Path(path).stem) if path.startswith(self._fingerprint) else None

    def _complain(self, what: str, message: str) -> None:
        """Once of each kind: a broken disk would fill the log."""
        if what not in self._complaints:
            self._complaints.add(what)
            _log.warning("%s; requests are served without it, and this is said once", message)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # gone since it was listed, or not ours to read
        return []


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except OSError:
        return None
