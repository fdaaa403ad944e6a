"""The tier below host memory: pages in files, which survive a restart.

Files are written and read by a thread each (see `page_directory.py` for where they lie, and how many). It is a cache:
whatever goes wrong is a miss. On a full or broken disk the tier falls silent for a while and says so once.

The newest write goes first. Sequences leave the device from their end; so if the disk is slower than what comes, it
gets their beginnings, and what is withdrawn, the oldest, are ends: no page on disk is of use without those before it.
"""

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from octavo_server.step import PageEvent, PageKey
from octavo_server.worker.page_directory import PageDirectory

_log = logging.getLogger(__name__)
_SECONDS_TO_END: Final = 10.0  # for a page that is being written or read
STUCK_SECONDS: Final = 10.0  # without a page that was read, while some are asked for


def _nothing() -> None:
    return


@dataclass(slots=True, eq=False)
class Job:
    """A page to be written or read. `ready` waits until its memory may be touched; it is needed while `pending`."""

    key: PageKey
    memory: memoryview
    ready: Callable[[], None]
    pending: bool = True


class DiskStore:
    """Keeps pages of `page_bytes` in files, `size_bytes` of them at most; see `PageDirectory` for the arguments.

    Every `store` that is not refused or withdrawn ends in one event "stored" or "dropped", every `load` in one "loaded"
    or "missed". Besides, "evicted" and "stored" tell what other processes and the bound did to pages.
    """

    def __init__(self, directory: Path, size_bytes: int, fingerprint: str, page_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.page_bytes = page_bytes
        self._files = PageDirectory(directory, size_bytes, fingerprint)
        self.pages, self.holds = self._files.pages, self._files.holds
        self.write, self.rescan = self._files.write, self._files.rescan
        self._closing = False
        # Neither has a bound of its own: each job holds a place in host memory.
        self._writes: OrderedDict[bytes, Job] = OrderedDict()  # that wait; by name, the newest last
        self._writing: bytes | None = None  # the page that the thread is at
        self._changed = threading.Condition()  # of the two above
        self._reads: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._num_reading = 0  # and the one that is under way; of the thread that polls, as the next two
        self._last_read = 0.0  # when one came to an end, or the first was asked for
        self._is_stuck = False
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("disk write", self._write_all), ("disk read", self._read_all))
        ]
        for thread in self._threads:
            thread.start()

    def store(self, key: PageKey, memory: memoryview, ready: Callable[[], None] = _nothing) -> Job | None:
        """Begins to write a page, unless `is_storing`; None if that is refused.

        ready: waits, in the writing thread, until `memory` has its content.
        """
        if self._closing or self._files.is_silent:
            return None
        job = Job(key, memory, ready)
        with self._changed:
            self._writes[key.page_hash] = job
            self._changed.notify_all()
        return job

    def is_storing(self, page_hash: bytes) -> bool:
        """Whether a page waits to be written, or is being written."""
        with self._changed:
            return self._is_storing(page_hash)

    def withdraw(self, page_hash: bytes) -> bool:
        """Takes back a write that has not begun; False if there is none. No event tells of it."""
        with self._changed:
            if (job := self._writes.pop(page_hash, None)) is not None:
                job.pending = False
                self._changed.notify_all()
            return job is not None

    def load(self, key: PageKey, into: memoryview, ready: Callable[[], None] = _nothing) -> None:
        """Begins to read a page. ready: waits, in the reading thread, until `into` may be overwritten."""
        self._last_read = self._last_read if self._num_reading else time.monotonic()
        self._num_reading += 1
        self._reads.put(Job(key, into, ready))

    def poll(self) -> list[PageEvent]:
        """What happened since the last call, in order. Says "stuck" if reads have not come back for `STUCK_SECONDS`."""
        found = [self._files.events.popleft() for _ in range(len(self._files.events))]
        if num_read := sum(event.kind in ("loaded", "missed") for event in found):
            self._num_reading, self._last_read = self._num_reading - num_read, time.monotonic()
        is_stuck = self._num_reading > 0 and time.monotonic() - self._last_read > STUCK_SECONDS
        if is_stuck != self._is_stuck:
            self._is_stuck = is_stuck
            found.append(PageEvent("stuck" if is_stuck else "back"))
            _log.warning(
                "the disk cache %s", "does not answer: nobody waits for it any more" if is_stuck else "answers again"
            )
        return found

    def close(self) -> None:
        """Ends the threads after what they are at; what still waits is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._reads.put(None)
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)

    def _is_storing(self, page_hash: bytes) -> bool:
        return page_hash == self._writing or page_hash in self._writes

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._writes)
                if self._closing:
                    return
                self._writing, job = self._writes.popitem()
            stored = self._write(job)
            job.pending = False
            self._files.events.append(PageEvent("stored" if stored else "dropped", job.key.page_hash))
            with self._changed:
                self._writing = None
                self._changed.notify_all()

    def _read_all(self) -> None:
        while (job := self._reads.get()) is not None:
            name = job.key.page_hash
            with self._changed:
                while not self._closing and self._is_storing(name):
                    self._changed.wait()
            if not self._closing:
                self._files.events.append(PageEvent("loaded" if self._read(job) else "missed", name))

    def _write(self, job: Job) -> bool:
        try:
            job.ready()
            return self.write(job.key, job.memory)
        except Exception:  # the thread must live on: without it no place comes back
            _log.exception("writing a page to the disk cache failed")
            return False

    def _read(self, job: Job) -> bool:
        try:
            job.ready()
            return self._files.read(job.key, job.memory)
        except Exception:
            _log.exception("reading a page from the disk cache failed")
            return False
