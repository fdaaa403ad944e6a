"""Who gets on when there is not enough for all: fair shares, turns, priorities, deadlines, and pages."""

from dataclasses import replace

import pytest

from engine_fakes import VOCAB, FakeEngine, alone
from octavo_server import page_hash
from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.request import AGING_SECONDS, Request
from octavo_server.engine.scheduler import SHORT_STEP, Scheduler, SchedulerLimits, _Batch
from octavo_server.ipc import SamplingParams
from octavo_server.step import SampledRow, SchedulerOutput

LONG = 100_000


def prompt(length: int, salt: int = 0) -> list[int]:
    return [(17 * index + 3 * salt) % VOCAB for index in range(length)]


class CountingEngine:
    """A scheduler whose steps are not computed: every row that samples gets token 5."""

    def __init__(self, budget: int, num_blocks: int, *, max_num_seqs: int = 256, prefix_caching: bool = False) -> None:
        limits = SchedulerLimits(max_num_seqs, budget, min(110_000, num_blocks * 16), VOCAB)
        self.kv_cache = KVCacheManager(BlockPool(num_blocks), 16, prefix_caching=prefix_caching)
        self.scheduler = Scheduler(limits, self.kv_cache)
        self.first_token: dict[str, int] = {}  # step of it
        self.finished: dict[str, int] = {}
        self.computed: dict[str, int] = {}  # tokens, in all

    def add(self, name: str, tokens: list[int], max_tokens: int = 4, arrival: float = 0.0, priority: int = 0) -> None:
        hashes = page_hash.hash_pages(tokens, 16, b"") if self.kv_cache.prefix_caching else b""
        request = Request(
            name,
            tokens,
            SamplingParams(max_tokens=max_tokens),
            self.scheduler.limits.max_model_len,
            arrival=arrival,
            priority=priority,
            page_hashes=[hashes[start : start + 16] for start in range(0, len(hashes), 16)],
        )
        assert self.scheduler.add(request) == []

    def step(self) -> SchedulerOutput:
        scheduler = self.scheduler
        output = scheduler.schedule()
        rows = []
        for name, count in output.num_scheduled_tokens.items():
            self.computed[name] = self.computed.get(name, 0) + count
            if scheduler.requests[name].num_pending_tokens:
                rows.append(SampledRow(name, 5))
                self.first_token.setdefault(name, output.step)
        for result in scheduler.update(output, rows):
            if result.finish_reason is not None:
                self.finished[result.request_id] = output.step
        return output


@pytest.mark.parametrize("decodes", [0, 200])
@pytest.mark.parametrize("pages_for", [2, 4])
@pytest.mark.parametrize("budget", [512, 1024, 2048, 8192])
def test_a_short_prompt_behind_four_of_100_000_tokens_gets_its_first_token_within_3_steps(
    budget: int, pages_for: int, decodes: int
) -> None:
    engine = CountingEngine(budget, pages_for * 6300 + 20 * 12 * 16)
    for index in range(decodes):
        engine.add(f"decode {index}", prompt(16, index), max_tokens=10_000)
    while len(engine.first_token) < decodes:
        engine.step()
    for index in range(4):
        engine.add(f"long {index}", [index] * LONG)
    for _ in range(5):
        engine.step()
    engine.add("short", prompt(100))
    arrived = engine.scheduler.num_steps
    for _ in range(3):
        output = engine.step()
        assert output.total_tokens == min(budget, SHORT_STEP)  # nobody else is held back for it
    assert engine.first_token["short"] <= arrived + 3
    assert all(f"decode {index}" in output.num_scheduled_tokens for index in range(decodes))


