"""The pages of the KV cache: which are free, and how many requests hold each of the others."""

from collections import OrderedDict
from collections.abc import Iterable


class CachedPage:
    """Content that may be shared: the tokens of one full page behind those of its `parent`, and where its K and V are.

    On the device (`block`), in host memory (`slot`, still being read from disk if `loading`), or in neither: it then
    stands for its place in the sequence only, as long as something refers to it. The root of a salt is one without
    parent, whose `tokens` are the salt.
    """

    __slots__ = (
        "block",
        "born",
        "from_disk",
        "loading",
        "page_hash",
        "parent",
        "pins",
        "refs",
        "slot",
        "tokens",
        "writer",
    )

    def __init__(self, page_hash: bytes, parent: "CachedPage | None", tokens: bytes) -> None:
        self.page_hash = page_hash
        self.parent = parent
        self.tokens = tokens  # as `page_hash.pack` packs them
        self.block: KVBlock | None = None
        self.slot: int | None = None
        self.loading = False
        self.from_disk = False  # since it was last on the device
        self.refs = 0  # pages behind it, and requests that go on behind it
        self.pins = 0  # swapped-out requests that want it back, and a load under way: it stays in host memory
        self.writer = ""  # the request whose step computes it …
        self.born = 0  # … and the schedule that registered it

    @property
    def is_here(self) -> bool:
        """Whether its K and V can be hit: on the device, or in host memory."""
        return self.block is not None or (self.slot is not None and not self.loading)

    def __repr__(self) -> str:
        return f"CachedPage({self.page_hash.hex()}, block {self.block}, slot {self.slot}, {self.refs} refs)"


class KVBlock:
    """One page: `block_size` tokens of K and V in every layer. `block_id` is its place in the cache's tensors."""

    __slots__ = ("block_id", "page", "ref_count")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_count = 0
        self.page: CachedPage | None = None  # what it holds, if others may share it

    def __repr__(self) -> str:
        return f"KVBlock({self.block_id}, held {self.ref_count} times)"


class BlockPool:
    """A fixed number of pages, handed out and taken back in O(1) each.

    Free pages without content are handed out first, in the order in which they became free; then those whose content
    could still be hit, the least recently used one first. Ordered dicts, because a page that is shared again while it
    is free leaves its queue from the middle.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}; a pool has at least one page")
        self.blocks = [KVBlock(block_id) for block_id in range(num_blocks)]
        self._empty = OrderedDict((block.block_id, block) for block in self.blocks)
        self._cached: OrderedDict[int, KVBlock] = OrderedDict()

    @property
    def num_blocks(self) -> int:
        """Pages in all."""
        return len(self.blocks)

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._empty) + len(self._cached)

    @property
    def cached(self) -> list[KVBlock]:
        """Free pages whose content can be hit, the least recently used one first."""
        return list(self._cached.values())

    @property
    def num_cached(self) -> int:
        """How many those are."""
        return len(self._cached)

    def allocate(self, count: int) -> list[KVBlock]:
        """Takes `count` free pages, each held once. Raises ValueError, and takes none, if there are fewer.

        Those that still have a `page` come last, the least recently used one first; the caller is to evict it.
        """
        if not 0 <= count <= self.num_free:
            raise ValueError(f"{count} pages asked for, {self.num_free} of {self.num_blocks} are free")
        empty = min(count, len(self._empty))
        taken = [self._empty.popitem(last=False)[1] for _ in range(empty)]
        taken += [self._cached.popitem(last=False)[1] for _ in range(count - empty)]
        for block in taken:
            block.ref_count = 1
        return taken

    def share(self, blocks: Iterable[KVBlock]) -> None:
        """Adds a holder to each page, also to a free one whose content is still wanted."""
        for block in blocks:
            if block.ref_count == 0:
                del (self._empty if block.page is None else self._cached)[block.block_id]
            block.ref_count += 1

    def free(self, blocks: Iterable[KVBlock]) -> None:
        """Takes a holder from each page; those without any are free, in the order given.

        Raises RuntimeError for a page that nobody holds: two requests would soon write into it.
        """
        for block in blocks:
            if block.ref_count == 0:
                raise RuntimeError(f"page {block.block_id} is freed twice")
            block.ref_count -= 1
            if block.ref_count == 0:
                (self._empty if block.page is None else self._cached)[block.block_id] = block

    def forget(self, block: KVBlock) -> None:
        """The page's content is not to be hit any more, whether it is held or free."""
        if block.page is not None and block.ref_count == 0:
            self._empty[block.block_id] = self._cached.pop(block.block_id)
        block.page = None
