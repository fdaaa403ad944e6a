"""The pool of pages, held against the simplest model of it."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from octavo_server.engine.block_pool import BlockPool, KVBlock
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.request import Request
from octavo_server.ipc import SamplingParams


def test_pages_are_reused_in_the_order_in_which_they_became_free() -> None:
    pool = BlockPool(4)
    first = pool.allocate(3)
    assert [block.block_id for block in first] == [0, 1, 2]
    pool.free([first[2], first[0]])
    assert [block.block_id for block in pool.allocate(3)] == [3, 2, 0]


def test_more_pages_than_there_are_is_refused_and_takes_none() -> None:
    pool = BlockPool(3)
    with pytest.raises(ValueError, match="4 pages asked for, 3 of 3 are free"):
        pool.allocate(4)
    assert pool.num_free == 3


def test_a_page_that_is_freed_twice_is_an_error() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.free([block])
    with pytest.raises(RuntimeError, match="page 0 is freed twice"):
        pool.free([block])


def test_a_free_page_can_be_taken_back_while_its_content_stands() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    pool.free(blocks)
    pool.share([blocks[1]])
    assert [block.block_id for block in pool.allocate(2)] == [0, 2]


BLOCK_SIZE = 4


class Pages(RuleBasedStateMachine):
    """Requests grow, are freed, and share pages with other holders. The truth: who holds which page, in lists."""

    @initialize(num_blocks=st.integers(1, 12))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.manager = KVCacheManager(self.pool, BLOCK_SIZE)
        self.requests: list[Request] = []
        self.tables: dict[str, list[int]] = {}
        self.shared: list[list[KVBlock]] = []
        self.free_order = list(range(num_blocks))
        self.serial = 0

    def holders(self, block_id: int) -> int:
        held = sum(table.count(block_id) for table in self.tables.values())
        return held + sum(block.block_id == block_id for blocks in self.shared for block in blocks)

    @rule(tokens=st.integers(1, 20))
    def allocate(self, tokens: int) -> None:
        request = Request(f"r{self.serial}", [0] * tokens, SamplingParams(), 1000)
        self.serial += 1
        missing = -(-tokens // BLOCK_SIZE)
        if not self.manager.admit(request, self.manager.lookup(request), tokens):
            assert missing > len(self.free_order)
            return
        self.requests.append(request)
        self.tables[request.request_id] = self.free_order[:missing]
        del self.free_order[:missing]
        request.num_computed_tokens = tokens

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), tokens=st.integers(1, 9))
    def append(self, data: st.DataObject, tokens: int) -> None:
        request = data.draw(st.sampled_from(self.requests))
        table = self.tables[request.request_id]
        missing = -(-(request.num_computed_tokens + tokens) // BLOCK_SIZE) - len(table)
        added = self.manager.allocate_slots(request, tokens)
        if missing > len(self.free_order):
            assert added is None
            return
        assert added == self.free_order[: max(missing, 0)]
        del self.free_order[: len(added)]
        self.tables[request.request_id] = table + added
        request.num_computed_tokens += tokens

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        self.requests.remove(request)
        self.manager.free(request)
        self._let_go(self.tables.pop(request.request_id)[::-1])

    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        blocks = data.draw(
            st.lists(st.sampled_from(self.pool.blocks), max_size=4, unique_by=lambda block: block.block_id)
        )
        self.pool.share(blocks)
        self.shared.append(blocks)
        self.free_order = [block_id for block_id in self.free_order if block_id not in {b.block_id for b in blocks}]

    @precondition(lambda self: self.shared)
    @rule(data=st.data())
    def unshare(self, data: st.DataObject) -> None:
        blocks = self.shared.pop(data.draw(st.integers(0, len(self.shared) - 1)))
        self.pool.free(blocks)
        self._let_go([block.block_id for block in blocks])

    def _let_go(self, block_ids: list[int]) -> None:
        self.free_order += [block_id for block_id in block_ids if self.holders(block_id) == 0]

    @invariant()
    def every_page_is_held_as_often_as_it_is_counted(self) -> None:
        for block in self.pool.blocks:
            assert block.ref_count == self.holders(block.block_id)
        assert self.pool.num_free == len(self.free_order)
        assert self.manager.stats["kv_blocks_used"] == sum(block.ref_count > 0 for block in self.pool.blocks)

    @invariant()
    def tables_are_what_was_handed_out_and_cover_the_tokens(self) -> None:
        for request in self.requests:
            table = self.manager.block_ids(request)
            assert table == self.tables[request.request_id]
            assert len(table) * BLOCK_SIZE >= request.num_computed_tokens > (len(table) - 1) * BLOCK_SIZE

    def teardown(self) -> None:
        for request in self.requests:
            self.manager.free(request)
        for blocks in self.shared:
            self.pool.free(blocks)
        assert self.pool.num_free == self.pool.num_blocks


TestPages = Pages.TestCase
TestPages.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
