"""The tier below host memory: pages in files, within a bound of bytes, which survive a restart.

`<directory>/<fingerprint>/<2 hex>/<hash>.page`, written and read by a thread each. It is a cache: whatever goes wrong
is a miss. A write that finds the queue full is dropped; on a full or broken disk the tier falls silent for a while and
says so once.

Several processes may share a directory (replicas on one volume). Files appear whole, by a rename, and one that has
vanished is a miss. Each process keeps the bound over all that lies in the directory, other models' pages too, as of
its last look; it looks again each minute and each time it wrote an eighth of the bound. So n processes may together
exceed it by n eighths, for a minute at most. The least recently used page goes first, whosesoever it is; a file's time
of modification says when it was last stored or loaded.

The content is users' data: files have mode 0600, the directories that are made here 0700.
"""

import logging
import os
import queue
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from octavo_server.engine.step import PageEvent, PageKey
from octavo_server.worker import page_file

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_SCANS: Final = 60.0
_SCAN_SHARE: Final = 0.05  # of the time, at most, goes into scans: on a slow volume there are fewer
_SECONDS_SILENT: Final = 60.0
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_FILE: Final = re.compile(r"[0-9a-f]{32}" + re.escape(page_file.SUFFIX))


def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class _Job:
    """A page to be written or read. `ready` waits until its memory may be touched, `done` is called once at the end."""

    key: PageKey
    memory: memoryview
    ready: Callable[[], None]
    done: Callable[[], None] = _nothing


