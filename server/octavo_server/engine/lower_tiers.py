"""Where pages go that leave the device: host memory, and from there to disk. Decisions only; the worker copies.

A page is in one tier at a time, so that device and host together hold what one LRU of their summed capacity would. Disk
is beside them: a file stays where it is when its page comes back, and the page needs no second store later.

The worker carries out the moves of one schedule in the order stores, outs, ins, loads. So a slot that a page leaves for
the device is taken by nothing else until the schedule is over; a page that comes to the device and leaves it within one
schedule keeps its slot; one that goes to a slot and must give way there within one schedule is lost, not stored.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from octavo_server.engine.block_pool import CachedPage, KVBlock
from octavo_server.engine.prefix_cache import PrefixIndex
from octavo_server.step import PageEvent, PageKey

SCHEDULES_IN_FLIGHT = 3  # what was decided longer ago than so many schedules has been computed


@dataclass(slots=True)
class Moves:
    """The moves of one schedule, as `SchedulerOutput` has them."""

    swap_out: list[tuple[int, int]]
    swap_in: list[tuple[int, int]]
    disk_stores: list[tuple[int, PageKey]]
    disk_loads: list[tuple[PageKey, int]]

    def __bool__(self) -> bool:
        return bool(self.swap_out or self.swap_in or self.disk_stores or self.disk_loads)


@dataclass(slots=True)
class SwappedPages:
    """What a swapped-out request wants back: cached pages, and slots of its own, by their place in its table."""

    num_computed_tokens: int
    pinned: list[CachedPage] = field(default_factory=list)
    slots: dict[int, int] = field(default_factory=dict)


class HostPool:
    """Slots of host memory, each as large as a page. Begins with `num_slots`; more come as they are pinned."""

    def __init__(self, num_slots: int = 0) -> None:
        self.num_slots = 0
        self.num_pinned = 0  # cached pages with pins, wherever they are now, and slots of requests' own
        self.free: list[int] = []
        self.cached: OrderedDict[int, CachedPage] = OrderedDict()  # that may be evicted, least recently used first
        self.leaving: set[int] = set()  # that this schedule's ins read
        self.grow(num_slots)

    def grow(self, count: int) -> None:
        """Adds slots, numbered on from the last."""
        self.free.extend(range(self.num_slots + count - 1, self.num_slots - 1, -1))
        self.num_slots += count


class LowerTiers:
    """Host pool and disk, and the moves decided since the last `take_moves`."""

    def __init__(self, index: PrefixIndex, host: HostPool, *, use_disk: bool, on_disk: Iterable[bytes]) -> None:
        self.index = index
        self.host = host
        self.use_disk = use_disk
        self.disk = set(on_disk)  # names; whether a file is what its name says is for the worker to compare
        self.schedule = self.swapped_in = self.swapped_out = self.loaded = self.stored = 0
        self._loading: dict[bytes, CachedPage] = {}
        self._outs: dict[int, int] = {}  # slot → page; by target, so that a later move to it replaces the former
        self._ins: dict[int, int] = {}  # page → slot
        self._stores: list[tuple[int, PageKey]] = []
        self._loads: list[tuple[PageKey, int]] = []

    def take_moves(self) -> Moves:
        """Ends a schedule. The worker must carry the moves out even if the step that they come with fails."""
        outs = [(block_id, slot) for slot, block_id in self._outs.items()]
        moves = Moves(outs, [(slot, block_id) for block_id, slot in self._ins.items()], self._stores, self._loads)
        self.schedule += 1
        self.swapped_out += len(moves.swap_out)
        self.swapped_in += len(moves.swap_in)
        self.host.free.extend(self.host.leaving)
        self.host.leaving.clear()
        self._outs, self._ins, self._stores, self._loads = {}, {}, [], []
        return moves

    def take_block(self, block: KVBlock) -> None:
        """A page of the device gets new content: what it held is demoted."""
        page = block.page
        if page is None:
            self._ins.pop(block.block_id, None)
            return
        if page.slot is None:  # else it is being read from disk too
            page.slot = self.push_out(block.block_id)  # before it leaves its block: making room must not prune it
            if page.slot is not None and page.pins == 0:
                self.host.cached[page.slot] = page
        page.block = block.page = None
        self.index.prune(page)

    def push_out(self, block_id: int) -> int | None:
        """Moves a page of the device to a slot; None if there is none."""
        slot = self._ins.pop(block_id, None)
        if slot is not None:
            self.host.leaving.discard(slot)  # it has not left yet
        elif (slot := self._take_slot()) is not None:
            self._outs[slot] = block_id
        return slot

    def bring_in(self, entry: CachedPage | int, block: KVBlock) -> None:
        """Moves a page in host memory, or a request's own slot, to a page of the device."""
        slot = entry if isinstance(entry, int) else self.leave_host(entry)
        self._ins[block.block_id] = slot
        self.host.leaving.add(slot)
        if not isinstance(entry, int):
            entry.block, block.page, entry.from_disk = block, entry, False

    def leave_host(self, page: CachedPage) -> int:
        """Takes its slot from a page. Raises RuntimeError if it has none."""
        slot, page.slot = page.slot, None
        if slot is None:
            raise RuntimeError(f"{page} is not in host memory")
        self.host.cached.pop(slot, None)
        return slot

    def free_slot(self, slot: int) -> None:
        """A slot's content is of no use any more."""
        self._outs.pop(slot, None)
        self.host.free.append(slot)

    def pin(self, page: CachedPage) -> None:
        """The page stays in host memory, or finds a slot there when it leaves the device."""
        page.pins += 1
        if page.pins == 1:
            self.host.num_pinned += 1
            if page.slot is not None:
                self.host.cached.pop(page.slot, None)

    def unpin(self, page: CachedPage) -> None:
        """The opposite of `pin`."""
        page.pins -= 1
        if page.pins == 0:
            self.host.num_pinned -= 1
            if page.slot is not None:
                self.host.cached[page.slot] = page
            self.index.prune(page)

    def release(self, swapped: SwappedPages, *, brought_in: bool) -> None:
        """A swapped-out request wants nothing any more: it is back, begins anew, or has ended."""
        self.host.num_pinned -= len(swapped.slots)
        for slot in () if brought_in else swapped.slots.values():
            self.free_slot(slot)
        for page in reversed(swapped.pinned):
            self.unpin(page)

    def load(self, page: CachedPage) -> bool:
        """Begins to read a page into host memory; False if it is not on disk, or there is no room."""
        self.pin(page)
        if page.page_hash in self.disk and self.host.num_pinned <= self.host.num_slots:
            page.slot = self._take_slot()
        if page.slot is None:
            self.unpin(page)
            return False
        page.loading = True
        self._loading[page.page_hash] = page
        self._loads.append((page.key, page.slot))
        return True

    def handle(self, event: PageEvent) -> None:
        """Takes in what the worker did beside the steps."""
        match event.kind:
            case "slots":
                self.host.grow(event.count)
            case "stored":
                self.stored += 1
                self.disk.add(event.page_hash)
            case "loaded":
                self.loaded += 1
                self._end_load(event.page_hash, loaded=True)
            case "missed" | "evicted":
                self.disk.discard(event.page_hash)
                if event.kind == "missed":
                    self._end_load(event.page_hash, loaded=False)

    def _end_load(self, name: bytes, *, loaded: bool) -> None:
        page = self._loading.pop(name)
        page.loading, page.from_disk = False, loaded
        if not loaded or page.block is not None:  # it has been computed meanwhile
            self.free_slot(self.leave_host(page))
        self.unpin(page)

    def _take_slot(self) -> int | None:
        """An empty slot, that of the least recently used page if need be."""
        if self.host.free:
            return self.host.free.pop()
        if not self.host.cached:
            return None
        page = next(iter(self.host.cached.values()))
        slot = self.leave_host(page)
        is_there = self._outs.pop(slot, None) is None
        is_settled = self.schedule - page.born > SCHEDULES_IN_FLIGHT  # no step that fails makes it worthless now
        if self.use_disk and is_there and is_settled and page.page_hash not in self.disk:
            self._stores.append((slot, page.key))
        self.index.prune(page)
        return slot
