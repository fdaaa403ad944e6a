"""Which pages requests share, when they come back, and what each tier makes of them."""

from dataclasses import replace

import pytest

from engine_fakes import FakeEngine, alone
from octavo_server import page_hash
from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.request import Request
from octavo_server.step import PageEvent, SampledRow
from page_machine import drop_cached, make_request, take_moves

SIZE = 4
PROMPT = list(range(14))  # three full pages and a half


def manager(num_blocks: int = 16, num_slots: int = 0, **options: object) -> KVCacheManager:
    cache = KVCacheManager(BlockPool(num_blocks), SIZE, **options)  # type: ignore[arg-type]
    cache.handle(PageEvent("slots", count=num_slots))
    return cache


def admit(cache: KVCacheManager, request: Request) -> int:
    """Admits the request with all of its tokens; how many of them it hit."""
    hit = cache.lookup(request)
    assert cache.admit(request, hit, request.num_tokens - hit.num_tokens)
    request.num_computed_tokens = request.num_tokens
    return hit.num_tokens


def occupy(cache: KVCacheManager, count: int) -> Request:
    """A request that holds so many pages, whatever they held before."""
    request = make_request("big", [0], SIZE, shared=False)
    assert cache.admit(request, cache.lookup(request), count * SIZE)
    return request


def settle(cache: KVCacheManager) -> None:
    """So many schedules that what was decided before has been computed."""
    for _ in range(5):
        take_moves(cache)


def test_a_prompt_that_is_cached_as_a_whole_leaves_a_token_to_compute() -> None:
    cache = manager()
    first, second = make_request("first", PROMPT[:12], SIZE), make_request("second", PROMPT[:12], SIZE)
    assert admit(cache, first) == 0
    assert admit(cache, second) == 8
    assert second.num_cached_tokens == 8
    assert cache.block_ids(second)[:2] == cache.block_ids(first)[:2]
    assert cache.block_ids(second)[2] != cache.block_ids(first)[2]


def test_pages_are_shared_until_the_last_holder_frees_them() -> None:
    cache = manager()
    first, second = make_request("first", PROMPT, SIZE), make_request("second", PROMPT, SIZE)
    admit(cache, first)
    shared = cache.block_ids(first)[:3]
    admit(cache, second)
    cache.free(first)
    assert [cache.pool.blocks[block].ref_count for block in shared] == [1, 1, 1]
    cache.free(second)
    assert cache.stats["kv_blocks_used"] == 0
    assert cache.stats["kv_blocks_cached"] == 3


def test_generated_tokens_are_hit_by_the_next_turn() -> None:
    cache = manager()
    request = make_request("turn 1", PROMPT, SIZE)
    admit(cache, request)
    for token in (90, 91, 92):
        request.token_ids.append(token)
        assert cache.allocate_slots(request, 1) is not None
        request.num_computed_tokens += 1
        cache.cache_pages(request)
    cache.free(request)
    assert admit(cache, make_request("turn 2", [*PROMPT, 90, 91, 92, 93], SIZE)) == 16
    assert admit(cache, make_request("another", [*PROMPT, 90, 99, 92, 93], SIZE)) == 12


def test_a_page_whose_last_token_is_not_known_yet_waits_for_it() -> None:
    cache = manager()
    request = make_request("r", PROMPT[:7], SIZE)
    admit(cache, request)
    assert cache.allocate_slots(request, 1) == []  # a token that the step before is still sampling
    request.num_computed_tokens += 1
    assert len(request.page_hashes) == 1
    request.token_ids.append(50)
    cache.cache_pages(request)
    assert len(request.page_hashes) == 2
    assert cache.lookup(make_request("s", [*PROMPT[:7], 50, 0], SIZE)).num_tokens == 8


