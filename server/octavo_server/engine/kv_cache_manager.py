"""Block tables: which pages hold the tokens of which request."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from octavo_server.engine.block_pool import BlockPool, KVBlock
from octavo_server.engine.request import Request
from octavo_server.engine.step import PageEvent, PageKey


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """No prefix caching yet."""

    held: int
    block_size: int
    num_tokens: int = 0
    loading: bool = False

    def blocks_needed(self, num_tokens: int) -> int:
        """Pages."""
        return max(0, -(-num_tokens // self.block_size) - self.held)


@dataclass(frozen=True, slots=True)
class Moves:
    """Moves of pages."""

    swap_out: list[tuple[int, int]] = field(default_factory=list)
    swap_in: list[tuple[int, int]] = field(default_factory=list)
    disk_stores: list[tuple[int, PageKey]] = field(default_factory=list)
    disk_loads: list[tuple[PageKey, int]] = field(default_factory=list)


class KVCacheManager:
    """Gives requests their pages and takes them back. Token i lies in page i // block_size of its request's table."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self.pool = pool
        self.block_size = block_size
        self._tables: dict[str, list[KVBlock]] = {}

    @property
    def num_tokens_total(self) -> int:
        """Tokens that fit into all pages."""
        return self.pool.num_blocks * self.block_size

    @property
    def num_blocks_used(self) -> int:
        """Pages that requests hold."""
        return self.pool.num_blocks - self.pool.num_free

    def block_ids(self, request: Request) -> list[int]:
        """The request's block table, as page numbers."""
        return [block.block_id for block in self._tables.get(request.request_id, ())]

    def blocks_needed(self, request: Request, num_tokens: int) -> int:
        """Pages that are missing before the first `num_tokens` tokens of the request have a slot each."""
        return max(0, -(-num_tokens // self.block_size) - len(self._tables.get(request.request_id, ())))

    def allocate_slots(self, request: Request, num_new_tokens: int) -> list[int] | None:
        """Makes room for the next `num_new_tokens` tokens after those computed.

        Returns the numbers of the pages added (none if the last page has room), or None, and takes nothing, if the pool
        is out of pages.
        """
        needed = self.blocks_needed(request, request.num_computed_tokens + num_new_tokens)
        if needed > self.pool.num_free:
            return None
        if needed == 0:
            return []
        added = self.pool.allocate(needed)
        self._tables.setdefault(request.request_id, []).extend(added)
        return [block.block_id for block in added]

    def free(self, request: Request) -> None:
        """Gives back all pages of the request, the tail of the sequence first. Nothing to do if it holds none."""
        self.pool.free(reversed(self._tables.pop(request.request_id, [])))

    def lookup(self, request: Request) -> PrefixHit:
        """Nothing."""
        return PrefixHit(0, self.block_size)

    def begin_loads(self, request: Request) -> bool:
        """No."""
        return False

    def admit(self, request: Request, hit: PrefixHit, num_new_tokens: int) -> bool:
        """As allocate_slots."""
        return self.allocate_slots(request, num_new_tokens) is not None

    def cache_pages(self, request: Request) -> None:
        """Nothing."""

    def swap_out(self, request: Request) -> bool:
        """No."""
        return False

    def forget_step(self, requests: Iterable[Request]) -> None:
        """Nothing."""

    def take_moves(self) -> Moves:
        """None."""
        return Moves()

    def handle(self, event: PageEvent) -> None:
        """Nothing."""

    def drop_cached(self) -> None:
        """Nothing."""
