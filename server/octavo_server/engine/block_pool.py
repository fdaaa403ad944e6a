"""The pages of the KV cache: which are free, and how many requests hold each of the others."""

from collections import OrderedDict
from collections.abc import Iterable


class KVBlock:
    """One page: `block_size` tokens of K and V in every layer. `block_id` is its place in the cache's tensors."""

    __slots__ = ("block_id", "ref_count")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_count = 0

    def __repr__(self) -> str:
        return f"KVBlock({self.block_id}, held {self.ref_count} times)"


class BlockPool:
    """A fixed number of pages, handed out and taken back in O(1) each.

    Free pages stand in a queue in the order in which they became free and are handed out from its head, so the page
    that was freed last is overwritten last. An ordered dict, because a page that is shared again while it is free
    leaves the queue from the middle.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}; a pool has at least one page")
        self.blocks = [KVBlock(block_id) for block_id in range(num_blocks)]
        self._free = OrderedDict((block.block_id, block) for block in self.blocks)

    @property
    def num_blocks(self) -> int:
        """Pages in all."""
        return len(self.blocks)

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def allocate(self, count: int) -> list[KVBlock]:
        """Takes `count` free pages, each held once. Raises ValueError, and takes none, if there are fewer."""
        if not 0 <= count <= len(self._free):
            raise ValueError(f"{count} pages asked for, {len(self._free)} of {self.num_blocks} are free")
        taken = [self._free.popitem(last=False)[1] for _ in range(count)]
        for block in taken:
            block.ref_count = 1
        return taken

    def share(self, blocks: Iterable[KVBlock]) -> None:
        """Adds a holder to each page, also to a free one whose content is still wanted."""
        for block in blocks:
            if block.ref_count == 0:
                del self._free[block.block_id]
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
                self._free[block.block_id] = block
