"""Block tables: which pages hold the tokens of which request, and which of them others may share.

Only full pages whose tokens are all known are shared, so what is shared is never written. They are registered when the
step that computes them is scheduled: every layer stores K and V before it attends, so a request may hit them in the
same step. A step that fails takes that back (`forget_step`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from octavo_server import page_hash
from octavo_server.engine.block_pool import BlockPool, CachedPage, KVBlock
from octavo_server.engine.lower_tiers import SCHEDULES_IN_FLIGHT, HostPool, LowerTiers, Moves, SwappedPages
from octavo_server.engine.prefix_cache import PrefixIndex
from octavo_server.engine.request import Request
from octavo_server.step import PageEvent, PageKey


@dataclass(slots=True)
class KVCacheStats:
    """Gauges and counters, named as in `ipc.EngineStats`. Hits are counted in tokens, by where they were found."""

    kv_blocks_cached: int = 0
    host_blocks_used: int = 0
    host_blocks_total: int = 0
    disk_blocks: int = 0
    swapped_in: int = 0
    swapped_out: int = 0
    loaded: int = 0
    stored: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prefix_hits_host: int = 0
    prefix_hits_disk: int = 0


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """What a waiting request would find: its first `num_tokens` tokens need not be computed.

    `loading`: pages behind them are being read from disk, or could be (`begin_loads`). `resumed`: the request was
    swapped out, and all that it had is here. The rest is for the manager.
    """

    num_tokens: int
    loading: bool
    resumed: bool
    entries: list[CachedPage | int]  # the table behind its holes: cached pages, and host slots of the request's own
    num_holes: int
    num_held: int  # of `entries`, those on the device that somebody holds anyway
    chain: list[CachedPage]  # the registered pages that the sequence begins with
    block_size: int
    version: tuple[int, int]

    def blocks_needed(self, num_tokens: int) -> int:
        """Pages that admission takes from the free ones, with room for `num_tokens` tokens from the first on.

        A free page that is hit counts: it is free no more.
        """
        return max(-(-num_tokens // self.block_size) - self.num_holes, len(self.entries)) - self.num_held


@dataclass(slots=True)
class _Waiting:
    """What is remembered of a request that holds no pages."""

    swapped: SwappedPages | None = None
    packed: bytes = b""  # its tokens, as far as they had to be compared
    hit: PrefixHit | None = None
    loads: list[CachedPage] | None = None  # that it waits for; None: not tried yet


@dataclass(slots=True)
class _Held:
    """The table of a running request. `blocks` has None for the `num_holes` first ones, which have left the window."""

    last: CachedPage | None  # the deepest registered page; None: no more can be registered
    num_named: int  # pages that are registered, or were tried
    blocks: list[KVBlock | None] = field(default_factory=list)
    num_holes: int = 0
    quiet_until: int = 0  # up to so many tokens `allocate_slots` has nothing to do


class KVCacheManager:
    """Gives requests their pages and takes them back. Token i lies in page i // block_size of its request's table.

    `window`: tokens that a query sees, itself included, if all layers slide: pages wholly before it are freed, and
    stand as page 0 in `block_ids`. Without `host` nothing is kept that leaves the device; `on_disk` are the names of
    the pages found there at start.

    A request's calls: `lookup`, perhaps `begin_loads`, `admit`; `allocate_slots` before and `cache_pages` after each of
    its steps; `free` or `swap_out`, and again. At its very end `free`, in whatever state it is.
    """

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        *,
        prefix_caching: bool = True,
        host: HostPool | None = None,
        on_disk: Iterable[bytes] = (),
        use_disk: bool = False,
        window: int | None = None,
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.window = window
        self.index = PrefixIndex()
        self.tiers = LowerTiers(self.index, host or HostPool(), use_disk=use_disk, on_disk=on_disk)
        self._stats = KVCacheStats()
        self._held: dict[str, _Held] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._version = 0  # of all that a hit depends on

    @property
    def num_tokens_total(self) -> int:
        """Tokens that fit into all pages."""
        return self.pool.num_blocks * self.block_size

    @property
    def num_blocks_used(self) -> int:
        """Pages that requests hold."""
        return self.pool.num_blocks - self.pool.num_free

    @property
    def stats(self) -> KVCacheStats:
        """The state now."""
        stats, tiers, host = self._stats, self.tiers, self.tiers.host
        stats.kv_blocks_cached, stats.disk_blocks = len(self.pool.cached), len(tiers.disk)
        stats.host_blocks_used, stats.host_blocks_total = host.num_slots - len(host.free), host.num_slots
        stats.swapped_in, stats.swapped_out = tiers.swapped_in, tiers.swapped_out
        stats.loaded, stats.stored = tiers.loaded, tiers.stored
        return stats

    def block_ids(self, request: Request) -> list[int]:
        """The request's block table, as page numbers."""
        held = self._held.get(request.request_id)
        return [] if held is None else [0 if block is None else block.block_id for block in held.blocks]

    def blocks_needed(self, request: Request, num_tokens: int) -> int:
        """Pages that are missing before the first `num_tokens` tokens of the request have a slot each."""
        held = self._held.get(request.request_id)
        return max(0, -(-num_tokens // self.block_size) - (0 if held is None else len(held.blocks)))

    def lookup(self, request: Request) -> PrefixHit:
        """What admission would find now. At least one token stays to be computed, if it was not swapped out."""
        waiting = self._waiting.setdefault(request.request_id, _Waiting())
        version = (self._version, request.num_tokens)
        if waiting.hit is None or waiting.hit.version != version:
            waiting.hit = self._find(request, waiting, version)
        return waiting.hit

    def begin_loads(self, request: Request) -> bool:
        """Whether pages of the request's prefix are being read from disk; begins that, once for each admission.

        The request is best passed over until they are there: then they are hit in host memory.
        """
        hit, waiting = self.lookup(request), self._waiting[request.request_id]
        if waiting.loads is None:
            waiting.loads = self._start_loads(request, hit) if hit.loading else []
        waiting.loads = [page for page in waiting.loads if page.loading]
        return bool(waiting.loads)

    def admit(self, request: Request, hit: PrefixHit, num_new_tokens: int) -> bool:
        """Gives a waiting request what it has hit, and room for `num_new_tokens` more; sets what it has computed.

        False, and nothing is taken, if pages lack or `lookup` finds something else by now.
        """
        now, end = self.lookup(request), hit.num_tokens + num_new_tokens
        if now.num_tokens != hit.num_tokens or now.blocks_needed(end) > self.pool.num_free:
            return False
        waiting, held = self._waiting.pop(request.request_id), self._hold(request, now.chain)
        self._count_hit(request, now)
        self._fill_table(held, now, end)
        if waiting.swapped is not None:
            self.tiers.release(waiting.swapped, brought_in=now.resumed)
        request.num_computed_tokens = now.num_tokens
        self._register(request, held, end)
        return True

    def allocate_slots(self, request: Request, num_new_tokens: int) -> list[int] | None:
        """Makes room for the next `num_new_tokens` tokens after those computed, and registers the pages they complete.

        Returns the numbers of the pages added (none if the last page has room), or None, and takes nothing, if the pool
        is out of pages. A request that was never admitted begins without a hit.
        """
        end = request.num_computed_tokens + num_new_tokens
        held = self._held.get(request.request_id)
        if held is not None:
            if end <= held.quiet_until:
                return []
            self._leave_window(held, request.num_computed_tokens)
        needed = self.blocks_needed(request, end)
        if needed > self.pool.num_free:
            return None
        held = held or self._hold(request, [])
        added = self._take(needed) if needed else []
        held.blocks += added
        self._register(request, held, end)
        held.quiet_until = min(len(held.blocks) * self.block_size, (held.num_named + 1) * self.block_size - 1)
        if self.window is not None:
            held.quiet_until = min(held.quiet_until, (held.num_holes + 1) * self.block_size + self.window - 1)
        return [block.block_id for block in added]

    def cache_pages(self, request: Request) -> None:
        """Registers the full pages of tokens that are known by now. Cheap if no page border was crossed."""
        held = self._held.get(request.request_id)
        if held is not None and request.num_computed_tokens // self.block_size > held.num_named:
            self._register(request, held, request.num_computed_tokens)

    def free(self, request: Request) -> None:
        """Gives back all that the request has, the tail of the sequence first. Nothing to do if it has nothing."""
        waiting, held = self._waiting.pop(request.request_id, None), self._held.pop(request.request_id, None)
        if waiting is not None and waiting.swapped is not None:
            self.tiers.release(waiting.swapped, brought_in=False)
        if held is not None:
            self.pool.free(block for block in reversed(held.blocks) if block is not None)
            if held.last is not None:
                held.last.refs -= 1
                self.index.prune(held.last)
        self._version += 1

    def swap_out(self, request: Request) -> bool:
        """Gives back the request's pages so that `admit` can bring those that it alone held back later.

        Registered ones stay on the device until their place is needed, and only then go to host memory, where room is
        kept for them; the others go there now. False, and nothing is done, if there is no room.
        """
        held, host = self._held[request.request_id], self.tiers.host
        self._leave_window(held, request.num_computed_tokens)
        used = held.blocks[: -(-request.num_computed_tokens // self.block_size)]
        own = [(index, block) for index, block in enumerate(used) if block is not None and block.ref_count == 1]
        now = sum(block.page is None for _, block in own)
        if host.num_pinned + len(own) > host.num_slots or now > len(host.free) + len(host.cached):
            return False
        swapped = SwappedPages(request.num_computed_tokens)
        for index, block in own:
            if block.page is not None:
                self.tiers.pin(block.page)
                swapped.pinned.append(block.page)
            elif (slot := self.tiers.push_out(block.block_id)) is not None:
                host.num_pinned += 1
                swapped.slots[index] = slot
        self.free(request)
        self._waiting[request.request_id] = _Waiting(swapped)
        return True

    def forget_step(self, requests: Iterable[Request]) -> None:
        """A step has failed: what these requests registered for it, or for one launched behind it, is not hit any more.

        To be called before they are freed. Takes time in proportion to all cached pages.
        """
        writers = {request.request_id for request in requests}
        since = self.tiers.schedule - SCHEDULES_IN_FLIGHT
        for page in [page for page in self.index.pages.values() if page.born >= since and page.writer in writers]:
            self._forget(page)

    def take_moves(self) -> Moves:
        """The moves of the schedule that ends with this call, see `LowerTiers`."""
        return self.tiers.take_moves()

    def handle(self, event: PageEvent) -> None:
        """Takes in what the worker did beside the steps."""
        self.tiers.handle(event)
        self._version += 1

    def drop_cached(self) -> None:
        """Forgets what no request holds or wants back, on disk too; files stay, and are written anew."""
        for page in list(self.index.pages.values()):
            if page.pins == 0 and (page.block is None or page.block.ref_count == 0):
                self._forget(page)
        self.tiers.disk.clear()

    def cached_pages(self) -> list[tuple[Literal["device", "host"], int, PageKey]]:
        """What is cached but not on disk, the most recently used first: tier, page or slot, and content."""
        found: list[tuple[Literal["device", "host"], int, CachedPage | None]]
        found = [("device", block.block_id, block.page) for block in reversed(self.pool.cached.values())]
        found += [("host", slot, page) for slot, page in reversed(self.tiers.host.cached.items())]
        return [(tier, at, page.key) for tier, at, page in found if page and page.page_hash not in self.tiers.disk]

    def _shares(self, request: Request) -> bool:
        return self.prefix_caching and len(request.page_hashes) >= request.num_prompt_tokens // self.block_size

    def _first_seen(self, position: int) -> int:
        """The first page that the query at this position sees."""
        return 0 if self.window is None else max(0, position - self.window + 1) // self.block_size

    def _limit(self, request: Request) -> int:
        """Pages that a hit may have at most: one token at least is left to compute."""
        if request.skip_prefix or not self._shares(request):
            return 0
        return min(len(request.page_hashes), (request.num_tokens - 1) // self.block_size)

    def _find(self, request: Request, waiting: _Waiting, version: tuple[int, int]) -> PrefixHit:
        chain = self._match(request, waiting)
        own = None if waiting.swapped is None else self._resume(waiting.swapped, chain)
        num_tokens, entries = own or self._reuse(chain[: self._limit(request)])
        chain = chain[: num_tokens // self.block_size]
        loading = own is None and self._awaits_disk(request, waiting, len(chain))
        held = sum(not isinstance(e, int) and e.block is not None and e.block.ref_count > 0 for e in entries)
        holes = self._first_seen(num_tokens)
        return PrefixHit(num_tokens, loading, own is not None, entries, holes, held, chain, self.block_size, version)

    def _match(self, request: Request, waiting: _Waiting) -> list[CachedPage]:
        chain = self.index.match(request.salt, request.page_hashes) if self._shares(request) else []
        tokens = b"".join([page.tokens for page in chain])
        if len(waiting.packed) < len(tokens):
            waiting.packed = page_hash.pack(request.token_ids[: len(chain) * self.block_size])
        while not waiting.packed.startswith(tokens):  # a name that stands for something else
            tokens = tokens[: -len(chain.pop().tokens)]
        return chain

    def _page_tokens(self, request: Request, index: int) -> bytes:
        return page_hash.pack(request.token_ids[index * self.block_size : (index + 1) * self.block_size])

    def _resume(self, swapped: SwappedPages, chain: list[CachedPage]) -> tuple[int, list[CachedPage | int]] | None:
        """The tokens and the table, behind its holes, of a swapped-out request, if all of it is here."""
        num_tokens, entries = swapped.num_computed_tokens, list[CachedPage | int]()
        for index in range(self._first_seen(num_tokens), -(-num_tokens // self.block_size)):
            if (slot := swapped.slots.get(index)) is not None:
                entries.append(slot)
            elif index < len(chain) and chain[index].is_here:
                entries.append(chain[index])
            else:
                return None
        return num_tokens, entries

    def _reuse(self, chain: list[CachedPage]) -> tuple[int, list[CachedPage | int]]:
        """The same for any other: as many tokens as leave a next one that sees only pages that are here."""
        reach = first_here = 0
        for count, page in enumerate(chain, start=1):
            if page.is_here:
                if first_here == 0 or self._first_seen(count * self.block_size) >= first_here:
                    reach = count
            elif self.window is None:
                break
            else:
                first_here = count
        num_tokens = reach * self.block_size
        return num_tokens, list(chain[self._first_seen(num_tokens) : reach])

    def _awaits_disk(self, request: Request, waiting: _Waiting, reach: int) -> bool:
        if waiting.loads is not None:
            return any(page.loading for page in waiting.loads)
        return reach < self._limit(request) and request.page_hashes[reach] in self.tiers.disk

    def _start_loads(self, request: Request, hit: PrefixHit) -> list[CachedPage]:
        """Begins to load what follows the hit, as far as it is on disk and host memory has room beside the hit."""
        beside = [page for page in hit.chain if page.slot is not None]
        for page in beside:
            self.tiers.pin(page)
        loads: list[CachedPage] = []
        previous = hit.chain[-1] if hit.chain else self.index.root(request.salt)
        for index in range(len(hit.chain), self._limit(request)):
            name = request.page_hashes[index]
            known = name in self.index.pages or name in self.tiers.disk
            child = self.index.child(previous, name, self._page_tokens(request, index)) if known else None
            if child is None or not (child.is_here or child.loading or self.tiers.load(child)):
                break
            if child.loading:
                loads.append(child)
            previous = child
        for page in reversed(beside):
            self.tiers.unpin(page)
        self.index.prune(previous)
        self._version += 1
        return loads

    def _hold(self, request: Request, chain: list[CachedPage]) -> _Held:
        last: CachedPage | None = None
        if self._shares(request):
            last = chain[-1] if chain else self.index.root(request.salt)
            last.refs += 1
        held = self._held[request.request_id] = _Held(last, len(chain))
        return held

    def _take(self, count: int) -> list[KVBlock]:
        blocks = self.pool.allocate(count)
        for block in blocks:
            self.tiers.take_block(block)
        self._version += 1
        return blocks

    def _fill_table(self, held: _Held, hit: PrefixHit, num_tokens: int) -> None:
        """Shares what is on the device, before anything is evicted, and brings in the rest."""
        missing = hit.blocks_needed(num_tokens) + hit.num_held
        for entry in hit.entries:
            if not isinstance(entry, int):
                if entry.block is not None:
                    self.pool.share([entry.block])
                    missing -= 1
                elif entry.slot is not None:
                    self.tiers.host.cached.pop(entry.slot, None)  # making room must not evict it
        added = iter(self._take(missing))
        held.num_holes, held.blocks = hit.num_holes, [None] * hit.num_holes
        for entry in hit.entries:
            block = None if isinstance(entry, int) else entry.block
            if block is None:
                block = next(added)
                self.tiers.bring_in(entry, block)
            held.blocks.append(block)
        held.blocks += added

    def _count_hit(self, request: Request, hit: PrefixHit) -> None:
        """Once for each request: what a preempted one finds of its own is no hit."""
        if request.num_preemptions > 0 or request.skip_prefix or not self._shares(request):
            return
        lower = [entry for entry in hit.entries if not isinstance(entry, int) and entry.block is None]
        disk = self.block_size * sum(page.from_disk for page in lower)
        host = self.block_size * len(lower) - disk
        request.num_cached_tokens, request.num_external_tokens = hit.num_tokens, host + disk
        self._stats.prefix_queries += request.num_prompt_tokens
        self._stats.prefix_hits += hit.num_tokens - host - disk
        self._stats.prefix_hits_host += host
        self._stats.prefix_hits_disk += disk

    def _register(self, request: Request, held: _Held, end: int) -> None:
        """Registers the full pages of known tokens before `end`."""
        first = held.num_named
        held.num_named = max(first, min(end, request.num_tokens) // self.block_size)
        for index in range(first, held.num_named):
            if held.last is None:
                return
            tokens = self._page_tokens(request, index)
            if index == len(request.page_hashes):
                request.page_hashes.append(page_hash.extend(held.last.page_hash, tokens))
            page = self.index.child(held.last, request.page_hashes[index], tokens)
            if page is not None:
                page.refs += 1
                self._attach(page, held.blocks[index], request.request_id)
            held.last.refs -= 1
            self.index.prune(held.last)
            held.last = page
            self._version += 1

    def _attach(self, page: CachedPage, block: KVBlock | None, writer: str) -> None:
        """The page is in `block` from now on, unless it is on the device already, or has left the window."""
        if page.block is not None or block is None:
            return
        if page.slot is not None and not page.loading:
            self.tiers.free_slot(self.tiers.leave_host(page))
        page.block, block.page, page.writer, page.born = block, page, writer, self.tiers.schedule

    def _forget(self, page: CachedPage) -> None:
        if page.block is not None:
            self.pool.forget(page.block)
            page.block = None
        if page.slot is not None and not page.loading:
            self.tiers.free_slot(self.tiers.leave_host(page))
        self.index.prune(page)
        self._version += 1

    def _leave_window(self, held: _Held, position: int) -> None:
        first = min(self._first_seen(position), len(held.blocks))
        if first > held.num_holes:
            self.pool.free(block for block in held.blocks[held.num_holes : first] if block is not None)
            held.blocks[held.num_holes : first] = [None] * (first - held.num_holes)
            held.num_holes = first
            self._version += 1
