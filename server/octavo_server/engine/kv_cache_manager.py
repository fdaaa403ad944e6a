"""Block tables: which pages hold the tokens of which request, and which of them others may share.

Only full pages whose tokens are all known are shared, so what is shared is never written. They are registered when the
step that computes them is scheduled: every layer stores K and V before it attends, so a request may hit them in the
same step. A step that fails takes that back (`forget_step`).
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from octavo_server import page_hash
from octavo_server.engine.block_pool import BlockPool, CachedPage, KVBlock
from octavo_server.engine.lower_tiers import LowerTiers
from octavo_server.engine.prefix_cache import PrefixIndex
from octavo_server.engine.request import Request
from octavo_server.step import PageEvent, PageKey


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """What a waiting request would find: its first `num_tokens` tokens need not be computed.

    `loading`: pages behind them are being read from disk, or could be (`begin_loads`). `resumed`: the request was
    swapped out, and all that it had is here. The rest is for the manager.
    """

    num_tokens: int
    loading: bool
    resumed: bool
    pages: list[CachedPage]  # the table behind its holes
    num_holes: int
    num_held: int  # of `pages`, those on the device that somebody holds anyway
    chain: list[CachedPage]  # the registered pages that the sequence begins with
    block_size: int

    def blocks_needed(self, num_tokens: int) -> int:
        """Pages, free ones that are hit among them, that admission takes to have room for the first `num_tokens`."""
        return max(-(-num_tokens // self.block_size) - self.num_holes, len(self.pages)) - self.num_held


@dataclass(slots=True)
class _Waiting:
    """What is remembered of a request that holds no pages."""

    resume_at: int = 0  # tokens that were computed when it was swapped out; 0: it was not
    swapped: dict[int, CachedPage] = field(default_factory=dict)  # pinned for it, by their place in its table
    packed: bytes = b""  # its tokens, as far as they had to be compared
    loads: list[CachedPage] | None = None  # that it waits for; None: none was begun


@dataclass(slots=True)
class _Held:
    """The table of a running request. `blocks` has None for the `num_holes` first ones, which have left the window."""

    last: CachedPage | None  # the deepest registered page; None: no more can be registered
    num_named: int  # pages that are registered, or were tried
    num_holes: int
    blocks: list[KVBlock | None]


class KVCacheManager:
    """Gives requests their pages and takes them back. Token i lies in page i // block_size of its request's table.

    `window`: tokens that a query sees, itself included, if all layers slide: pages wholly before it are freed, and
    stand as page 0 in `block_ids`. `on_disk`: the names of the pages found there at start; None: there is no disk.

    A request's calls: `lookup`, perhaps `begin_loads`, `admit`; `allocate_slots` before and `cache_pages` after each of
    its steps; `free` or `swap_out`, and again. At its very end `free`, in whatever state it is.
    """

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        *,
        prefix_caching: bool = True,
        on_disk: Iterable[bytes] | None = None,
        window: int | None = None,
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.window = window
        self.index = PrefixIndex()
        self.tiers = LowerTiers(self.index, on_disk)
        self._held: dict[str, _Held] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._hits: dict[str, PrefixHit] = {}  # of lookups since anything changed that a hit depends on
        self._last_loads = -1  # the schedule that last began any

    @property
    def stats(self) -> Counter[str]:
        """Gauges and counters, named as in `ipc.EngineStats`."""
        tiers = self.tiers
        return Counter(
            kv_blocks_used=self.pool.num_blocks - self.pool.num_free,
            kv_blocks_cached=len(self.pool.cached),
            host_blocks_used=tiers.num_slots - len(tiers.free_slots),
            host_blocks_total=tiers.num_slots,
            disk_blocks=len(tiers.disk),
            **tiers.counts,
        )

    def block_ids(self, request: Request) -> list[int]:
        """The request's block table, as page numbers."""
        return [0 if block is None else block.block_id for block in self._held[request.request_id].blocks]

    def blocks_needed(self, request: Request, num_tokens: int) -> int:
        """Pages that are missing before the first `num_tokens` tokens of the request have a slot each."""
        return max(0, -(-num_tokens // self.block_size) - len(self._held[request.request_id].blocks))

    def lookup(self, request: Request) -> PrefixHit:
        """What admission would find now. At least one token stays to be computed, if it was not swapped out."""
        if (known := self._hits.get(request.request_id)) is not None:
            return known
        waiting = self._waiting.setdefault(request.request_id, _Waiting())
        chain, limit = self._match(request, waiting), self._limit(request)
        pages = self._resume(waiting, chain)
        resumed = bool(pages)
        num_tokens = waiting.resume_at if resumed else self._reach(chain[:limit])
        chain, num_holes = chain[: num_tokens // self.block_size], self._first_seen(num_tokens)
        pages = pages or chain[num_holes:]
        if waiting.loads is not None:
            loading = any(page.loading for page in waiting.loads)
        else:
            loading = not resumed and len(chain) < limit and request.page_hashes[len(chain)] in self.tiers.disk
        num_held = sum(page.block is not None and page.block.ref_count > 0 for page in pages)
        hit = PrefixHit(num_tokens, loading, resumed, pages, num_holes, num_held, chain, self.block_size)
        self._hits[request.request_id] = hit
        return hit

    def begin_loads(self, request: Request) -> bool:
        """Whether pages of the request's prefix are being read from disk; begins that, once for each admission.

        As many as host memory has room for beside the hit. The request is best passed over until they are there.
        """
        waiting = self._waiting.get(request.request_id)
        if self.tiers.is_stuck:
            return False
        if waiting is not None and waiting.loads is not None:
            return any(page.loading for page in waiting.loads)
        if self._last_loads == self.tiers.schedule:
            return True  # one request a schedule: thousands of pages take a while
        hit, waiting = self.lookup(request), self._waiting[request.request_id]
        if not hit.loading:
            return False
        self._last_loads = self.tiers.schedule
        beside = [page for page in hit.chain if page.slot is not None]
        self.tiers.pin(beside)
        loads = waiting.loads = []
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
        self.tiers.unpin(reversed(beside))
        self.index.prune(previous)
        self._hits.clear()
        return bool(loads)

    def admit(self, request: Request, hit: PrefixHit, num_new_tokens: int) -> bool:
        """Gives a waiting request what it has hit, and room for `num_new_tokens` more; sets what it has computed.

        False, and nothing is taken, if pages lack or `lookup` finds something else by now.
        """
        now, end = self.lookup(request), hit.num_tokens + num_new_tokens
        if now.num_tokens != hit.num_tokens or now.blocks_needed(end) > self.pool.num_free:
            return False
        last: CachedPage | None = None
        if self._shares(request):
            last = now.chain[-1] if now.chain else self.index.root(request.salt)
            last.refs += 1
        self._count_hit(request, now)
        held = _Held(last, len(now.chain), now.num_holes, self._fill_table(now, end))
        self._held[request.request_id] = held
        self.tiers.unpin(reversed(self._waiting.pop(request.request_id).swapped.values()))
        request.num_computed_tokens = now.num_tokens
        self._register(request, held, end)
        return True

    def allocate_slots(self, request: Request, num_new_tokens: int) -> list[int] | None:
        """Makes room for the next `num_new_tokens` tokens after those computed, and registers the pages they complete.

        Returns the numbers of the pages added, or None, and takes nothing, if the pool is out of pages.
        """
        held, end = self._held[request.request_id], request.num_computed_tokens + num_new_tokens
        self._leave_window(held, request.num_computed_tokens)
        needed = self.blocks_needed(request, end)
        if needed > self.pool.num_free:
            return None
        added = self._take(needed)
        held.blocks += added
        self._register(request, held, end)
        return [block.block_id for block in added]

    def cache_pages(self, request: Request) -> None:
        """Registers the full pages of tokens that are known by now."""
        self._register(request, self._held[request.request_id], request.num_computed_tokens)

    def free(self, request: Request) -> None:
        """Gives back all that the request has, the tail of the sequence first. Nothing to do if it has nothing."""
        waiting, held = self._waiting.pop(request.request_id, None), self._held.pop(request.request_id, None)
        if waiting is not None:
            self.tiers.unpin(reversed(waiting.swapped.values()))
        if held is not None:
            self.pool.free(block for block in reversed(held.blocks) if block is not None)
            if held.last is not None:
                held.last.refs -= 1
                self.index.prune(held.last)
        self._hits.clear()

    def swap_out(self, request: Request) -> bool:
        """Gives back the request's pages so that `admit` can bring those that it alone held back later.

        Registered ones stay on the device until their place is needed, and only then go to host memory, where room is
        kept for them; the others go there now. False, and nothing is done, if there is no room.
        """
        held, tiers = self._held[request.request_id], self.tiers
        self._leave_window(held, request.num_computed_tokens)
        used = held.blocks[: -(-request.num_computed_tokens // self.block_size)]
        own = {index: block for index, block in enumerate(used) if block is not None and block.ref_count == 1}
        now = sum(block.page is None for block in own.values())
        if tiers.num_pinned + len(own) > tiers.num_slots or now > len(tiers.free_slots) + len(tiers.cached):
            return False
        waiting = _Waiting(resume_at=request.num_computed_tokens)
        for index, block in own.items():
            page = block.page or CachedPage(b"", None, b"", slot=tiers.push_out(block.block_id))
            tiers.pin([page])
            waiting.swapped[index] = page
        self.free(request)
        self._waiting[request.request_id] = waiting
        return True

    def forget_step(self, requests: Collection[Request], *, all_steps: bool = False) -> None:
        """A step has failed: what these requests registered for it, or for one launched behind it, is not hit any more.

        `all_steps`: nor what they registered ever, because it came to nothing. To be called before they are freed.
        Takes time in proportion to all cached pages.
        """
        writers = {request.request_id for request in requests}
        if all_steps:
            self.tiers.disk.difference_update(*(request.page_hashes for request in requests))
        since = 0 if all_steps else self.tiers.schedule - self.tiers.in_flight - 2
        for page in [page for page in self.index.pages.values() if page.born >= since and page.writer in writers]:
            if page.block is not None:
                self.pool.forget(page.block)
                page.block = None
            self.tiers.drop_slot(page)
            self.index.prune(page)
        self._hits.clear()

    def handle(self, event: PageEvent) -> None:
        """Takes in what the worker did beside the steps."""
        self.tiers.handle(event)
        self._hits.clear()

    def cached_pages(self) -> list[tuple[Literal["device", "host"], int, PageKey]]:
        """What is cached but not on disk, the most recently used first: tier, page or slot, and content."""
        found: list[tuple[Literal["device", "host"], int, CachedPage | None]]
        found = [("device", block.block_id, block.page) for block in reversed(self.pool.cached.values())]
        found += [("host", slot, page) for slot, page in reversed(self.tiers.cached.items())]
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

    def _resume(self, waiting: _Waiting, chain: list[CachedPage]) -> list[CachedPage]:
        """The table, behind its holes, of a swapped-out request, if all of it is here; else nothing."""
        pages: list[CachedPage] = []
        for index in range(self._first_seen(waiting.resume_at), -(-waiting.resume_at // self.block_size)):
            page = waiting.swapped.get(index) or (chain[index] if index < len(chain) else None)
            if page is None or not page.is_here:
                return []
            pages.append(page)
        return pages

    def _reach(self, chain: list[CachedPage]) -> int:
        """The most tokens behind which the next one sees only pages of the chain that are here."""
        reach = first_here = 0
        for count, page in enumerate(chain, start=1):
            if page.is_here:
                if first_here == 0 or self._first_seen(count * self.block_size) >= first_here:
                    reach = count
            elif self.window is None:
                break
            else:
                first_here = count
        return reach * self.block_size

    def _take(self, count: int) -> list[KVBlock]:
        blocks = self.pool.allocate(count)
        for block in blocks:
            self.tiers.take_block(block)
        self._hits.clear()
        return blocks

    def _fill_table(self, hit: PrefixHit, num_tokens: int) -> list[KVBlock | None]:
        """Shares what is on the device, before anything is evicted, and brings in the rest."""
        here = [page.block for page in hit.pages if page.block is not None]
        away = [page for page in hit.pages if page.block is None]
        self.pool.share(here)
        self.tiers.pin(away)  # making room must not evict them
        added = self._take(hit.blocks_needed(num_tokens) + hit.num_held - len(here))
        for page, block in zip(away, added, strict=False):
            self.tiers.bring_in(page, block)
        self.tiers.unpin(away)
        return [None] * hit.num_holes + [page.block for page in hit.pages] + added[len(away) :]

    def _count_hit(self, request: Request, hit: PrefixHit) -> None:
        """Once for each request: what a preempted one finds of its own is no hit."""
        if request.num_preemptions > 0 or request.skip_prefix or not self._shares(request):
            return
        lower = [page for page in hit.pages if page.block is None]
        disk = self.block_size * sum(page.from_disk for page in lower)
        host = self.block_size * len(lower) - disk
        request.num_cached_tokens, request.num_external_tokens = hit.num_tokens, host + disk
        self.tiers.counts.update(
            prefix_queries=request.num_prompt_tokens,
            prefix_hits=hit.num_tokens - host - disk,
            prefix_hits_host=host,
            prefix_hits_disk=disk,
        )

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
            page, block = self.index.child(held.last, request.page_hashes[index], tokens), held.blocks[index]
            if page is not None:
                page.refs += 1
                if page.block is None and block is not None:  # neither on the device already nor out of the window
                    self.tiers.drop_slot(page)
                    page.block, block.page = block, page
                    page.writer, page.born = request.request_id, self.tiers.schedule
            held.last.refs -= 1
            self.index.prune(held.last)
            held.last = page
            self._hits.clear()

    def _leave_window(self, held: _Held, position: int) -> None:
        first = min(self._first_seen(position), len(held.blocks))
        if first > held.num_holes:
            self.pool.free(block for block in held.blocks[held.num_holes : first] if block is not None)
            held.blocks[held.num_holes : first] = [None] * (first - held.num_holes)
            held.num_holes = first
            self._hits.clear()
