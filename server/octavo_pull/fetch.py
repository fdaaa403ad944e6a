"""Fetches the files of a plan: ranges of them in parallel, each tried again where it broke off, each file verified."""

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

import httpx

from octavo_pull.digests import matches
from octavo_pull.errors import RefusedError, UnfinishedError
from octavo_pull.partial import Partial, disk_error
from octavo_pull.plan import Origin, batches
from octavo_pull.tally import Tally
from octavo_pull.transfer import NoRangesError, StoppedError, Transfer
from octavo_pull.web import Patience, TransientError

PART_BYTES: Final = 32 * 1024 * 1024
LOOK_SECONDS: Final = 0.05
LEAVE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Part:
    """[start, end) of a file; `turn` is the file's, so that parts of an earlier turn are dropped."""

    index: int
    start: int
    end: int
    turn: int


class _FileState:
    """What the threads must know of a file in common."""

    def __init__(self) -> None:
        self.turn = 0
        self.parts_left = 0
        self.whole_only = False
        self.mismatches = 0


class Downloader:
    """Fetches what is missing of a plan into a `Partial`. Used once."""

    def __init__(
        self,
        client: httpx.Client,
        origin: Origin,
        partial: Partial,
        tally: Tally,
        *,
        lost: threading.Event,
        patience: Patience,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self._origin, self._partial, self._tally = origin, partial, tally
        self._lost, self._patience, self._part_bytes = lost, patience, part_bytes
        self._stop = threading.Event()
        self._transfer = Transfer(client, origin, partial, tally, self._stop)
        self._files = [_FileState() for _ in partial.plan.files]
        self._queue: deque[Part] = deque()
        self._lock = threading.Condition()
        self._open_files = 0
        self._error: BaseException | None = None

    def run(self, connections: int) -> None:
        """Fetch all; returns when every file is verified.

        Raises:
            PullError: a file cannot be had.
        """
        for index in range(len(self._files)):
            if index not in self._partial.verified and index not in self._partial.unpacked:
                self._open_files += 1
                self._enqueue(index)
        threads = [threading.Thread(target=self._work, name=f"pull-{n}", daemon=True) for n in range(connections)]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) and not self._stop.is_set() and not self._lost.is_set():
                self._stop.wait(LOOK_SECONDS)
        finally:
            # A thread that waits for the network may stay behind: it writes nothing any more.
            self._stop_all()
            deadline = time.monotonic() + LEAVE_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        if self._error is not None:
            raise self._error
        if self._open_files:
            raise UnfinishedError("another pull into the same directory has taken over")

    def _work(self) -> None:
        while (part := self._next()) is not None:
            try:
                self._fetch(part)
            except StoppedError:
                return
            except OSError as error:
                self._fail(disk_error(error, self._partial))
            except BaseException as error:
                self._fail(error)

    def _next(self) -> Part | None:
        with self._lock:
            while not self._stop.is_set() and self._open_files:
                if self._queue:
                    return self._queue.popleft()
                self._lock.wait(0.2)
        return None

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
        self._stop_all()

    def _stop_all(self) -> None:
        self._stop.set()
        with self._lock:
            self._lock.notify_all()

    def _enqueue(self, index: int) -> None:
        """Put all that is missing of a file into the queue, of which an empty part stands for nothing missing."""
        size, state = self._partial.plan.files[index].size, self._files[index]
        state.turn += 1
        if state.whole_only:
            parts = [Part(index, 0, size, state.turn)]
        else:
            missing = self._partial.ranges[index].missing(size)
            parts = [
                Part(index, start, end, state.turn)
                for begin, finish in missing
                for start, end in batches(begin, finish, self._part_bytes)
            ] or [Part(index, size, size, state.turn)]
        with self._lock:
            state.parts_left = len(parts)
            self._queue.extend(parts)
            self._lock.notify_all()

    def _fetch(self, part: Part) -> None:
        state = self._files[part.index]
        if part.turn != state.turn:
            return
        try:
            self._fetch_patiently(part)
        except NoRangesError:
            self._begin_whole(part)
            return
        with self._lock:
            if part.turn != state.turn:
                return
            state.parts_left -= 1
            if state.parts_left:
                return
        self._finish(part.index)

    def _begin_whole(self, part: Part) -> None:
        """Of a server without ranges: the first thread that notices asks for all of the file, once."""
        state = self._files[part.index]
        with self._lock:
            if part.turn != state.turn:
                return
            state.whole_only = True
            state.turn += 1
        self._forget(part.index)
        self._enqueue(part.index)

    def _fetch_patiently(self, part: Part) -> None:
        position, failures, renewed = part.start, 0, False
        what, state = self._partial.plan.files[part.index].name, self._files[part.index]
        while position < part.end:
            try:
                for reached in self._transfer.fetch(part.index, position, part.end, whole=state.whole_only):
                    position, renewed = reached, False
                    failures = failures if state.whole_only else 0
                if position < part.end:
                    raise TransientError("the connection ended early")
            except RefusedError as error:
                if renewed or error.status != 401 or not self._origin.renew():
                    raise
                renewed = True
            except TransientError as error:
                if state.whole_only:
                    self._forget(part.index)
                    position = 0
                failures += 1
                if failures >= self._patience.attempts:
                    raise UnfinishedError(f"{what}: {error}; tried {failures} times") from error
                self._wait(self._patience.pause(failures, error.retry_after))

    def _finish(self, index: int) -> None:
        """All bytes have come: put them on the disk and compare their digest."""
        file, state = self._partial.plan.files[index], self._files[index]
        self._transfer.settle(index)
        digest = file.digest
        if index in self._transfer.opaque and digest is not None and digest.startswith("md5"):
            digest = None
        same = None if digest is None else matches(self._partial.path(index), digest, self._tick)
        if same is False:
            state.mismatches += 1
            if state.mismatches > 1:
                self._forget(index)
                raise RefusedError(f"{file.name} has another digest than {file.digest}, twice: what is sent is not it")
            self._tally.note(f"{file.name} has another digest than {file.digest}; it is fetched once more")
            self._forget(index)
            self._enqueue(index)
            return
        if same is None:
            self._tally.note(f"{file.name}: the source has no digest that can be compared; its length alone is right")
        self._partial.verify(index, checked=same is True)
        self._transfer.close(index)
        self._tally.file_done()
        with self._lock:
            self._open_files -= 1
            self._lock.notify_all()

    def _forget(self, index: int) -> None:
        self._tally.add(-self._partial.ranges[index].covered)
        self._partial.forget(index)

    def _tick(self) -> None:
        if self._stop.is_set():
            raise StoppedError

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise StoppedError
