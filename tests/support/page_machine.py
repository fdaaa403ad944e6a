"""A worker without a model, for the KV cache's bookkeeping: what stands where, token by token, and who must hold what.

A slot of a page holds the digest of everything its K and V depend on: the salt's tenant and all tokens up to there. So
a page that is lost, overwritten, moved in the wrong order or shown to the wrong tenant is seen when it is read.
"""

from collections import Counter
from dataclasses import dataclass, field

from octavo_server import page_hash
from octavo_server.engine.block_pool import BlockPool, CachedPage
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.request import Request
from octavo_server.ipc import SamplingParams
from octavo_server.step import PageEvent, PageKey, SchedulerOutput

HASH = page_hash.HASH_BYTES
GARBAGE = -1


def make_request(
    request_id: str, tokens: list[int], page_size: int, salt: bytes = b"", *, shared: bool = True, whole: bool = False
) -> Request:
    """A request as it arrives; `whole`: every prompt token must be computed."""
    names = page_hash.hash_pages(tokens, page_size, salt) if shared else b""
    sampling = SamplingParams(prompt_logprobs=0 if whole else None)
    hashes = [names[start : start + HASH] for start in range(0, len(names), HASH)]
    return Request(request_id, tokens, sampling, 1 << 20, salt=salt, page_hashes=hashes)


def take_moves(cache: KVCacheManager) -> SchedulerOutput:
    """Ends a schedule; an output with nothing but its moves."""
    output = SchedulerOutput(0)
    cache.tiers.take_moves(output)
    return output


def drop_cached(cache: KVCacheManager) -> None:
    """Nothing is hit any more of what no request holds or wants back: as if a step had failed that computed it."""
    for page in cache.index.pages.values():
        if page.pins == 0 and (page.block is None or page.block.ref_count == 0):
            page.writer, page.born = "dropped", cache.tiers.schedule
    cache.forget_step([make_request("dropped", [0], 1)])
    cache.tiers.disk.clear()


@dataclass
class Sizes:
    """One machine's shape."""

    num_blocks: int = 8
    page_size: int = 2
    num_slots: int = 4
    use_disk: bool = False
    window: int | None = None
    prefix_caching: bool = True


