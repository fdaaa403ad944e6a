"""The pages of the KV cache: which are free, how many requests hold each of the others, and what may be shared."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from octavo_server import page_hash
from octavo_server.step import PageKey


@dataclass(slots=True, eq=False)
class CachedPage:
    """Content that may be shared: the tokens of one full page behind those of its `parent`, and where its K and V are.

    On the device (`block`), in host memory (`slot`; still being read from disk if `loading`), or nowhere: it then only
    stands for its place in the sequence, as long as something refers to it. A salt's root has no parent, and the salt
    as its tokens; a page that a swapped-out request shares with nobody has neither parent, name nor tokens.
    """

    page_hash: bytes
    parent: "CachedPage | None" = field(repr=False)
    tokens: bytes  # as `page_hash.pack` packs them
    depth: int = 0  # pages from the root to this one
    block: "KVBlock | None" = field(default=None, repr=False)
    slot: int | None = None
    loading: bool = False
    from_disk: bool = False  # since it was last on the device
    refs: int = 0  # pages behind it, and requests that go on behind it
    pins: int = 0  # swapped-out requests that want it back, and a load under way: host memory keeps it
    writer: str = ""  # the request that computes it, and …
    born: int = 0  # … the schedule in which that was decided
    digest: bytes = b""  # of salt and tokens up to the end of this page, once `key` has needed it

    @property
    def is_here(self) -> bool:
        """Whether its K and V can be hit."""
        return self.block is not None or (self.slot is not None and not self.loading)

    @property
    def key(self) -> PageKey:
        """What stands for it on disk. Digests are worked out when they are first asked for."""
        path: list[CachedPage] = []
        page = self.parent
        while page is not None and not page.digest:
            path.append(page)
            page = page.parent
        digest = b"" if page is None else page.digest
        for page in reversed(path):
            digest = page.digest = page_hash.extend_digest(digest, page.tokens)
        return PageKey(self.page_hash, digest, self.tokens, b"" if self.parent is None else self.parent.page_hash)


@dataclass(slots=True, eq=False)
class KVBlock:
    """One page: `block_size` tokens of K and V in every layer. `block_id` is its place in the cache's tensors."""

    block_id: int
    ref_count: int = 0
    page: CachedPage | None = None  # what it holds, if others may share it


class BlockPool:
    """A fixed number of pages, handed out and taken back in O(1) each.

    Free pages without content go first, in the order in which they became free; then those whose content could still be
    hit, the least recently used one first. Ordered dicts, because a page that is shared again while it is free leaves
    its queue from the middle.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.blocks = [KVBlock(block_id) for block_id in range(num_blocks)]
        self.empty = OrderedDict((block.block_id, block) for block in self.blocks)
        self.cached: OrderedDict[int, KVBlock] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self.empty) + len(self.cached)

    def allocate(self, count: int) -> list[KVBlock]:
        """Takes `count` free pages, each held once. Raises ValueError, and takes none, if there are fewer.

        Those that still have a `page` come last, the least recently used one first; the caller is to evict it.
        """
        if not 0 <= count <= self.num_free:
            raise ValueError(f"{count} pages asked for, {self.num_free} of {self.num_blocks} are free")
        taken = [(self.empty or self.cached).popitem(last=False)[1] for _ in range(count)]
        for block in taken:
            block.ref_count = 1
        return taken

    def share(self, blocks: Iterable[KVBlock]) -> None:
        """Adds a holder to each page, also to a free one whose content is still wanted."""
        for block in blocks:
            if block.ref_count == 0:
                del (self.empty if block.page is None else self.cached)[block.block_id]
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
                (self.empty if block.page is None else self.cached)[block.block_id] = block

    def forget(self, block: KVBlock) -> None:
        """What the page holds is not to be hit any more, whether it is held or free."""
        if block.page is not None and block.ref_count == 0:
            self.empty[block.block_id] = self.cached.pop(block.block_id)
        block.page = None
