"""Copies of pages between the KV cache and host slots: at once on the CPU, on a stream of their own on CUDA.

A move out is (page, slot), a move in (slot, page), and all outs come before all ins. Slots are those of `HostMemory`.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Final, Protocol

import torch

from octavo_server.worker.host_memory import HostMemory
from octavo_server.worker.page_views import PageViews

Moves = list[tuple[int, int]]
STAGING_BYTES: Final = 64 * 2**20
_ASSUMED_BYTES_PER_SECOND: Final = 8e9  # until the first copies are measured: PCIe of the third generation, nearly
_KEPT: Final = 0.9  # of what was measured before, at each new measurement


def staging_pages(page_bytes: int, num_slots: int) -> int:
    """Pages in the staging buffer on the device."""
    return max(1, min(num_slots, STAGING_BYTES // page_bytes))


class Bandwidth:
    """Bytes a second, as the ratio of two sums that fade: so that a copy counts by its size."""

    def __init__(self) -> None:
        self._bytes, self._seconds = 0.0, 0.0

    def add(self, num_bytes: int, seconds: float) -> None:
        """Takes one copy in."""
        self._bytes = _KEPT * self._bytes + num_bytes
        self._seconds = _KEPT * self._seconds + seconds

    @property
    def bytes_per_second(self) -> float:
        """A stated guess before the first copy."""
        return self._bytes / self._seconds if self._seconds > 0 else _ASSUMED_BYTES_PER_SECOND


class PageCopies(Protocol):
    """What the swapper needs of a device."""

    bandwidth: Bandwidth
    workspace_bytes: int

    def move(self, outs: Moves, ins: Moves, in_flight: Collection[int]) -> None:
        """Outs, then ins. Work enqueued on the device after this finds them done; pages in flight wait for theirs."""
        ...

    def step_launched(self) -> None:
        """All work of a step is enqueued: `in_flight` pages of later moves wait until it is done."""
        ...

    def done(self) -> Callable[[], None]:
        """Something that waits, in any thread, until all moves so far have read and written their host slots."""
        ...

    def measure(self, first: int, slots: int) -> None:
        """Times copies into `slots` slots from `first` on, which nothing uses yet."""
        ...

    def poll(self) -> None:
        """Takes the times of the copies in that are done."""
        ...


class PlainCopies:
    """On the CPU: everything at once, in order."""

    workspace_bytes = 0

    def __init__(self, views: PageViews, host: HostMemory) -> None:
        self._views = views
        self._host = host
        self.bandwidth = Bandwidth()

    def move(self, outs: Moves, ins: Moves, in_flight: Collection[int]) -> None:
        """See PageCopies. No page is in flight where nothing runs beside."""
        begin = time.perf_counter()
        for pages, slots in _batches([(slot, page) for page, slot in outs], len(outs)):
            for index, first, count in self._host.stretches(slots):
                self._views.gather(torch.tensor(pages[index : index + count]), self._host.rows(first, count))
        for pages, slots in _batches(ins, len(ins)):
            for index, first, count in self._host.stretches(slots):
                self._views.scatter(torch.tensor(pages[index : index + count]), self._host.rows(first, count))
        self.bandwidth.add((len(outs) + len(ins)) * self._views.page_bytes, time.perf_counter() - begin)

    def step_launched(self) -> None:
        """Nothing to note: a step is over when its launch is."""

    def done(self) -> Callable[[], None]:
        """See PageCopies."""
        return lambda: None

    def measure(self, first: int, slots: int) -> None:
        """Not ahead of the first copies: it would only touch memory that may never be needed."""

    def poll(self) -> None:
        """Nothing is under way."""


class StreamCopies:
    """On CUDA: the host waits for nothing. Pages pass through a staging buffer, by few kernels and few large copies.

    Moves of pages that no step in flight touches are enqueued first and start at once, beside the running step; the
    others wait for the event behind the last launched step. What is enqueued on the compute stream afterwards waits
    until the last page was read or written, but not until what was read has reached the host.
    """

    def __init__(self, views: PageViews, host: HostMemory, device: torch.device, batch: int) -> None:
        """batch: pages in the staging buffer."""
        self._views = views
        self._host = host
        self._device = device
        self._batch = batch
        self._staging = torch.empty(self._batch, views.page_words, dtype=views.word, device=device)
        self.workspace_bytes = self._staging.nbytes
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))  # who had the buffer's memory before may still run
        self._step_done, self._pages_done = _new_event(), _new_event()
        self._copies_done: torch.cuda.Event | None = None
        self._timed: deque[tuple[torch.cuda.Event, torch.cuda.Event, int]] = deque()
        self.bandwidth = Bandwidth()

    def move(self, outs: Moves, ins: Moves, in_flight: Collection[int]) -> None:
        """See PageCopies."""
        early, late = split(outs, ins, in_flight)
        with torch.cuda.stream(self._stream):
            self._enqueue(*early)
            if any(late):
                self._stream.wait_event(self._step_done)
                self._enqueue(*late)
        torch.cuda.current_stream(self._device).wait_event(self._pages_done)

    def step_launched(self) -> None:
        """See PageCopies."""
        self._step_done.record(torch.cuda.current_stream(self._device))

    def done(self) -> Callable[[], None]:
        """See PageCopies. The waiting thread sleeps."""
        event = self._copies_done
        return event.synchronize if event is not None else lambda: None

    def measure(self, first: int, slots: int) -> None:
        """Copies what happens to be in the staging buffer into the slots and back; no page is touched."""
        count = min(slots, self._batch)
        staged, rows = self._staging[:count], self._host.rows(first, count)
        with torch.cuda.stream(self._stream):
            # Twice, the second time timed: the first copies of a chunk, and of a device at rest, take several times
            # as long, and while they run the host, busy with the start, has time to enqueue the others.
            _out_and_in(staged, rows)
            begin = self._event()
            _out_and_in(staged, rows)
            self._finish(begin, 2 * count)

    def poll(self) -> None:
        """See PageCopies. Events are asked only in order: the first that is not done ends it."""
        while self._timed and self._timed[0][1].query():  # type: ignore[no-untyped-call]
            begin, end, num_bytes = self._timed.popleft()
            self.bandwidth.add(num_bytes, begin.elapsed_time(end) / 1000)

    def _enqueue(self, outs: Moves, ins: Moves) -> None:
        if not outs and not ins:
            return
        begin = self._event()
        for pages, slots in _batches([(slot, page) for page, slot in outs], self._batch):
            self._views.gather(self._index(pages), self._staging[: len(pages)])
            self._pages_done.record(self._stream)
            for index, first, count in self._host.stretches(slots):
                self._host.rows(first, count).copy_(self._staging[index : index + count], non_blocking=True)
        for pages, slots in _batches(ins, self._batch):
            for index, first, count in self._host.stretches(slots):
                self._staging[index : index + count].copy_(self._host.rows(first, count), non_blocking=True)
            self._views.scatter(self._index(pages), self._staging[: len(pages)])
            self._pages_done.record(self._stream)
        self._finish(begin, len(outs) + len(ins))

    def _finish(self, begin: torch.cuda.Event, num_pages: int) -> None:
        self._copies_done = self._event()
        self._timed.append((begin, self._copies_done, num_pages * self._views.page_bytes))

    def _event(self) -> torch.cuda.Event:
        event = _new_event(enable_timing=True, blocking=True)
        event.record(self._stream)
        return event

    def _index(self, pages: list[int]) -> torch.Tensor:
        """On the device, from pinned memory: a copy from any other would wait for the stream."""
        return torch.tensor(pages, pin_memory=True).to(self._device, non_blocking=True)


def _new_event(*, enable_timing: bool = False, blocking: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing, blocking)  # type: ignore[no-untyped-call]


def _out_and_in(staged: torch.Tensor, rows: torch.Tensor) -> None:
    rows.copy_(staged, non_blocking=True)
    staged.copy_(rows, non_blocking=True)


def split(outs: Moves, ins: Moves, in_flight: Collection[int]) -> tuple[tuple[Moves, Moves], tuple[Moves, Moves]]:
    """Outs and ins that may start at once, and those that must wait for the steps in flight.

    A move waits if its page is in flight, or if it brings in what such a move takes out. So moves of one page stay
    together and in order; and as no slot that is read by an in is written afterwards, no other pair can meet.
    """
    late_outs = [(page, slot) for page, slot in outs if page in in_flight]
    awaited = {slot for _, slot in late_outs}
    late_ins = [(slot, page) for slot, page in ins if page in in_flight or slot in awaited]
    early_outs = [(page, slot) for page, slot in outs if page not in in_flight]
    early_ins = [(slot, page) for slot, page in ins if page not in in_flight and slot not in awaited]
    return (early_outs, early_ins), (late_outs, late_ins)


def _batches(moves: Moves, size: int) -> Iterator[tuple[list[int], list[int]]]:
    """(pages, slots) of (slot, page) moves, `size` at a time, slots in order: so that neighbours are copied as one."""
    ordered = sorted(moves)
    for begin in range(0, len(ordered), size or 1):
        part = ordered[begin : begin + size]
        yield [page for _, page in part], [slot for slot, _ in part]
