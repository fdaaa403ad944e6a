"""The tier below host memory: pages in files, which survive a restart.

Files are written and read by a thread each (see `page_directory.py` for where they lie, and how many). It is a cache:
whatever goes wrong is a miss. A write that finds the queue full is dropped; on a full or broken disk the tier falls
silent for a while and says so once.
"""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from octavo_server.step import PageEvent, PageKey
from octavo_server.worker.page_directory import PageDirectory

_log = logging.getLogger(__name__)
_SECONDS_TO_END: Final = 10.0  # for a page that is being written or read


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
    """Keeps pages of `page_bytes` in files, `size_bytes` of them at most; see `PageDirectory` for the arguments.

    queue_size: writes that may wait.

    Every `store` that returned True ends in one event "stored" or "evicted", every `load` in one "loaded" or "missed".
    Besides, "evicted" and "stored" tell what other processes and the bound did to pages.
    """

    def __init__(
        self, directory: Path, size_bytes: int, fingerprint: str, page_bytes: int, *, queue_size: int = 64
    ) -> None:
        self.size_bytes = size_bytes
        self.page_bytes = page_bytes
        self.queue_size = queue_size
        self._files = PageDirectory(directory, size_bytes, fingerprint)
        self.pages, self.holds = self._files.pages, self._files.holds
        self.write, self.rescan = self._files.write, self._files.rescan
        self._writing: set[bytes] = set()
        self._written = threading.Condition()  # of `_writing`
        self._closing = False
        # No bound of their own: `store` counts the one, and in the other each read holds a host slot.
        self._writes: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, args=(jobs, act), name=name, daemon=True)
            for name, jobs, act in (
                ("disk write", self._writes, self._write_job),
                ("disk read", self._reads, self._read_job),
            )
        ]
        for thread in self._threads:
            thread.start()

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
        if self._closing or self._files.is_silent or self._writes.qsize() >= self.queue_size:
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
        return [self._files.events.popleft() for _ in range(len(self._files.events))]

    def close(self) -> None:
        """Ends the threads after what they are at; what still waits is dropped."""
        self._closing = True
        with self._written:
            self._written.notify_all()
        for jobs in (self._writes, self._reads):
            jobs.put(None)
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)

    def _work(self, jobs: "queue.SimpleQueue[_Job | None]", act: Callable[[_Job], None]) -> None:
        while (job := jobs.get()) is not None:
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
        self._files.events.append(PageEvent("stored" if stored else "evicted", job.key.page_hash))
        with self._written:
            self._writing.discard(job.key.page_hash)
            self._written.notify_all()

    def _read_job(self, job: _Job) -> None:
        with self._written:
            self._written.wait_for(lambda: self._closing or job.key.page_hash not in self._writing)
        try:
            job.ready()
            loaded = self._files.read(job.key, job.memory)
        except Exception:
            _log.exception("reading a page from the disk cache failed")
            loaded = False
        self._files.events.append(PageEvent("loaded" if loaded else "missed", job.key.page_hash))