def test_two_salts_share_nothing() -> None:
    cache = manager(num_slots=8)
    request = make_request("ours", PROMPT, SIZE, b"ours")
    admit(cache, request)
    assert cache.lookup(make_request("theirs", PROMPT, SIZE, b"theirs")).num_tokens == 0
    forged = make_request("forged", PROMPT, SIZE, b"theirs")
    forged.page_hashes = list(request.page_hashes)  # even with our pages' names
    assert cache.lookup(forged).num_tokens == 0
    assert admit(cache, forged) == 0
    assert not set(cache.block_ids(forged)) & set(cache.block_ids(request))


def test_a_page_with_the_name_of_another_is_a_miss_and_leaves_the_other_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_hash, "extend", lambda _parent, _tokens: bytes(16))
    cache = manager()
    first, second = make_request("first", PROMPT, SIZE), make_request("second", PROMPT[::-1], SIZE)
    admit(cache, first)
    assert admit(cache, second) == 0
    cache.free(second)
    assert cache.lookup(make_request("again", PROMPT, SIZE)).num_tokens == SIZE  # pages 2 and 3 had no name left


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("names", [1, 3])
def test_answers_are_right_even_where_names_collide(names: int, overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    extend = page_hash.extend
    monkeypatch.setattr(page_hash, "extend", lambda parent, tokens: bytes([extend(parent, tokens)[0] % names]) * 16)
    engine = FakeEngine(num_blocks=24, prefix_caching=True, host_slots=8, preemption_mode="swap", overlap=overlap)
    prompts = {f"r{index}": [*PROMPT[: index % 14], 100 + index // 7, *PROMPT[:6]] for index in range(40)}
    for name, prompt in prompts.items():
        engine.add(name, prompt)
    engine.run()
    for name, prompt in list(prompts.items()):  # one by one: some of them begin with what a name stands for
        prompts[f"again {name}"] = prompt
        engine.add(f"again {name}", prompt)
        engine.run()
    assert engine.outputs == {name: alone(prompt, 8) for name, prompt in prompts.items()}
    stats = engine.kv_cache.stats
    assert stats["prefix_hits"] + stats["prefix_hits_host"] > 0
    assert engine.scheduler.counts["preemptions"] > 0
    assert engine.kv_cache.stats["kv_blocks_used"] == 0


def test_without_prefix_caching_or_names_nothing_is_shared() -> None:
    for cache, shared in ((manager(prefix_caching=False), True), (manager(), False)):
        admit(cache, make_request("first", PROMPT, SIZE, shared=shared))
        assert admit(cache, make_request("second", PROMPT, SIZE, shared=shared)) == 0
        assert cache.stats["prefix_queries"] == 0


def test_a_request_that_wants_log_probabilities_of_its_prompt_hits_nothing_but_is_hit() -> None:
    cache = manager()
    admit(cache, make_request("first", PROMPT, SIZE))
    whole = make_request("second", [*PROMPT, 1, 2, 3], SIZE, whole=True)
    assert admit(cache, whole) == 0
    assert cache.lookup(make_request("third", [*PROMPT, 1, 2, 3], SIZE)).num_tokens == 16


def test_a_free_page_that_is_hit_counts_as_taken() -> None:
    cache = manager(num_blocks=4)
    first = make_request("first", PROMPT, SIZE)
    admit(cache, first)
    held = cache.lookup(make_request("second", PROMPT, SIZE))
    assert (held.num_tokens, held.blocks_needed(14)) == (12, 1)
    cache.free(first)
    free = cache.lookup(make_request("third", PROMPT, SIZE))
    assert (free.num_tokens, free.blocks_needed(14), free.blocks_needed(17)) == (12, 4, 5)
    assert not cache.admit(make_request("third", PROMPT, SIZE), free, 5)
    assert cache.stats["kv_blocks_used"] == 0


def test_the_tail_of_a_sequence_is_evicted_before_its_head_and_older_ones_before_younger() -> None:
    cache = manager(num_blocks=7)
    old, young = make_request("old", PROMPT[:13], SIZE), make_request("young", [9, *PROMPT[:12]], SIZE)
    for request in (old, young):  # three pages with content each, and one without
        admit(cache, request)
        cache.free(request)
    occupy(cache, 3)
    assert cache.lookup(make_request("a", PROMPT, SIZE)).num_tokens == 4
    assert cache.lookup(make_request("b", [9, *PROMPT], SIZE)).num_tokens == 12


def test_a_page_that_is_evicted_goes_to_host_memory_and_comes_back() -> None:
    cache = manager(num_blocks=4, num_slots=8)
    first = make_request("first", PROMPT, SIZE)
    admit(cache, first)
    blocks = cache.block_ids(first)
    cache.free(first)
    other = make_request("other", [7] * 14, SIZE)
    admit(cache, other)
    out = take_moves(cache).swap_out
    assert {block for block, _ in out} == set(blocks[:3])
    cache.free(other)
    again = make_request("again", PROMPT, SIZE)
    assert admit(cache, again) == 12
    moves = take_moves(cache)
    slot_of = dict(out)
    assert [(slot, block) for slot, block in moves.swap_in] == [
        (slot_of[old], new) for old, new in zip(blocks[:3], cache.block_ids(again)[:3], strict=True)
    ]
    assert not {slot for slot, _ in moves.swap_in} & {slot for _, slot in moves.swap_out}
    stats = cache.stats
    assert (stats["prefix_queries"], stats["prefix_hits"], stats["prefix_hits_host"], stats["prefix_hits_disk"]) == (
        42,
        0,
        12,
        0,
    )
    assert (stats["swapped_out"], stats["swapped_in"]) == (6, 3)


def test_a_page_that_leaves_and_is_hit_within_one_schedule_goes_out_before_it_comes_in() -> None:
    cache = manager(num_blocks=8, num_slots=8)
    first = make_request("first", PROMPT[:13], SIZE)
    admit(cache, first)
    cache.free(first)
    take_moves(cache)
    big = occupy(cache, 8)
    again = make_request("again", PROMPT[:5], SIZE)
    hit = cache.lookup(again)
    assert (hit.num_tokens, hit.blocks_needed(5)) == (4, 2)
    cache.free(big)
    assert cache.admit(again, cache.lookup(again), 1)
    moves = take_moves(cache)
    (came_from, came_to), *others = moves.swap_in
    assert not others
    assert came_from in {slot for _, slot in moves.swap_out}
    assert came_to == cache.block_ids(again)[0]


def test_a_swapped_out_request_gets_back_what_it_had() -> None:
    cache = manager(num_blocks=5, num_slots=8)
    request = make_request("r", PROMPT, SIZE)
    admit(cache, request)
    partial = cache.block_ids(request)[3]
    assert cache.swap_out(request)
    moves = take_moves(cache)
    assert [block for block, _ in moves.swap_out] == [partial]  # the full ones may stay as long as nobody wants them
    assert cache.stats["kv_blocks_used"] == 0
    big = make_request("big", [5] * 19, SIZE)
    admit(cache, big)
    assert len(take_moves(cache).swap_out) == 3
    hit = cache.lookup(request)
    assert (hit.num_tokens, hit.resumed) == (14, True)
    assert not cache.admit(request, hit, 1)
    cache.free(big)
    assert cache.admit(request, cache.lookup(request), 1)
    assert request.num_computed_tokens == 14
    assert len(take_moves(cache).swap_in) == 4
    assert cache.tiers.num_pinned == 0


def test_without_prefix_caching_a_swapped_out_request_gets_its_pages_back_too() -> None:
    cache = manager(num_slots=4, prefix_caching=False)
    request = make_request("r", PROMPT, SIZE, shared=False)
    admit(cache, request)
    blocks = cache.block_ids(request)
    assert cache.swap_out(request)
    out = take_moves(cache).swap_out
    assert [block for block, _ in out] == blocks
    assert cache.admit(request, cache.lookup(request), 0)
    back = take_moves(cache).swap_in
    assert back == [(slot, new) for (_, slot), new in zip(out, cache.block_ids(request), strict=True)]


def test_a_swap_that_finds_no_room_does_nothing() -> None:
    cache = manager(num_slots=3)
    request = make_request("r", PROMPT, SIZE)
    admit(cache, request)
    blocks = cache.block_ids(request)
    assert not cache.swap_out(request)
    assert cache.block_ids(request) == blocks
    assert take_moves(cache).is_empty


def test_requests_that_share_a_prefix_and_are_both_swapped_out_both_come_back() -> None:
    cache = manager(num_blocks=8, num_slots=16)
    first, second = make_request("first", PROMPT, SIZE), make_request("second", [*PROMPT[:12], 77, 78], SIZE)
    admit(cache, first)
    assert admit(cache, second) == 12
    assert cache.swap_out(first)
    assert cache.swap_out(second)
    admit(cache, big := make_request("big", [5] * 31, SIZE))
    cache.free(big)
    take_moves(cache)
    for request in (first, second):
        hit = cache.lookup(request)
        assert (hit.num_tokens, hit.resumed) == (14, True)
        assert cache.admit(request, hit, 1)
    assert cache.block_ids(first)[:3] == cache.block_ids(second)[:3]


def test_a_swapped_out_request_whose_shared_pages_are_gone_begins_with_what_is_left() -> None:
    cache = manager(num_blocks=8, num_slots=2)
    first, second = make_request("first", PROMPT, SIZE), make_request("second", [*PROMPT[:12], 77, 78], SIZE)
    admit(cache, first)
    admit(cache, second)
    assert cache.swap_out(second)  # its last page; the others are the first one's as well
    cache.free(first)
    admit(cache, big := make_request("big", [5] * 31, SIZE))
    cache.free(big)
    hit = cache.lookup(second)
    assert (hit.num_tokens, hit.resumed) == (4, False)
    assert cache.admit(second, hit, 1)
    assert cache.tiers.num_pinned == 0


def test_what_a_failed_step_registered_is_not_hit_any_more() -> None:
    cache = manager(num_slots=8)
    before = make_request("before", PROMPT[:5], SIZE)
    admit(cache, before)
    settle(cache)
    failed = make_request("failed", PROMPT, SIZE)
    assert admit(cache, failed) == 4
    cache.forget_step([failed])
    cache.free(failed)
    assert cache.lookup(make_request("next", PROMPT, SIZE)).num_tokens == 4
    assert admit(cache, make_request("later", PROMPT, SIZE)) == 4
    assert cache.lookup(make_request("last", PROMPT, SIZE)).num_tokens == 12


def test_pages_that_leave_the_window_are_freed_and_the_rest_can_still_be_hit() -> None:
    cache = manager(num_blocks=8, window=6)
    request = make_request("r", list(range(21)), SIZE)
    admit(cache, request)
    request.token_ids.append(99)
    assert cache.allocate_slots(request, 1) == []  # the query at 21 sees 16 to 21
    assert cache.block_ids(request)[:4] == [0, 0, 0, 0]
    assert cache.stats["kv_blocks_used"] == 2
    cache.free(request)
    admit(cache, other := make_request("other", [5] * 23, SIZE))  # takes what is free, and the head
    cache.free(other)
    again = make_request("again", list(range(21)), SIZE)
    hit = cache.lookup(again)
    assert (hit.num_tokens, hit.num_holes, hit.blocks_needed(21)) == (20, 3, 3)


def on_disk(cache: KVCacheManager, prompt: list[int]) -> Request:
    """A request whose pages are on disk, as after a restart."""
    request = make_request("r", prompt, SIZE)
    cache.tiers.disk.update(request.page_hashes)
    return request


def test_pages_on_disk_are_read_into_host_memory_before_the_request_joins() -> None:
    cache = manager(num_slots=8, on_disk=())
    request = on_disk(cache, PROMPT)
    hit = cache.lookup(request)
    assert (hit.num_tokens, hit.loading) == (0, True)
    assert cache.begin_loads(request)
    assert cache.begin_loads(request)
    loads = take_moves(cache).disk_loads
    assert [key.page_hash for key, _ in loads] == request.page_hashes[::-1], "the end goes first, in host memory too"
    assert len({key.parent for key, _ in loads}) == 3
    for key, _ in loads:
        assert cache.lookup(request).loading
        cache.handle(PageEvent("loaded", key.page_hash))
    assert not cache.begin_loads(request)
    assert admit(cache, request) == 12
    assert (cache.stats["prefix_hits_disk"], cache.stats["loaded"]) == (12, 3)
    assert not cache.begin_loads(on_disk(cache, [3, 3])), "a prompt without a full page has nothing to load"


def test_a_page_that_cannot_be_read_is_computed_and_not_tried_again() -> None:
    cache = manager(num_slots=8, on_disk=())
    request = on_disk(cache, PROMPT)
    assert cache.begin_loads(request)
    names = [key.page_hash for key, _ in take_moves(cache).disk_loads]
    cache.handle(PageEvent("missed", names[1]))
    cache.handle(PageEvent("loaded", names[0]))
    cache.handle(PageEvent("loaded", names[2]))
    assert not cache.begin_loads(request)
    assert admit(cache, request) == 4
    assert cache.lookup(make_request("s", PROMPT, SIZE)).num_tokens == 12


def test_prefixes_are_read_for_one_request_a_schedule() -> None:
    cache = manager(num_slots=8, on_disk=())
    first, second = on_disk(cache, PROMPT), make_request("s", [7, *PROMPT], SIZE)
    cache.tiers.disk.update(second.page_hashes)
    assert cache.begin_loads(first) and cache.begin_loads(second)
    assert [key.page_hash for key, _ in take_moves(cache).disk_loads] == first.page_hashes[::-1]
    assert cache.begin_loads(second)
    assert [key.page_hash for key, _ in take_moves(cache).disk_loads] == second.page_hashes[::-1]


def test_nobody_waits_for_a_disk_that_hangs_until_it_is_back() -> None:
    cache = manager(num_slots=8, on_disk=())
    request, late = on_disk(cache, PROMPT), make_request("late", [7, *PROMPT], SIZE)
    cache.tiers.disk.update(late.page_hashes)
    assert cache.begin_loads(request)
    take_moves(cache)
    cache.handle(PageEvent("stuck"))
    assert not cache.begin_loads(request) and not cache.begin_loads(late)
    assert admit(cache, request) == 0
    for name in request.page_hashes:
        cache.handle(PageEvent("loaded", name))
    cache.handle(PageEvent("back"))
    assert cache.begin_loads(late)
    cache.free(request)
    assert cache.lookup(make_request("s", PROMPT, SIZE)).num_tokens == 12


def test_many_that_wait_for_the_disk_do_not_hold_up_one_that_does_not() -> None:
    engine = FakeEngine(num_blocks=400, prefix_caching=True, max_num_seqs=200, max_model_len=100)
    engine.kv_cache.handle(PageEvent("slots", count=400))
    prompts = [[index, *PROMPT] for index in range(100)]
    for index, tokens in enumerate(prompts):
        hashes = make_request("r", tokens, SIZE).page_hashes
        engine.kv_cache.tiers.disk.update(hashes)
        engine.add(f"r{index}", tokens)
    engine.add("other", [900, *PROMPT])
    for _ in range(3):  # none of the loads comes back
        output = engine.scheduler.schedule()
        engine.scheduler.update(output, engine.runner.execute(replace(output, disk_loads=[])))
    assert engine.scheduler.requests["other"].num_tokens > 15
    assert len(engine.scheduler.waiting) == 100


def test_what_a_request_computed_that_came_to_nothing_is_not_hit() -> None:
    engine = FakeEngine(num_blocks=64, prefix_caching=True, max_num_batched_tokens=2, max_model_len=100)
    engine.add("bad", PROMPT)
    for _ in range(7):  # two tokens each: the first pages were computed long before the last
        output = engine.scheduler.schedule()
        rows = engine.runner.execute(output)
        engine.scheduler.update(output, [SampledRow(row.request_id, error="no distribution") for row in rows])
    assert not engine.scheduler.requests
    engine.add("good", PROMPT)
    engine.run()
    assert engine.outputs["good"] == alone(PROMPT, 8)
    assert engine.core.stats().prefix_hits == 0


def test_a_load_whose_request_is_aborted_ends_in_the_cache() -> None:
    cache = manager(num_slots=2, on_disk=())
    request = on_disk(cache, PROMPT)
    assert cache.begin_loads(request)
    names = [key.page_hash for key, _ in take_moves(cache).disk_loads]
    assert len(names) == 2  # as many as there are slots
    cache.free(request)
    assert cache.tiers.push_out(0) is None, "a slot that is being written is given away"
    for name in names:
        cache.handle(PageEvent("loaded", name))
    assert cache.lookup(make_request("s", PROMPT, SIZE)).num_tokens == 8


def test_a_page_that_is_on_disk_already_is_not_stored_again() -> None:
    cache = manager(num_blocks=4, num_slots=3, on_disk=())

    def displace(number: int) -> list[bytes]:
        admit(cache, other := make_request(f"other {number}", [100 + number] * 14, SIZE))
        cache.free(other)
        stored = [key.page_hash for _, key in take_moves(cache).disk_stores]
        for name in stored:
            cache.handle(PageEvent("stored", name))
        return stored

    request = make_request("r", PROMPT, SIZE)
    admit(cache, request)
    cache.free(request)
    settle(cache)
    assert displace(1) == request.page_hashes[::-1]
    settle(cache)
    assert not set(displace(2)) & set(request.page_hashes)
    again = make_request("again", PROMPT, SIZE)
    settle(cache)
    assert cache.begin_loads(again)
    for key, _ in take_moves(cache).disk_loads:
        cache.handle(PageEvent("loaded", key.page_hash))
    settle(cache)
    assert admit(cache, again) == 12
    cache.free(again)
    settle(cache)
    later = displace(3) + (settle(cache) or []) + displace(4)
    assert not set(later) & set(request.page_hashes)


def keep(cache: KVCacheManager, prompt: list[int]) -> Request:
    """A request that has come, been computed and gone, so that its pages are cached; the last token fills none."""
    admit(cache, request := make_request(f"{prompt}", prompt, SIZE))
    cache.free(request)
    return request


def test_of_what_leaves_the_device_in_one_schedule_the_beginning_finds_room_and_is_stored() -> None:
    """Whatever else leaves it: the end of another sequence after the beginning of the first."""
    cache = manager(num_blocks=8, num_slots=2, on_disk=())
    old, young = keep(cache, PROMPT), keep(cache, [9] * len(PROMPT))
    settle(cache)
    occupy(cache, 8)
    moves = take_moves(cache)
    assert len(moves.swap_out) == 2
    assert [key.page_hash for _, key in moves.disk_stores] == [old.page_hashes[0], young.page_hashes[0]]
    assert [slot for slot, _ in moves.disk_stores] == [slot for _, slot in moves.swap_out]
    assert cache.stats["dropped"] == 4


@pytest.mark.parametrize("in_flight", [0, 1])
def test_a_page_is_stored_once_no_step_under_way_can_make_it_worthless(in_flight: int) -> None:
    cache = manager(num_blocks=2, num_slots=1, on_disk=())
    cache.tiers.in_flight = in_flight
    keep(cache, [1] * 5)
    take_moves(cache)
    keep(cache, [2] * 5)
    stored = [[key.tokens for _, key in take_moves(cache).disk_stores] for _ in range(4)]
    first = page_hash.pack([1] * 4)
    assert stored == [[first], [], [], []] if in_flight == 0 else [[], [first], [], []]


def test_a_page_whose_step_has_failed_is_not_stored() -> None:
    cache = manager(num_blocks=2, num_slots=1, on_disk=())
    writer = keep(cache, [1] * 5)
    take_moves(cache)
    keep(cache, [2] * 5)
    assert take_moves(cache).disk_stores == [], "a step under way has computed it"
    cache.forget_step([writer])
    assert [take_moves(cache).disk_stores for _ in range(3)] == [[], [], []]


def test_a_page_that_must_leave_before_it_may_be_stored_is_counted() -> None:
    cache = manager(num_blocks=2, num_slots=1, on_disk=())
    cache.tiers.in_flight = 3
    for number in range(3):
        keep(cache, [number] * 5)
        assert take_moves(cache).disk_stores == []
    assert cache.stats["dropped"] == 1


def test_files_of_pages_behind_different_prefixes_are_told_apart_even_if_all_names_are_equal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extend = page_hash.extend
    monkeypatch.setattr(page_hash, "extend", lambda _parent, tokens: extend(b"", tokens))
    keys = []
    for first in (1, 9):
        cache = manager()
        keep(cache, [first] * 4 + [2] * 4 + [3] * 5)
        keys.append(cache.cached_pages()[-1][2])
    assert keys[0].page_hash == keys[1].page_hash
    assert keys[0].tokens == keys[1].tokens
    assert keys[0] != keys[1]


def test_a_page_that_is_computed_while_it_is_read_from_disk_is_hit_wherever_it_is() -> None:
    cache = manager(num_blocks=4, num_slots=4, on_disk=())
    assert cache.begin_loads(on_disk(cache, PROMPT[:5]))
    ((key, slot),) = take_moves(cache).disk_loads
    whole = make_request("whole", PROMPT[:5], SIZE, whole=True)
    admit(cache, whole)
    assert cache.lookup(make_request("s", PROMPT[:5], SIZE)).num_tokens == 4
    cache.free(whole)
    occupy(cache, 4)
    assert take_moves(cache).swap_out == []
    cache.handle(PageEvent("loaded", key.page_hash))
    hit = cache.lookup(make_request("t", PROMPT[:5], SIZE))
    assert hit.num_tokens == 4
    assert [page.slot for page in hit.pages] == [slot]


def test_a_page_that_comes_back_and_must_leave_at_once_keeps_its_slot() -> None:
    cache = manager(num_blocks=5, num_slots=8, prefix_caching=False)
    request = make_request("r", PROMPT, SIZE, shared=False)
    admit(cache, request)
    assert cache.swap_out(request)
    slots = [slot for _, slot in take_moves(cache).swap_out]
    assert cache.admit(request, cache.lookup(request), 0)
    assert cache.swap_out(request)
    assert take_moves(cache).is_empty
    assert cache.admit(request, cache.lookup(request), 0)
    assert [slot for slot, _ in take_moves(cache).swap_in] == slots


def test_what_comes_in_for_a_request_that_is_gone_does_not_overwrite_its_successor() -> None:
    cache = manager(num_blocks=4, num_slots=8, prefix_caching=False)
    first, second = (make_request(name, PROMPT, SIZE, shared=False) for name in "ab")
    admit(cache, first)
    assert cache.swap_out(first)
    take_moves(cache)
    assert cache.admit(first, cache.lookup(first), 0)
    cache.free(first)
    admit(cache, second)
    assert take_moves(cache).swap_in == []


def test_a_request_that_is_swapped_out_and_ends_at_once_moves_nothing() -> None:
    cache = manager(num_slots=8)
    admit(cache, request := make_request("r", PROMPT, SIZE))
    assert cache.swap_out(request)
    cache.free(request)
    assert take_moves(cache).is_empty
    assert cache.stats["host_blocks_used"] == 0


def test_what_is_cached_is_listed_most_wanted_first_and_forgotten_on_demand() -> None:
    cache = manager(num_blocks=8, num_slots=8)
    for name in ("old", "young"):
        admit(cache, request := make_request(name, [*name.encode()] * 4, SIZE))
        cache.free(request)
    admit(cache, big := make_request("big", [1] * 19, SIZE, shared=False))
    listed = cache.cached_pages()
    assert [tier for tier, _, _ in listed] == ["device"] * (8 - 5) + ["host"] * (len(listed) - 3)
    assert listed[0][2].page_hash == make_request("y", [*b"young"] * 4, SIZE).page_hashes[0]
    drop_cached(cache)
    assert cache.cached_pages() == []
    assert cache.stats["host_blocks_used"] == 0
    cache.free(big)