@pytest.mark.parametrize("started", [0, 5])
@pytest.mark.parametrize("shared_with", [0, 1, 2, 3])
@pytest.mark.parametrize("budget", [512, 2048])
def test_a_short_prompt_does_not_wait_for_a_long_one_with_the_same_beginning_that_does_not_get_on(
    budget: int, shared_with: int, started: int
) -> None:
    engine = CountingEngine(budget, 4 * 6300, prefix_caching=True)
    longs = [prompt(LONG, index) for index in range(4)]
    for index, tokens in enumerate(longs):
        engine.add(f"long {index}", tokens)
    for _ in range(started):
        engine.step()
    engine.add("short", [*longs[shared_with][:80], *[5] * 20])
    arrived = engine.scheduler.num_steps
    for _ in range(3):
        engine.step()
    assert engine.first_token["short"] <= arrived + 3
    assert engine.computed["long 0"] >= (started + 3) * (budget - 100)


def test_an_urgent_request_does_not_wait_for_one_of_worse_priority_that_computes_what_it_needs() -> None:
    engine = CountingEngine(64, 4000, prefix_caching=True)
    shared = prompt(4000)
    engine.add("old", prompt(8000, 1), priority=-900)
    engine.add("slow", shared, priority=1000)
    engine.step()
    for index in range(30):
        engine.add(f"short {index}", prompt(50, 2 + index), max_tokens=1)
        if index == 5:
            engine.add("urgent", [*shared[:200], 1], priority=-1000)
        engine.step()
    # A quarter of each step, and what the short ones leave, is the urgent one's.
    assert engine.first_token["urgent"] <= 6 + 201 // 16 + 1


