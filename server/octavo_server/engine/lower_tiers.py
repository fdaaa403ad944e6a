"""Where pages go that leave the device: host memory, and from there to disk. Decisions only; the worker copies.

A page is in one tier at a time, so that device and host together hold what one LRU of their summed capacity would. Disk
is beside them: what comes to host memory is stored once it is known to be right, and its file stays when it goes.

The worker carries out the moves of one schedule in the order outs, ins, stores, loads. So a slot that a page leaves for
the device is taken by nothing else until the schedule is over; a page that comes to the device and leaves it within one
schedule keeps its slot; if more leave it than there are slots, the ends of sequences are lost, not their beginnings.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable

from octavo_server.engine.block_pool import CachedPage, KVBlock
from octavo_server.engine.prefix_cache import PrefixIndex
from octavo_server.step import PageEvent, PageKey, SchedulerOutput


class LowerTiers:
    """Slots of host memory, each as large as a page, the names on disk, and the moves since the last `take_moves`.

    There are no slots until events tell of them. `on_disk`: the names found there at start; None: there is no disk.
    Whether a file is what its name says is for the worker to compare.
    """

    def __init__(self, index: PrefixIndex, on_disk: Iterable[bytes] | None) -> None:
        self.index = index
        self.use_disk = on_disk is not None
        self.disk = set(on_disk or ())
        self.num_slots = 0
        self.num_pinned = 0  # pages with pins, wherever they are now
        self.free_slots: list[int] = []
        self.cached: OrderedDict[int, CachedPage] = OrderedDict()  # by slot; may be evicted, least recently used first
        self.schedule = 0
        self.is_stuck = False  # reading from disk, says the worker
        self.in_flight = 1  # steps that may be under way at a schedule
        self.counts: Counter[str] = Counter()  # named as in `ipc.EngineStats`
        self._outs: dict[int, int] = {}  # slot → page; by target, so that a later move to it replaces the former
        self._ins: dict[int, int] = {}  # page → slot, which is free when the schedule is over
        self._unsaved: dict[CachedPage, None] = {}  # pushed out, and not stored yet; the end of a sequence first
        self._loads: list[tuple[PageKey, int]] = []

    def take_moves(self, output: SchedulerOutput) -> None:
        """Ends a schedule. The worker must carry its moves out even if the step of `output` fails."""
        output.swap_out.extend((block_id, slot) for slot, block_id in self._outs.items())
        output.swap_in.extend((slot, block_id) for block_id, slot in self._ins.items())
        for page in list(self._unsaved):
            if page.slot is not None and (page.pins or self.schedule - page.born <= self.in_flight):
                continue  # its request or a step may yet fail, and make it worthless
            del self._unsaved[page]
            if page.slot is not None and not page.loading:
                output.disk_stores.append((page.slot, page.key))
            self.counts["dropped"] += page.slot is None and page.block is None
        output.disk_loads.extend(reversed(self._loads))  # so that the end of a sequence goes first
        self.schedule += 1
        self.counts.update(swapped_out=len(self._outs), swapped_in=len(self._ins))
        self.free_slots.extend(self._ins.values())
        self._outs, self._ins, self._loads = {}, {}, []

    def take_block(self, block: KVBlock) -> None:
        """A page of the device gets new content: what it held is demoted."""
        page = block.page
        if page is None:
            if (slot := self._ins.pop(block.block_id, None)) is not None:
                self.free_slots.append(slot)
            return
        if page.slot is None:  # else it is being read from disk too
            if self.use_disk and page.page_hash not in self.disk:
                self._unsaved[page] = None
            page.slot = self.push_out(block.block_id, 0 if page.pins else page.depth)  # its block keeps it from `prune`
            if page.slot is not None and page.pins == 0:
                self.cached[page.slot] = page
        page.block = block.page = None
        self.index.prune(page)

    def push_out(self, block_id: int, depth: int = 0) -> int | None:
        """Moves a page of the device to a slot; None if there is none."""
        slot = self._ins.pop(block_id, None)  # if it has not left yet
        if slot is None and (slot := self._take_slot(depth)) is not None:
            self._outs[slot] = block_id
        return slot

    def bring_in(self, page: CachedPage, block: KVBlock) -> None:
        """Moves a page from host memory, where it must be pinned, to the device."""
        if page.slot is None:
            raise RuntimeError(f"{page} is not in host memory")
        self._ins[block.block_id], page.slot = page.slot, None
        page.block, page.from_disk = block, False
        if page.parent is not None:  # else it is a request's own
            block.page = page

    def drop_slot(self, page: CachedPage) -> None:
        """What host memory has of the page is of no use any more. A slot that is being read into stays taken."""
        if page.slot is not None and not page.loading:
            self.cached.pop(page.slot, None)
            self._outs.pop(page.slot, None)
            self.free_slots.append(page.slot)
            page.slot = None

    def pin(self, pages: Iterable[CachedPage]) -> None:
        """These stay in host memory, or find a slot there when they leave the device."""
        for page in pages:
            page.pins += 1
            if page.pins == 1:
                self.num_pinned += 1
                if page.slot is not None:
                    self.cached.pop(page.slot, None)

    def unpin(self, pages: Iterable[CachedPage]) -> None:
        """The opposite of `pin`; the last one is the most recently used."""
        for page in pages:
            page.pins -= 1
            if page.pins > 0:
                continue
            self.num_pinned -= 1
            if page.parent is None:  # a request's own: nobody else wants it
                self.drop_slot(page)
                continue
            if page.slot is not None:
                self.cached[page.slot] = page
            self.index.prune(page)

    def load(self, page: CachedPage) -> bool:
        """Begins to read a page into host memory; False if it is not on disk, or there is no room."""
        self.pin([page])
        if page.page_hash in self.disk and self.num_pinned <= self.num_slots:
            page.slot = self._take_slot()
        if page.slot is None:
            self.unpin([page])
            return False
        page.loading = True
        self._loads.append((page.key, page.slot))
        return True

    def handle(self, event: PageEvent) -> None:
        """Takes in what the worker did beside the steps."""
        if event.kind in ("stored", "dropped", "loaded"):
            self.counts[event.kind] += 1
        if event.kind in ("evicted", "dropped", "missed"):
            self.disk.discard(event.page_hash)
        match event.kind:
            case "slots":
                self.free_slots.extend(range(self.num_slots + event.count - 1, self.num_slots - 1, -1))
                self.num_slots += event.count
            case "stuck" | "back":
                self.is_stuck = event.kind == "stuck"
            case "stored":
                self.disk.add(event.page_hash)
            case "loaded" | "missed":
                page, loaded = self.index.pages[event.page_hash], event.kind == "loaded"
                page.loading, page.from_disk = False, loaded
                if not loaded or page.block is not None:  # it has been computed meanwhile
                    self.drop_slot(page)
                self.unpin([page])

    def _take_slot(self, depth: int = 0) -> int | None:
        """An empty slot, or the least recently used page's, unless that came just now and its depth is no greater."""
        if not self.free_slots and self.cached:
            slot, page = next(iter(self.cached.items()))
            if slot not in self._outs or page.depth > depth:
                self.drop_slot(page)
                self.index.prune(page)
        return self.free_slots.pop() if self.free_slots else None
