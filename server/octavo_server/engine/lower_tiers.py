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
from octavo_server.engine.step import PageEvent, PageKey

SCHEDULES_IN_FLIGHT = 3  # a page that was registered longer ago has been computed


@dataclass(slots=True)
class Moves:
    """The moves of one schedule, as `SchedulerOutput` names them."""

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
    """Slots of host memory, as large as a page each. Starts with `num_slots` of them; more come as they are pinned."""

    def __init__(self, num_slots: int = 0) -> None:
        self.num_slots = 0
        self.num_pinned = 0  # cached pages that must have a slot wherever they are now, and slots of requests' own
        self.free: list[int] = []
        self.cached: OrderedDict[int, CachedPage] = OrderedDict()  # that may be evicted, least recently used first
        self.leaving: set[int] = set()  # read by this schedule's ins
        self.grow(num_slots)

    @property
    def num_used(self) -> int:
        """Slots with something in them."""
        return self.num_slots - len(self.free)

    def grow(self, count: int) -> None:
        """Adds slots, numbered on from the last."""
        self.free.extend(range(self.num_slots + count - 1, self.num_slots - 1, -1))
        self.num_slots += count


class LowerTiers:
    """Host pool and disk, and the moves decided since the last `take_moves`."""

    def __init__(self, index: PrefixIndex, host: HostPool | None, *, use_disk: bool, on_disk: Iterable[bytes]) -> None:
        self.index = index
        self.host = host if host is not None else HostPool()
        self.use_disk = use_disk
        self.disk = set(on_disk) if use_disk else set()  # names; what stands behind one is compared by the worker
        self.schedule = 0
        self.swapped_in = self.swapped_out = self.loaded = self.stored = 0
        self._loading: dict[bytes, CachedPage] = {}
        self._outs: dict[int, int] = {}  # slot → page; keyed by target: a later move to it takes the former's place
        self._ins: dict[int, int] = {}  # page → slot
        self._stores: list[tuple[int, PageKey]] = []
        self._loads: list[tuple[PageKey, int]] = []

    def take_moves(self) -> Moves:
        """Ends a schedule. The worker carries the moves out even if the step that they come with fails."""
        outs = [(block_id, slot) for slot, block_id in self._outs.items()]
        moves = Moves(outs, [(slot, block_id) for block_id, slot in self._ins.items()], self._stores, self._loads)
        self.schedule += 1
        self.swapped_out += len(self._outs)
        self.swapped_in += len(self._ins)
        self.host.free.extend(self.host.leaving)
        self.host.leaving.clear()
        self._outs, self._ins, self._stores, self._loads = {}, {}, [], []
        return moves

    def can_pin(self, count: int, now: int) -> bool:
        """Whether `count` more pages could have slots for as long as they want, `now` of them at once."""
        host = self.host
        return host.num_pinned + count <= host.num_slots and now <= len(host.free) + len(host.cached)

    def take_block(self, block: KVBlock) -> None:
        """A page of the device gets new content: what it held is demoted."""
        page = block.page
        if page is None:
            self._ins.pop(block.block_id, None)
            return
        if page.slot is None:  # else it is being read from disk too
            page.slot = self.push_out(block.block_id)  # still counts as here: making room must not prune it
            if page.slot is not None and page.pins == 0:
                self.host.cached[page.slot] = page
        page.block = block.page = None
        self.index.prune(page)

    def push_out(self, block_id: int) -> int | None:
        """Moves a page of the device to a slot; None if there is none."""
        slot = self._ins.pop(block_id, None)
        if slot is not None:
            self.host.leaving.discard(slot)  # it has not left yet
            return slot
        slot = self._take_slot()
        if slot is not None:
            self._outs[slot] = block_id
        return slot

    def bring_in(self, entry: CachedPage | int, block: KVBlock) -> None:
        """Moves a page in host memory, or a request's own slot, to a page of the device."""
        if isinstance(entry, int):
            slot = entry
        else:
            slot = self.leave_host(entry)
            entry.block, block.page = block, entry
            entry.from_disk = False
        self._ins[block.block_id] = slot
        self.host.leaving.add(slot)

    def leave_host(self, page: CachedPage) -> int:
        """Takes a page's slot from it."""
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
        """The page stays in host memory, or gets a slot there when it leaves the device."""
        if page.pins == 0:
            self.host.num_pinned += 1
            if page.slot is not None:
                self.host.cached.pop(page.slot, None)
        page.pins += 1

    def unpin(self, page: CachedPage) -> None:
        """The opposite of `pin`."""
        page.pins -= 1
        if page.pins == 0:
            self.host.num_pinned -= 1
            if page.slot is not None:
                self.host.cached[page.slot] = page
            self.index.prune(page)

    def release(self, swapped: SwappedPages, *, brought_in: bool) -> None:
        """A swapped-out request wants nothing any more: it is back, starts again, or has ended."""
        self.host.num_pinned -= len(swapped.slots)
        if not brought_in:
            for slot in swapped.slots.values():
                self.free_slot(slot)
        for page in reversed(swapped.pinned):
            self.unpin(page)

    def load(self, page: CachedPage) -> bool:
        """Begins to read a page from disk into host memory; False if there is no room."""
        self.pin(page)
        page.slot = self._take_slot() if self.host.num_pinned <= self.host.num_slots else None
        if page.slot is None:
            self.unpin(page)
            return False
        page.loading = True
        self._loading[page.page_hash] = page
        self._loads.append((page_key(page), page.slot))
        return True

    def handle(self, event: PageEvent) -> None:
        """Takes in what the worker did beside the steps."""
        match event.kind:
            case "slots":
                self.host.grow(event.count)
            case "stored":
                self.stored += 1
                self.disk.add(event.page_hash)
            case "evicted":
                self.disk.discard(event.page_hash)
            case "loaded" | "missed":
                self._end_load(event)

    def _end_load(self, event: PageEvent) -> None:
        loaded, page = event.kind == "loaded", self._loading.pop(event.page_hash, None)
        self.loaded += loaded
        if not loaded:
            self.disk.discard(event.page_hash)
        if page is None:
            return
        page.loading, page.from_disk = False, loaded
        if not loaded or page.block is not None:  # or it has been computed meanwhile
            self.free_slot(self.leave_host(page))
        self.unpin(page)

    def _take_slot(self) -> int | None:
        """An empty slot, that of the least recently used page if need be."""
        host = self.host
        if host.free:
            return host.free.pop()
        if not host.cached:
            return None
        page = next(iter(host.cached.values()))
        slot = self.leave_host(page)
        arrives_only_now = self._outs.pop(slot, None) is not None
        settled = self.schedule - page.born > SCHEDULES_IN_FLIGHT  # else a step that fails could make it worthless
        if self.use_disk and settled and not arrives_only_now and page.page_hash not in self.disk:
            self._stores.append((slot, page_key(page)))
        self.index.prune(page)
        return slot


def page_key(page: CachedPage) -> PageKey:
    """What stands for the page on disk."""
    return PageKey(page.page_hash, b"" if page.parent is None else page.parent.page_hash, page.tokens)