def test_short_prompts_without_end_do_not_keep_a_long_one_from_getting_on() -> None:
    engine = CountingEngine(64, 2000)
    engine.add("long", prompt(3000))
    for index in range(1000):
        engine.add(f"short {index}", prompt(64, index), max_tokens=1)
        engine.step()
        if "long" in engine.first_token:
            break
    assert engine.first_token["long"] <= -(-3000 // 16) + 1  # a quarter of each step


def test_the_shortest_go_first_and_equal_ones_in_order() -> None:
    engine = CountingEngine(100, 1000)
    engine.add("oldest", prompt(400))
    for name, length in (("b", 150), ("c", 60), ("d", 150)):
        engine.add(name, prompt(length, length))
    while len(engine.first_token) < 4:
        engine.step()
    assert sorted(engine.first_token, key=lambda name: engine.first_token[name]) == ["c", "b", "d", "oldest"]


@pytest.mark.parametrize("overlap", [False, True])
def test_with_a_budget_below_the_number_running_decodes_take_turns(overlap: bool) -> None:
    engine = FakeEngine(max_num_batched_tokens=3, max_num_seqs=8, overlap=overlap, num_blocks=80)
    for index in range(8):
        engine.add(f"r{index}", prompt(1, index), max_tokens=30)
    while len(engine.scheduler.running) < 8:
        engine.step()
    served = {f"r{index}": 0 for index in range(8)}
    for _ in range(16):
        for name in engine.step().num_scheduled_tokens:
            served[name] += 1
    assert sum(served.values()) == 48 and set(served.values()) == {6}
    engine.run()
    assert engine.outputs == {f"r{index}": alone(prompt(1, index), 30) for index in range(8)}


@pytest.mark.parametrize(("block_size", "num_blocks"), [(1, 6), (2, 4), (2, 6), (16, 8)])
def test_with_a_budget_of_one_token_all_get_on_even_without_a_free_page(block_size: int, num_blocks: int) -> None:
    length = block_size * num_blocks
    engine = FakeEngine(
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=4,
        max_num_batched_tokens=1,
        max_model_len=length,
    )
    for index in range(6):
        engine.add(f"r{index}", prompt(block_size, index), max_tokens=length)
    engine.run()
    count = length - block_size
    assert engine.outputs == {f"r{index}": alone(prompt(block_size, index), count) for index in range(6)}


def test_decodes_that_could_take_the_whole_budget_leave_a_quarter_to_prefills() -> None:
    engine = CountingEngine(8, 1000)
    for index in range(16):
        engine.add(f"r{index}", prompt(1, index), max_tokens=1000)
    while len(engine.first_token) < 16:
        engine.step()
    engine.add("late", prompt(20))
    counts = [engine.step().num_scheduled_tokens.get("late", 0) for _ in range(10)]
    assert counts == [2] * 10 and engine.first_token["late"]


def test_long_steps_begin_behind_another_when_two_wait_and_go_on_while_one_does() -> None:
    longest = 2 * SHORT_STEP
    engine = CountingEngine(longest, 10_000)
    scheduler = engine.scheduler
    engine.add("answers", prompt(1), max_tokens=1000)
    engine.step()
    for index in range(6):
        engine.add(f"prompt {index}", prompt(SHORT_STEP, index))
    steps = [scheduler.schedule() for _ in range(4)]
    # Nothing is under way at first; then 10 k tokens wait behind a step, then 6 k, then 2 k.
    assert [step.total_tokens for step in steps] == [SHORT_STEP, longest, longest, SHORT_STEP]
    for index in range(3):
        engine.add(f"later {index}", prompt(SHORT_STEP, 9 + index))
    assert scheduler.schedule().total_tokens == SHORT_STEP  # 6 k wait: one long step, which is too few to begin with


def test_more_decodes_than_half_a_short_step_make_it_longer() -> None:
    engine = CountingEngine(3 * SHORT_STEP, 10_000, max_num_seqs=2 * SHORT_STEP)
    for index in range(2 * SHORT_STEP):
        engine.add(f"r{index}", prompt(1, index), max_tokens=1000)
    while len(engine.first_token) < 2 * SHORT_STEP:
        engine.step()
    assert engine.step().total_tokens == 2 * SHORT_STEP


def test_a_better_priority_goes_first_until_others_have_waited_long_enough() -> None:
    engine = FakeEngine(max_num_seqs=1, num_blocks=64)
    engine.add("running", prompt(4), max_tokens=3)
    engine.step()
    engine.add("normal", prompt(4, 1), max_tokens=1)
    engine.clock.now = 1.0
    engine.add("urgent", prompt(4, 2), max_tokens=1, priority=-1)
    engine.clock.now = 2.0
    engine.add("idle", prompt(4, 3), max_tokens=1, priority=1)
    engine.clock.now = 2.0 + AGING_SECONDS + 1.0
    engine.add("much later", prompt(4, 4), max_tokens=1)  # better than "idle" by one, which has waited long enough
    order: list[str] = []
    engine.run(lambda output: order.extend(new.request_id for new in output.new_requests))
    assert order == ["urgent", "normal", "idle", "much later"]


def test_the_worst_priority_gives_way_first() -> None:
    engine = FakeEngine(num_blocks=9, block_size=4, max_model_len=24)
    engine.add("low", prompt(8), max_tokens=14, priority=5)
    engine.add("high", prompt(8, 1), max_tokens=14)
    preempted: list[str] = []
    engine.run(lambda output: preempted.extend(output.preempted_ids))
    assert preempted and set(preempted) == {"low"}
    assert engine.outputs == {"low": alone(prompt(8), 14), "high": alone(prompt(8, 1), 14)}


@pytest.mark.parametrize("overlap", [False, True])
def test_a_deadline_ends_a_request_while_it_waits_runs_or_is_swapped_out(overlap: bool) -> None:
    engine = FakeEngine(
        num_blocks=10, block_size=4, max_model_len=24, host_slots=8, preemption_mode="swap", overlap=overlap
    )
    engine.add("old", prompt(8), max_tokens=16)
    engine.add("young", prompt(8, 1), max_tokens=16, deadline=10.0)
    engine.add("running", prompt(2, 3), max_tokens=12, deadline=5.0)
    engine.step()
    engine.add("waiting", prompt(20, 2), max_tokens=4, deadline=5.0)
    engine.step()
    assert "running" in {request.request_id for request in engine.scheduler.running}
    engine.clock.now = 5.0
    engine.step()
    for name in ("running", "waiting"):
        last = engine.results[name]
        assert (last.finish_reason, last.error_kind) == ("error", "timeout") and "time" in (last.error or "")
    while not engine.core.stats().preemptions_by_swap:
        engine.step()
    assert "young" not in engine.results or engine.results["young"].finish_reason is None
    engine.clock.now = 10.0
    engine.run()
    assert engine.results["young"].error_kind == "timeout"
    assert engine.outputs["old"] == alone(prompt(8), 16)
    stats = engine.core.stats()
    assert stats.kv_blocks_used == 0 and stats.host_blocks_used == 0


def test_a_deadline_that_was_met_ends_nothing_even_if_the_id_comes_back() -> None:
    engine = FakeEngine()
    engine.add("a", prompt(4), max_tokens=2, deadline=5.0)
    engine.run()
    engine.add("a", prompt(5), max_tokens=3)
    engine.clock.now = 6.0
    engine.run()
    assert engine.results["a"].finish_reason == "length"


def test_the_deadlines_of_requests_that_have_ended_are_not_kept() -> None:
    engine = FakeEngine()
    for index in range(50):
        engine.add(f"r{index}", prompt(4, index), max_tokens=1 + index % 3, deadline=1000.0 - index % 7)
        if index % 4 == 0:
            engine.step()
            engine.abort(f"r{index}")
    assert len(engine.scheduler._deadlines) == len(engine.scheduler.requests) > 0
    engine.run()
    assert engine.scheduler._deadlines == []


def test_pages_stay_free_for_running_requests_so_that_they_do_not_take_each_others_back_and_forth() -> None:
    """A crowd, each growing from two pages to ten: 39 preemptions, and 74 if no page were kept for next tokens."""
    engine = FakeEngine(num_blocks=60, block_size=4, max_num_seqs=32, max_num_batched_tokens=64, max_model_len=40)
    for index in range(60):
        engine.add(f"r{index}", prompt(8, index), max_tokens=30)
    engine.run()
    assert engine.outputs == {f"r{index}": alone(prompt(8, index), 30) for index in range(60)}
    assert 0 < engine.scheduler.counts["preemptions"] < 50


def test_a_request_that_gave_way_does_not_come_back_before_its_last_token_is_known() -> None:
    engine = FakeEngine()
    scheduler = engine.scheduler
    engine.add("a", prompt(8), max_tokens=4)
    output = scheduler.schedule()
    rows = engine.runner.execute(output)
    (request,) = scheduler.running
    scheduler._preempt(request, _Batch(output, 0))
    assert request.num_pending_tokens == 1
    assert scheduler.schedule().new_requests == []
    scheduler.update(output, rows)
    (again,) = scheduler.schedule().new_requests
    assert again.token_ids == [*prompt(8), *alone(prompt(8), 1)]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("budget", [16, 64, 512])
def test_a_prompt_that_several_bring_at_once_is_computed_once(budget: int, overlap: bool) -> None:
    """The first one is longer behind what they share: the others would overtake it, and compute it besides."""
    engine = FakeEngine(
        prefix_caching=True, max_num_batched_tokens=budget, overlap=overlap, max_model_len=128, num_blocks=128
    )
    shared = prompt(40)
    prompts = {f"r{index}": [*shared, *prompt(40 if index == 0 else 1, 100 + index)] for index in range(4)}
    for name, tokens in prompts.items():
        engine.add(name, tokens, max_tokens=4)
    computed = 0

    def count(output: SchedulerOutput) -> None:
        nonlocal computed
        computed += output.total_tokens

    engine.run(count)
    assert computed == 40 + 40 + 3 + 4 * 3
    assert [engine.first_results[name].num_cached_tokens for name in prompts] == [0, 40, 40, 40]
    assert engine.outputs == {name: alone(tokens, 4) for name, tokens in prompts.items()}
    stats = engine.core.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (80 + 3 * 41, 120)


@pytest.mark.parametrize("budget", [64, 512])
def test_while_some_wait_for_what_another_computes_no_part_of_a_step_is_left_unused(budget: int) -> None:
    engine = CountingEngine(budget, 20_000, prefix_caching=True)
    shared = prompt(3000)
    for index in range(8):
        engine.add(f"r{index}", [*shared[: 3000 - 7 * index], index], max_tokens=1)
    while engine.scheduler.requests:
        engine.step()
    ideal = sum(engine.computed.values()) / budget
    assert engine.scheduler.num_steps <= 1.25 * ideal + 2
    assert sum(engine.computed.values()) <= 1.1 * 3000 + 8 * 16


@pytest.mark.parametrize("budget", [512, 2048, 8192])
def test_prompts_that_share_ever_more_of_a_short_one_hold_it_up_for_3_steps_at_most(budget: int) -> None:
    engine = CountingEngine(budget, 4 * 6300, prefix_caching=True)
    short = prompt(100)
    for index in range(4):
        engine.add(f"long {index}", [*short[: 16 * index], *prompt(LONG, 1 + index)])
    for _ in range(3):
        engine.step()
    for pages in range(1, 6):
        engine.add(f"other {pages}", [*short[: 16 * pages], *prompt(17 * pages, 40 + pages)])
    engine.add("short", short)
    arrived = engine.scheduler.num_steps
    for _ in range(3):
        engine.step()
    assert engine.first_token["short"] <= arrived + 3


def test_tenants_with_salts_of_their_own_share_nothing() -> None:
    engine = FakeEngine(prefix_caching=True)
    for salt in (b"", b"a", b"b"):
        engine.add(f"r{salt!r}", prompt(20), max_tokens=2, salt=salt)
        engine.run()
    assert engine.core.stats().prefix_hits == 0


@pytest.mark.parametrize("overlap", [False, True])
def test_all_that_hit_what_a_step_computes_join_in_that_very_step(overlap: bool) -> None:
    """More of them than a step looks at at a time. The others take only what the first one leaves them to compute."""
    engine = FakeEngine(
        prefix_caching=True, max_num_seqs=64, max_num_batched_tokens=200, num_blocks=200, overlap=overlap
    )
    shared = prompt(16)
    prompts = {f"r{index}": [*shared, *prompt(1 + index % 4, 7 + index)] for index in range(40)}
    for name, tokens in prompts.items():
        engine.add(name, tokens, max_tokens=5)
    first = engine.step().num_scheduled_tokens
    assert first == {name: len(tokens) - 16 * (name != "r0") for name, tokens in prompts.items()}
    engine.run()
    assert engine.outputs == {name: alone(tokens, 5) for name, tokens in prompts.items()}


def test_those_that_hit_what_a_step_computes_join_as_far_as_its_budget_goes_and_the_others_in_the_next() -> None:
    engine = FakeEngine(prefix_caching=True, max_num_seqs=64, max_num_batched_tokens=50, num_blocks=200)
    shared = prompt(30)  # seven full pages of 4
    prompts = {f"r{index}": [*shared, 40, index] for index in range(12)}
    for name, tokens in prompts.items():
        engine.add(name, tokens, max_tokens=5)
    first, second = engine.step().num_scheduled_tokens, engine.step().num_scheduled_tokens
    assert list(first.values()) == [32, 4, 4, 4, 4, 2]
    assert second == {**dict.fromkeys(list(prompts)[:5], 1), "r5": 2, **dict.fromkeys(list(prompts)[6:], 4)}
    engine.run()
    assert engine.outputs == {name: alone(tokens, 5) for name, tokens in prompts.items()}


def test_one_that_does_not_fit_is_passed_once_by_each_that_joins_in_one_step() -> None:
    """Two join by what was known of them, two more because these found most of their tokens in the cache."""
    engine = FakeEngine(prefix_caching=True, max_num_batched_tokens=61, num_blocks=28)
    engine.add("old", prompt(60, 9), max_tokens=4)
    engine.step()
    engine.scheduler.limits = replace(engine.scheduler.limits, max_num_batched_tokens=25)
    engine.add("large", prompt(61, 13), max_tokens=1)
    for index in range(6):
        engine.add(f"r{index}", [*prompt(16), 50, index], max_tokens=1)
    assert engine.step().num_scheduled_tokens == {"old": 1, "r0": 18, "r1": 2, "r2": 2, "r3": 2}
    assert engine.scheduler.requests["large"].tokens_passed_by == 4 * 18
    engine.run()
    assert len(engine.outputs) == 8 and engine.scheduler.counts["preemptions"] == 0