@dataclass
class PageMachine:
    """Requests come, grow, are swapped and go, in schedules whose moves and computations are carried out."""

    sizes: Sizes
    on_disk: dict[bytes, tuple[PageKey, list[int]]] = field(default_factory=dict)
    past: list[list[int]] = field(default_factory=list)  # sequences that have ended

    def __post_init__(self) -> None:
        sizes = self.sizes
        self.pool = BlockPool(sizes.num_blocks)
        self.cache = KVCacheManager(
            self.pool,
            sizes.page_size,
            prefix_caching=sizes.prefix_caching,
            on_disk=list(self.on_disk) if sizes.use_disk else None,
            window=sizes.window,
        )
        self.host = self.cache.tiers
        self.device = [[GARBAGE] * sizes.page_size for _ in range(sizes.num_blocks)]
        self.memory: dict[int, list[int]] = {}
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.step: dict[str, int] = {}  # tokens that this schedule computes
        self.recent: list[Request] = []  # in the step before …
        self.written: list[tuple[int, int]] = []  # … and where it wrote: page and offset
        self.events: list[PageEvent] = []
        self.counts: Counter[str] = Counter()
        self.serial = 0
        self.pin_slots(sizes.num_slots)

    # What a scheduler does

    def arrive(self, tokens: list[int], salt: bytes = b"", *, shared: bool = True, whole: bool = False) -> Request:
        self.serial += 1
        request = make_request(
            f"r{self.serial}",
            tokens,
            self.sizes.page_size,
            salt,
            shared=shared and self.sizes.prefix_caching,
            whole=whole,
        )
        self.waiting.append(request)
        return request

    def admit(self, request: Request, num_new_tokens: int) -> bool:
        """Admits a request with at most so many new tokens, unless pages lack or are being loaded."""
        hit = self.cache.lookup(request)
        if not hit.resumed:
            expected = self.naive_hit(request)
            assert hit.num_tokens == expected, f"{request} hits {hit.num_tokens} tokens, of {expected} that are here"
        if self.cache.begin_loads(request):
            return False
        hit = self.cache.lookup(request)
        assert not hit.loading
        count = min(num_new_tokens, request.num_tokens - hit.num_tokens)
        needed, free = hit.blocks_needed(hit.num_tokens + count), self.pool.num_free
        if not self.cache.admit(request, hit, count):
            assert needed > free
            assert self.pool.num_free == free
            return False
        assert free - self.pool.num_free == needed
        assert request.num_computed_tokens == hit.num_tokens
        self.counts["resumed" if hit.resumed else "admitted"] += 1
        self.counts["hit"] += hit.num_tokens > 0 and not hit.resumed
        self.waiting.remove(request)
        self.running.append(request)
        self.step[request.request_id] = count
        return True

    def grow(self, request: Request, num_new_tokens: int) -> bool:
        """The next tokens of a running request: what is left of its prompt, or one that it has generated."""
        if request.request_id in self.step:
            return False
        count = min(num_new_tokens, request.num_tokens - request.num_computed_tokens)
        added = self.cache.allocate_slots(request, count)
        if added is None:
            return False
        self.step[request.request_id] = count
        return True

    def generate(self, request: Request, token: int) -> None:
        if request.request_id not in self.step and request.num_computed_tokens == request.num_tokens:
            request.token_ids.append(token)
            self.cache.cache_pages(request)

    def preempt(self, request: Request, *, swap: bool) -> None:
        if request.request_id in self.step:
            return
        if swap:
            if not self.cache.swap_out(request):
                self.counts["no room to swap"] += 1
                return
            self.counts["swapped"] += 1
        else:
            self.cache.free(request)
            request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.running.remove(request)
        self.waiting.append(request)

    def end(self, request: Request) -> None:
        """A request has ended or is aborted, between two schedules."""
        self.run_step()
        self.cache.free(request)
        (self.running if request in self.running else self.waiting).remove(request)
        self.past[8:] = []
        self.past.insert(0, request.token_ids)

    # What the worker does

    def run_step(self, *, fails: bool = False) -> None:
        """Moves pages and computes. A step that fails has moved, but computed nothing."""
        self._move()
        rows = [request for request in self.running if request.request_id in self.step]
        self.written = []
        for request in rows:
            start, table = request.num_computed_tokens, self.cache.block_ids(request)
            request.num_computed_tokens += self.step[request.request_id]
            for index in range(start, request.num_computed_tokens):
                block, offset = table[index // self.sizes.page_size], index % self.sizes.page_size
                self.device[block][offset] = GARBAGE if fails else self.digest(request, index)
                self.written.append((block, offset))
        if not fails:
            for request in rows:
                self.check_contents(request, request.num_computed_tokens - self.step[request.request_id])
        self.step.clear()
        self.recent = rows

    def fail(self, *, behind: bool) -> None:
        """The step that was just decided fails; with `behind`, so does the one before, whose failure came late."""
        failed = list(self.recent) if behind else []
        for block, offset in self.written if behind else ():
            self.device[block][offset] = GARBAGE
        self.run_step(fails=True)
        failed = list({request.request_id: request for request in failed + self.recent}.values())
        self.cache.forget_step(failed)
        for request in failed:
            for queue in (self.running, self.waiting):
                if request in queue:
                    queue.remove(request)
                    self.cache.free(request)
        self.counts["failed"] += 1

    def _move(self) -> None:
        moves = take_moves(self.cache)
        left = {slot for slot, _ in moves.swap_in}
        assert not left & {slot for _, slot in moves.disk_loads}, "a slot is written again in the step that reads it"
        for block, slot in moves.swap_out:
            self.memory[slot] = list(self.device[block])
        for slot, block in moves.swap_in:
            self.device[block] = list(self.memory[slot])
        for slot, key in moves.disk_stores:
            self._store(key, list(self.memory[slot]))
        for key, slot in moves.disk_loads:
            self.memory[slot] = [GARBAGE] * self.sizes.page_size
            self._load(key, slot)
        self.counts.update(out=len(moves.swap_out), back=len(moves.swap_in))
        self.counts.update(stored=len(moves.disk_stores), loads=len(moves.disk_loads))

    def _store(self, key: PageKey, content: list[int]) -> None:
        self.on_disk[key.page_hash] = (key, content)
        self.events.append(PageEvent("stored", key.page_hash))

    def _load(self, key: PageKey, slot: int) -> None:
        found = self.on_disk.get(key.page_hash)
        if found is None or found[0] != key:
            self.on_disk.pop(key.page_hash, None)
            self.events.append(PageEvent("missed", key.page_hash))
        else:
            self.memory[slot] = list(found[1])  # nothing may read it before the event, nothing may write it
            self.events.append(PageEvent("loaded", key.page_hash))

    def flush(self) -> None:
        """What a worker does at an orderly end."""
        self.run_step()
        for tier, place, key in self.cache.cached_pages():
            content = self.device[place] if tier == "device" else self.memory[place]
            self.on_disk[key.page_hash] = (key, list(content))

    def deliver(self, count: int = 1) -> None:
        """Events of the worker reach the manager."""
        for event in self.events[:count]:
            self.counts[event.kind] += 1
            self.cache.handle(event)
        del self.events[:count]

    def pin_slots(self, count: int) -> None:
        """More host memory is ready."""
        for slot in range(self.host.num_slots, self.host.num_slots + count):
            self.memory[slot] = [GARBAGE] * self.sizes.page_size
        self.cache.handle(PageEvent("slots", count=count))

    def shrink_disk(self, count: int) -> None:
        """The disk stays within its bound; or somebody has damaged a file, which nobody knows of yet."""
        for name in list(self.on_disk)[:count]:
            del self.on_disk[name]
            if count > 1:
                self.events.append(PageEvent("evicted", name))

    # What must hold

    def digest(self, request: Request, index: int) -> int:
        """What K and V of this token depend on."""
        return hash((request.salt, *request.token_ids[: index + 1]))

    def check_contents(self, request: Request, start: int) -> None:
        """Every token that queries from `start` on see has its own K and V."""
        size = self.sizes.page_size
        seen = 0 if self.sizes.window is None else max(0, start - self.sizes.window + 1)
        table = self.cache.block_ids(request)
        for index in range(seen, request.num_computed_tokens):
            found = self.device[table[index // size]][index % size]
            assert found == self.digest(request, index), f"{request}: wrong K and V at token {index}"

    def naive_hit(self, request: Request) -> int:
        """Tokens that a lookup must find: comparing whole prefixes with everything that is cached."""
        size, window = self.sizes.page_size, self.sizes.window
        if request.skip_prefix or not self.sizes.prefix_caching:
            return 0
        if len(request.page_hashes) < request.num_prompt_tokens // size:
            return 0
        known = {self._prefix(page): page for page in self.cache.index.pages.values()}
        here = []
        for index in range((request.num_tokens - 1) // size):
            page = known.get((request.salt, page_hash.pack(request.token_ids[: (index + 1) * size])))
            if page is None:
                break
            here.append(page.block is not None or (page.slot is not None and not page.loading))
        for count in range(len(here), 0, -1):
            first = 0 if window is None else max(0, count * size - window + 1) // size
            if all(here[first:count]):
                return count * size
        return 0

    def _prefix(self, page: CachedPage) -> tuple[bytes, bytes]:
        tokens = b""
        while page.parent is not None:
            tokens, page = page.tokens + tokens, page.parent
        return page.tokens, tokens

    def check(self) -> None:
        """The invariants of the data structure."""
        self._check_blocks()
        self._check_slots()
        self._check_tree()

    def _check_blocks(self) -> None:
        held = [block for table in self.cache._held.values() for block in table.blocks if block is not None]
        holders = Counter(block.block_id for block in held)
        for block in self.pool.blocks:
            assert block.ref_count == holders[block.block_id]
            assert (block.block_id in self.pool.empty) == (block.ref_count == 0 and block.page is None)
            assert (block.block_id in self.pool.cached) == (block.ref_count == 0 and block.page is not None)
            assert block.page is None or block.page.block is block
        assert self.cache.stats["kv_blocks_used"] == len(holders)
        for request in self.running:
            table = self.cache.block_ids(request)
            assert len(table) * self.sizes.page_size >= request.num_computed_tokens + self.step.get(
                request.request_id, 0
            )
        for request_id in self.cache._held:
            assert any(request.request_id == request_id for request in self.running)

    def _check_slots(self) -> None:
        pages = [page for page in self.cache.index.pages.values() if page.slot is not None]
        swapped = [page for state in self.cache._waiting.values() for page in state.swapped.values()]
        own = [page.slot for page in swapped if page.parent is None]
        used = [page.slot for page in pages] + own + list(self.host._ins.values()) + self.host.free_slots
        assert sorted(slot for slot in used if slot is not None) == list(range(self.host.num_slots))
        for page in pages:
            assert page.slot is not None
            assert (self.host.cached.get(page.slot) is page) == (page.pins == 0)
            assert page.block is None or page.loading
        assert len(self.host.cached) == sum(page.pins == 0 for page in pages)
        pins = Counter(id(page) for page in swapped if page.parent is not None)
        pins.update(id(page) for page in pages if page.loading)
        for page in self.cache.index.pages.values():
            assert page.pins == pins[id(page)]
        assert self.host.num_pinned == len(pins) + len(own) <= self.host.num_slots

    def _check_tree(self) -> None:
        index = self.cache.index
        refs = Counter(id(page.parent) for page in index.pages.values())
        refs.update(id(table.last) for table in self.cache._held.values() if table.last is not None)
        for name, page in index.pages.items():
            assert page.page_hash == name
            assert page.refs == refs[id(page)]
            assert page.refs or page.pins or page.block is not None or page.slot is not None
            assert page.parent is not None
            parent = page.parent
            assert (index.pages if parent.parent is not None else index.roots).get(
                parent.page_hash if parent.parent is not None else parent.tokens
            ) is parent
        for root in index.roots.values():
            assert root.refs == refs[id(root)] > 0

    def finish(self) -> None:
        """Everything ends: no page is held, and nothing is left of what is forgotten."""
        self.run_step()
        for request in self.running + self.waiting:
            self.cache.free(request)
        self.running.clear()
        self.waiting.clear()
        while self.events:
            self.run_step()
            self.deliver(len(self.events))
        self.check()
        assert self.cache.stats["kv_blocks_used"] == 0
        drop_cached(self.cache)
        self.check()
        assert not self.cache.index.pages
        assert not self.cache.index.roots
        assert not self.cache._waiting
        assert len(self.host.free_slots) == self.host.num_slots
