"""Moves pages between the device, host memory and disk, as the scheduler says and in its order."""

import time
from collections import deque
from collections.abc import Collection
from typing import Final, Literal

import torch

from octavo_common.memory import spare_slots
from octavo_server.step import PageEvent, PageKey, SchedulerOutput
from octavo_server.worker import page_file
from octavo_server.worker.disk_store import DiskStore, Job
from octavo_server.worker.host_memory import HostMemory
from octavo_server.worker.models.interface import KVCacheSpec
from octavo_server.worker.page_copies import PageCopies, PlainCopies, StreamCopies, staging_pages
from octavo_server.worker.page_views import PageViews

_WANTED_STEP: Final = 0.001  # seconds by which each page flushed passes for older than the one before


def workspace_bytes(page_bytes: int, num_slots: int, device: torch.device) -> int:
    """Device memory that a swapper takes: for the bill, before there is one."""
    return page_bytes * staging_pages(page_bytes, num_slots) if device.type == "cuda" and num_slots else 0


class Swapper:
    """The lower tiers of the KV cache.

    A slot holds one page over all layers. What the scheduler calls slot s lies at `_place[s]`. A page that is to be
    written to disk stays where it is; if its slot is wanted before that is done, it keeps the place and the slot gets
    a spare one, so that nothing waits for the disk and nothing is copied. If there is no spare, the disk does without
    the page that has kept its place longest.

    Every page of `disk_stores` ends in an event "stored" or "dropped", every one of `disk_loads` in one "loaded" or
    "missed" (a load waits for the store of the same page). All methods are for one thread at a time, but `poll`.
    """

    def __init__(
        self,
        kv_cache: list[tuple[torch.Tensor, torch.Tensor]],
        spec: KVCacheSpec,
        *,
        num_slots: int,
        disk: DiskStore | None,
    ) -> None:
        """num_slots: usable ones, none of which is there before `grow`."""
        views = PageViews(kv_cache)
        if disk is not None and disk.page_bytes != views.page_bytes:
            raise ValueError(f"the disk store's pages have {disk.page_bytes} bytes, the cache's {views.page_bytes}")
        self.bytes_per_page = views.page_bytes
        self._disk = disk
        num_spares = spare_slots(views.page_bytes, num_slots) if disk is not None and num_slots else 0
        self._host = HostMemory(num_slots + num_spares, views.page_bytes, views.word, spec.device)
        self._copies: PageCopies = (
            StreamCopies(views, self._host, spec.device, staging_pages(views.page_bytes, num_slots))
            if spec.device.type == "cuda" and num_slots
            else PlainCopies(views, self._host)
        )
        self._num_spares = num_spares
        self._spares: list[int] = []
        self._place: list[int] = []
        self._writes: dict[int, Job] = {}  # by place; done or not
        self._kept: dict[int, Job] = {}  # the same of places that are no slot's, the longest kept first
        self._events: deque[PageEvent] = deque()

    @property
    def workspace_bytes(self) -> int:
        """Bytes of device memory, taken at the start and for good."""
        return self._copies.workspace_bytes

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory when all slots are there, spare ones too."""
        return self._host.num_slots * self.bytes_per_page

    @property
    def copy_bytes_per_second(self) -> float:
        """Measured, the latest copies most; before the first ones a guess."""
        return self._copies.bandwidth.bytes_per_second

    @torch.inference_mode()
    def launch(self, output: SchedulerOutput, in_flight_pages: Collection[int]) -> None:
        """Begins the step's moves; work enqueued on the current stream afterwards finds pages moved.

        in_flight_pages: pages that launched steps read or write whose results are not in yet.
        """
        for slot in (*(slot for _, slot in output.swap_out), *(slot for _, slot in output.disk_loads)):
            self._clear(slot)
        if output.swap_out or output.swap_in:
            # Where a slot or page is named twice, the last one counts.
            outs = {slot: page for page, slot in output.swap_out}
            ins = {page: slot for slot, page in output.swap_in}
            self._copies.move(
                [(page, self._place[slot]) for slot, page in outs.items()],
                [(self._place[slot], page) for page, slot in ins.items()],
                in_flight_pages,
            )
        for slot, key in output.disk_stores:
            self._store(slot, key)
        for key, slot in output.disk_loads:
            self._disk_or_error().load(key, self._host.buffer(self._place[slot]), self._copies.done())

    def step_launched(self) -> None:
        """To be called when all of a step's work is enqueued on the current stream."""
        self._copies.step_launched()

    def poll(self) -> list[PageEvent]:
        """What happened since the last call."""
        self._copies.poll()
        found = [self._events.popleft() for _ in range(len(self._events))]
        return found + self._disk.poll() if self._disk is not None else found

    @torch.inference_mode()
    def grow(self) -> bool:
        """Reserves the next chunk of host slots, pinned on CUDA; True if more are to come."""
        first = self._host.ready
        added = self._host.grow()
        if added:  # each chunk anew: who was misled by one measurement to compute again would never measure another
            self._copies.measure(first, added)
        # The first slots of all are the spare ones.
        places = range(first, first + added)
        self._spares += places[: max(0, self._num_spares - first)]
        usable = places[max(0, self._num_spares - first) :]
        self._place += usable
        if usable:
            self._events.append(PageEvent("slots", count=len(usable)))
        return self._host.ready < self._host.num_slots

    @torch.inference_mode()
    def flush(self, pages: list[tuple[Literal["device", "host"], int, PageKey]], seconds: float) -> int:
        """At an orderly end, with no step in flight: writes cached pages to disk, most wanted first.

        pages: where each is, its page or slot number, what it is. Ends when the time or the disk's bound is used up.
        Returns how many are on disk now.
        """
        if self._disk is None or not self._num_spares:
            return 0
        now, deadline = time.time(), time.monotonic() + seconds
        while self._host.ready < self._num_spares and self.grow():
            continue
        if self._host.ready < min(2, self._num_spares):
            return 0
        stored, room = 0, self._disk.size_bytes
        for index, (tier, number, key) in enumerate(pages):
            room -= page_file.file_bytes(key, self.bytes_per_page)
            if room < 0 or time.monotonic() >= deadline:
                break
            place = self._place[number] if tier == "host" else self._fetch(number)
            self._copies.done()()
            stored += self._disk.write(key, self._host.buffer(place), modified=now - index * _WANTED_STEP)
            if tier == "device":
                self._spares.append(place)
        return stored

    def close(self) -> None:
        """Ends the disk's threads and gives host memory back; copies under way are waited for."""
        self._copies.done()()
        if self._disk is not None:
            self._disk.close()
        self._host.close()

    def _store(self, slot: int, key: PageKey) -> None:
        disk, place, name = self._disk_or_error(), self._place[slot], key.page_hash
        if disk.holds(name):
            self._events.append(PageEvent("stored", name))
        elif disk.withdraw(name) or not disk.is_storing(name):  # else it is being written from another place
            if (job := disk.store(key, self._host.buffer(place), self._copies.done())) is not None:
                self._writes[place] = job
            else:
                self._events.append(PageEvent("dropped", name))

    def _clear(self, slot: int) -> None:
        """Sees to it that the slot's place may be overwritten."""
        place = self._place[slot]
        job = self._writes.pop(place, None)
        if job is not None and job.pending:
            self._kept[place] = job
            self._place[slot] = self._take_spare()

    def _take_spare(self) -> int:
        """A place that is no slot's. What has kept one longest is withdrawn if need be.

        There are two at least, and of all jobs the disk is at one at most.
        """
        while not self._spares:
            for place, job in list(self._kept.items()):
                if job.pending and not self._spares and self._disk_or_error().withdraw(job.key.page_hash):
                    self._events.append(PageEvent("dropped", job.key.page_hash))
                if not job.pending:
                    del self._kept[place]
                    self._spares.append(place)
        return self._spares.pop()

    def _fetch(self, page: int) -> int:
        """Copies a page to a spare place."""
        place = self._take_spare()
        self._copies.move([(page, place)], [], {page})
        return place

    def _disk_or_error(self) -> DiskStore:
        if self._disk is None:
            raise RuntimeError("a step moves pages to or from disk, but there is no disk tier")
        return self._disk