class DiskStore:
    """Keeps pages of `page_bytes` in files, `size_bytes` of them at most.

    fingerprint: 32 hex digits that stand for all that decides what a page holds (see `fingerprint.py`).
    queue_size: writes that may wait.

    Every `store` that returned True ends in one event "stored" or "evicted", every `load` in one "loaded" or "missed".
    Besides, "evicted" and "stored" tell what other processes and the bound did to pages.
    """

    def __init__(
        self, directory: Path, size_bytes: int, fingerprint: str, page_bytes: int, *, queue_size: int = 64
    ) -> None:
        if not _NAME.fullmatch(fingerprint):
            raise ValueError(f"a fingerprint is 32 hex digits, not {fingerprint!r}")
        self.directory = directory
        self.size_bytes = size_bytes
        self.page_bytes = page_bytes
        self.queue_size = queue_size
        self._fingerprint = fingerprint
        # Path below the directory → bytes, the least recently used first.
        self._files: OrderedDict[str, int] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()  # of the two above
        self._writing: set[bytes] = set()
        self._written = threading.Condition()  # of `_writing`
        self._events: deque[PageEvent] = deque()
        self._next_scan, self._bytes_until_scan = 0.0, 0
        self._silent_until = 0.0
        self._complaints: set[str] = set()
        self._closing = False
        self._writes: queue.Queue[_Job | None] = queue.Queue(queue_size)
        self._reads: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # no bound: each read holds a host slot
        self.rescan()
        with self._lock:
            self._make_room(0)
        self._events.clear()  # who asks for `pages` knows all this
        self._threads = [
            threading.Thread(target=self._work, args=(take, act), name=f"disk-{name}", daemon=True)
            for name, take, act in (
                ("write", self._writes.get, self._write_job),
                ("read", self._reads.get, self._read_job),
            )
        ]
        for thread in self._threads:
            thread.start()

    def pages(self) -> list[bytes]:
        """Names of the pages that are there, the least recently used first."""
        with self._lock:
            return [name for path in self._files if (name := self._own(path)) is not None]

    def holds(self, page_hash: bytes) -> bool:
        """Whether a page of this name was there at the last look."""
        with self._lock:
            return self._path(page_hash) in self._files

    def store(
        self,
        key: PageKey,
        memory: memoryview,
        ready: Callable[[], None] = _nothing,
        done: Callable[[], None] = _nothing,
    ) -> bool:
        """Begins to write a page; False if it is dropped, and then nothing is called. From one thread only.

        ready: waits, in the writing thread, until `memory` has its content. done: called when it is needed no more.
        """
        if self._closing or self._writes.full() or time.monotonic() < self._silent_until:
            return False
        with self._written:
            self._writing.add(key.page_hash)
        self._writes.put(_Job(key, memory, ready, done))
        return True

    def load(self, key: PageKey, into: memoryview, ready: Callable[[], None] = _nothing) -> None:
        """Begins to read a page. ready: waits, in the reading thread, until `into` may be overwritten."""
        self._reads.put(_Job(key, into, ready))

    def poll(self) -> list[PageEvent]:
        """What happened since the last call, in order."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def write(self, key: PageKey, payload: memoryview, *, modified: float | None = None) -> bool:
        """Writes a page that is not there yet, at once, in the caller's thread; False if that failed.

        modified: when it was last wanted, if not now, in seconds since 1970.
        """
        size = page_file.file_bytes(key, len(payload))
        if size > self.size_bytes:
            return False
        path = self._path(key.page_hash)
        if self._touch(path, modified):
            return True
        try:
            if time.monotonic() >= self._next_scan or self._bytes_until_scan <= 0:
                self.rescan()
            with self._lock:
                self._make_room(size)
            target = self.directory / path
            self._make_folder(target.parent)
            page_file.write(target, key, payload, modified=modified)
        except FileNotFoundError:  # another process tidied up between two of our steps
            return False
        except OSError as error:
            self._silent_until = time.monotonic() + _SECONDS_SILENT
            self._complain("writing", f"the disk cache in {self.directory} cannot be written ({error.strerror})")
            return False
        with self._lock:
            self._total += size - self._files.pop(path, 0)
            self._files[path] = size
        self._bytes_until_scan -= size
        return True

    def rescan(self) -> None:
        """Looks what lies in the directory, which other processes may share; removes what dead ones left half done."""
        begin = time.monotonic()
        found = OrderedDict((path, size) for _, path, size in sorted(self._scan()))
        with self._lock:
            before = self._files
            self._files, self._total = found, sum(found.values())
        for kind, paths in (("evicted", before.keys() - found.keys()), ("stored", found.keys() - before.keys())):
            for path in paths:
                if (name := self._own(path)) is not None:
                    self._events.append(PageEvent("stored" if kind == "stored" else "evicted", name))
        now = time.monotonic()
        self._next_scan = now + max(_SECONDS_BETWEEN_SCANS, (now - begin) / _SCAN_SHARE)
        self._bytes_until_scan = self.size_bytes // 8

    def close(self) -> None:
        """Ends the threads after what they are at; what still waits is dropped."""
        self._closing = True
        with self._written:
            self._written.notify_all()
        for put in (self._writes.put, self._reads.put):
            put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, take: Callable[[], _Job | None], act: Callable[[_Job], None]) -> None:
        while (job := take()) is not None:
            if not self._closing:
                act(job)
            job.done()

    def _write_job(self, job: _Job) -> None:
        try:
            job.ready()
            stored = self.write(job.key, job.memory)
        except Exception:  # the thread must live on: without it no slot comes back
            _log.exception("writing a page to the disk cache failed")
            stored = False
        self._events.append(PageEvent("stored" if stored else "evicted", job.key.page_hash))
        self._finish_writing(job.key)

    def _read_job(self, job: _Job) -> None:
        with self._written:
            self._written.wait_for(lambda: self._closing or job.key.page_hash not in self._writing)
        path = self._path(job.key.page_hash)
        try:
            job.ready()
            loaded = self._read(path, job)
        except Exception:
            _log.exception("reading a page from the disk cache failed")
            loaded = False
        if not loaded:
            self._forget(path)
        self._events.append(PageEvent("loaded" if loaded else "missed", job.key.page_hash))

    def _read(self, path: str, job: _Job) -> bool:
        target = self.directory / path
        try:
            if not page_file.read(target, job.key, job.memory):
                self._complain("content", f"a page in {self.directory} is broken or another one's: removed")
                return False
        except FileNotFoundError:
            return False
        except OSError as error:
            self._complain("reading", f"the disk cache in {self.directory} cannot be read ({error.strerror})")
            return False
        self._touch(path, None)
        return True

    def _touch(self, path: str, modified: float | None) -> bool:
        """Notes that a page was wanted; False if it is not there."""
        with self._lock:
            if path not in self._files:
                return False
            self._files.move_to_end(path)
        try:
            page_file.touch(self.directory / path, modified)
        except FileNotFoundError:
            return False
        except OSError:  # a volume that is read-only serves what it has
            return True
        return True

    def _forget(self, path: str) -> None:
        with self._lock:
            self._total -= self._files.pop(path, 0)
        self._unlink(path)

    def _make_room(self, size: int) -> None:
        """Removes pages until `size` bytes more are within the bound. Call with the lock held."""
        while self._files and self._total + size > self.size_bytes:
            path, freed = self._files.popitem(last=False)
            self._total -= freed
            self._unlink(path)
            if (name := self._own(path)) is not None:
                self._events.append(PageEvent("evicted", name))

    def _unlink(self, path: str) -> None:
        try:
            (self.directory / path).unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._complain("removing", f"the disk cache in {self.directory} cannot remove a page ({error.strerror})")

    def _scan(self) -> Iterator[tuple[int, str, int]]:
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
                    yield status.st_mtime_ns, f"{folder}/{entry.name}", status.st_size

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

    def _finish_writing(self, key: PageKey) -> None:
        with self._written:
            self._writing.discard(key.page_hash)
            self._written.notify_all()

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
