"""What the scheduler decides, seen with a fake model whose tokens depend on every page it reads."""

import random

import pytest

from engine_fakes import VOCAB, FakeEngine, alone
from octavo_server.ipc import TokenLogprobs
from octavo_server.step import SampledRow, SchedulerOutput


def prompt(length: int, salt: int = 0) -> list[int]:
    return [(17 * index + 3 * salt) % VOCAB for index in range(length)]


def test_a_request_gives_the_models_tokens_up_to_max_tokens() -> None:
    engine = FakeEngine()
    engine.add("a", prompt(10), max_tokens=12)
    engine.run()
    assert engine.outputs["a"] == alone(prompt(10), 12)
    assert engine.results["a"].finish_reason == "length"


def test_new_requests_join_a_running_batch_at_every_step() -> None:
    engine = FakeEngine()
    for index in range(5):
        engine.add(f"r{index}", prompt(6, index), max_tokens=20)
        output = engine.step()
        assert [new.request_id for new in output.new_requests] == [f"r{index}"]
        assert output.num_scheduled_tokens == {**{f"r{old}": 1 for old in range(index)}, f"r{index}": 6}
    engine.run()
    assert engine.outputs == {f"r{index}": alone(prompt(6, index), 20) for index in range(5)}


def test_a_step_never_exceeds_its_token_budget_nor_its_number_of_requests() -> None:
    engine = FakeEngine(max_num_seqs=3, max_num_batched_tokens=10)
    for index in range(7):
        engine.add(f"r{index}", prompt(5 + 4 * index, index), max_tokens=9)
    widths: list[int] = []

    def check(output: SchedulerOutput) -> None:
        assert 0 < output.total_tokens <= 10
        assert len(output.num_scheduled_tokens) <= 3
        widths.append(output.total_tokens)

    engine.run(check)
    assert max(widths) == 10
    assert engine.outputs == {f"r{index}": alone(prompt(5 + 4 * index, index), 9) for index in range(7)}


def test_a_long_prompt_is_computed_in_chunks_beside_running_decodes() -> None:
    engine = FakeEngine(max_num_batched_tokens=8)
    engine.add("short", prompt(3), max_tokens=10)
    engine.step()
    engine.add("long", prompt(20, 1), max_tokens=2)
    chunks = [engine.step().num_scheduled_tokens for _ in range(3)]
    assert chunks == [{"short": 1, "long": 7}, {"short": 1, "long": 7}, {"short": 1, "long": 6}]
    assert len(engine.outputs["short"]) == 4  # one at its prefill, one beside each chunk
    engine.run()
    assert engine.outputs == {"short": alone(prompt(3), 10), "long": alone(prompt(20, 1), 2)}


def test_a_budget_smaller_than_the_number_running_still_serves_everybody() -> None:
    engine = FakeEngine(max_num_batched_tokens=2, max_num_seqs=8)
    for index in range(6):
        engine.add(f"r{index}", prompt(3, index), max_tokens=5)
    engine.run()
    assert engine.outputs == {f"r{index}": alone(prompt(3, index), 5) for index in range(6)}


def test_under_pressure_requests_are_preempted_and_all_outputs_stay_the_same() -> None:
    """64 requests in a pool for 8 of them."""
    engine = FakeEngine(num_blocks=8 * 6, block_size=4, max_num_seqs=64, max_num_batched_tokens=64, max_model_len=48)
    for index in range(64):
        engine.add(f"r{index}", prompt(4 + index % 5, index), max_tokens=16)
    engine.run()
    assert engine.scheduler.counts["preemptions"] > 0
    assert engine.outputs == {f"r{index}": alone(prompt(4 + index % 5, index), 16) for index in range(64)}
    assert engine.pool.num_free == 48


def test_the_youngest_gives_way_and_comes_back_before_newer_ones() -> None:
    engine = FakeEngine(num_blocks=6, block_size=4, max_model_len=24, max_num_seqs=2)
    lengths = {"old": (8, 14), "young": (8, 10), "new": (10, 4)}
    for salt, (name, (length, count)) in enumerate(lengths.items()):
        engine.add(name, prompt(length, salt), max_tokens=count)
    preempted: list[str] = []
    joined: list[str] = []

    def watch(output: SchedulerOutput) -> None:
        preempted.extend(output.preempted_ids)
        joined.extend(new.request_id for new in output.new_requests)

    engine.run(watch)
    assert preempted == ["young"]
    assert joined == ["old", "young", "young", "new"]
    want = {name: alone(prompt(length, salt), count) for salt, (name, (length, count)) in enumerate(lengths.items())}
    assert engine.outputs == want


def test_a_preempted_request_is_sent_again_with_all_its_tokens_and_its_place_in_the_answer() -> None:
    engine = FakeEngine(num_blocks=6, block_size=4, max_model_len=24)
    engine.add("old", prompt(8), max_tokens=14)
    engine.add("young", prompt(4, 1), max_tokens=14)
    outputs: list[SchedulerOutput] = []
    engine.run(outputs.append)
    first, *again = [new for output in outputs for new in output.new_requests if new.request_id == "young"]
    assert again, "young was never preempted"
    assert (first.num_prompt_tokens, first.token_ids) == (4, prompt(4, 1))
    for new in again:
        assert new.num_prompt_tokens == 4
        assert new.token_ids == [*prompt(4, 1), *alone(prompt(4, 1), 14)][: len(new.token_ids)]
        assert len(new.token_ids) > 4
        assert new.num_computed_tokens == 0


def test_requests_that_the_worker_knows_are_sent_as_deltas_only() -> None:
    engine = FakeEngine(block_size=4)
    engine.add("a", prompt(7), max_tokens=6)
    first, second, third = engine.step(), engine.step(), engine.step()
    assert len(first.new_requests) == 1 and len(first.new_requests[0].block_ids) == 2
    assert second == SchedulerOutput(step=2, num_scheduled_tokens={"a": 1})
    assert third.new_requests == [] and len(third.new_block_ids["a"]) == 1  # token 8 begins a page
    engine.run()
    assert engine.scheduler.schedule().finished_ids == ["a"]


def test_short_ones_pass_one_that_does_not_fit_until_they_are_as_long_as_it_is_together() -> None:
    engine = FakeEngine(num_blocks=8, block_size=4, max_model_len=32, max_num_seqs=4)
    engine.add("running", prompt(12), max_tokens=14)
    engine.step()
    engine.add("big", prompt(24, 1), max_tokens=1)
    for index in range(20):
        engine.add(f"small {index}", prompt(3, 2 + index), max_tokens=1)
    started: list[str] = []
    engine.run(lambda output: started.extend(new.request_id for new in output.new_requests))
    before = started.index("big")
    assert before == 8  # 24 tokens in prompts of 3
    assert started == [*(f"small {i}" for i in range(8)), "big", *(f"small {i}" for i in range(8, 20))]


def test_a_prompt_joins_only_when_all_of_it_fits() -> None:
    engine = FakeEngine(num_blocks=8, block_size=4, max_num_batched_tokens=8, max_model_len=32)
    engine.add("running", prompt(15), max_tokens=2)
    engine.step()
    engine.step()
    engine.add("big", prompt(17, 1), max_tokens=1)  # 5 pages of the 4 that are free, a first chunk of 2 would fit
    assert engine.pool.num_free == 4
    assert engine.step().new_requests == []
    engine.run()
    assert engine.outputs["big"] == alone(prompt(17, 1), 1)
    assert engine.scheduler.counts["preemptions"] == 0


def test_a_newcomer_does_not_take_the_page_of_the_next_token_of_one_before_it() -> None:
    engine = FakeEngine(num_blocks=4, block_size=4, max_model_len=16)
    engine.add("first", prompt(8), max_tokens=3)  # fills 2 pages, and its first token begins a third
    engine.add("second", prompt(4, 1), max_tokens=3)  # needs 2 as well: both are free, but one is spoken for
    engine.run()
    assert engine.scheduler.counts["preemptions"] == 0
    assert engine.outputs == {"first": alone(prompt(8), 3), "second": alone(prompt(4, 1), 3)}


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (prompt(64), ["64 tokens", "may have 64"]),
        (prompt(5000), ["5000 tokens", "may have 64"]),
        ([], ["empty"]),
        ([1, VOCAB], [f"token id {VOCAB}", f"0 to {VOCAB - 1}"]),
        ([1, -1], ["token id -1"]),
    ],
)
def test_a_request_that_can_never_be_served_is_refused_with_the_reason(tokens: list[int], words: list[str]) -> None:
    engine = FakeEngine(max_model_len=64)
    engine.add("good", prompt(4), max_tokens=3)
    refusal = engine.add("bad", tokens)
    assert refusal is not None and refusal.finish_reason == "error" and refusal.error is not None
    assert all(word in refusal.error for word in words), refusal.error
    engine.run()
    assert engine.outputs == {"good": alone(prompt(4), 3)}


def test_a_request_id_in_use_is_refused_loudly() -> None:
    engine = FakeEngine()
    engine.add("a", prompt(4))
    with pytest.raises(ValueError, match="'a' is already in use"):
        engine.add("a", prompt(5))


def test_the_longest_possible_request_runs_through_a_pool_that_just_holds_it() -> None:
    engine = FakeEngine(num_blocks=8, block_size=4, max_model_len=32)
    engine.add("a", prompt(5), max_tokens=10_000)
    engine.add("b", prompt(31, 1), max_tokens=10_000)
    engine.run()
    assert engine.outputs == {"a": alone(prompt(5), 27), "b": alone(prompt(31, 1), 1)}
    assert {result.finish_reason for result in engine.results.values()} == {"length"}


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_abort_at_any_stage_frees_the_pages_and_leaves_the_others_alone(steps: int) -> None:
    """Before its first step, in mid-prefill, at its first token, in decode."""
    engine = FakeEngine(max_num_batched_tokens=12)
    engine.add("other", prompt(4), max_tokens=12)
    engine.add("gone", prompt(20, 1), max_tokens=12)
    for _ in range(steps):
        engine.step()
    (result,) = engine.scheduler.abort(["gone", "never seen", "gone"])
    assert (result.request_id, result.finish_reason, result.token_ids) == ("gone", "abort", [])
    held = -(-engine.scheduler.requests["other"].num_computed_tokens // 4)
    assert engine.pool.num_free == 64 - held
    assert engine.step().finished_ids == ["gone"]
    engine.run()
    assert engine.outputs["other"] == alone(prompt(4), 12)
    assert engine.pool.num_free == 64


def test_a_preempted_request_can_be_aborted_while_it_waits() -> None:
    engine = FakeEngine(num_blocks=6, block_size=4, max_model_len=24)
    engine.add("old", prompt(8), max_tokens=14)
    engine.add("young", prompt(8, 1), max_tokens=14)
    while not engine.step().preempted_ids:
        pass
    assert [request.request_id for request in engine.scheduler.waiting] == ["young"]
    engine.scheduler.abort(["young"])
    engine.run()
    assert engine.outputs["old"] == alone(prompt(8), 14)
    assert engine.pool.num_free == 6 and engine.scheduler.num_waiting_tokens == 0


def test_an_id_that_was_aborted_can_come_back_in_the_same_step() -> None:
    engine = FakeEngine()
    engine.add("a", prompt(9), max_tokens=5)
    engine.step()
    engine.scheduler.abort(["a"])
    engine.add("a", prompt(7, 5), max_tokens=5)
    engine.outputs.clear()
    engine.run()
    assert engine.outputs["a"] == alone(prompt(7, 5), 5)


def test_the_models_end_ends_a_request_without_a_stop_reason() -> None:
    answer = alone(prompt(5), 8)
    engine = FakeEngine(eos=frozenset({answer[3], 1}))
    engine.add("a", prompt(5), stop_token_ids=(answer[3],))
    engine.add("ignoring", prompt(5), ignore_eos=True)
    engine.run()
    assert (engine.outputs["a"], engine.results["a"].finish_reason) == (answer[:4], "stop")
    assert engine.results["a"].stop_reason is None
    assert (engine.outputs["ignoring"], engine.results["ignoring"].finish_reason) == (answer, "length")


def test_a_stop_token_ends_a_request_and_is_named() -> None:
    answer = alone(prompt(5), 8)
    engine = FakeEngine()
    engine.add("a", prompt(5), stop_token_ids=(answer[2], answer[5]))
    engine.run()
    assert engine.outputs["a"] == answer[:3]
    assert (engine.results["a"].finish_reason, engine.results["a"].stop_reason) == ("stop", answer[2])


def test_no_tokens_wanted_gives_none_and_says_length() -> None:
    engine = FakeEngine()
    engine.add("a", prompt(5), max_tokens=0)
    engine.run()
    assert (engine.outputs["a"], engine.results["a"].finish_reason) == ([], "length")
    assert engine.scheduler.counts["generation_tokens"] == 0


def test_a_prompt_of_which_no_answer_is_wanted_may_fill_the_context_and_the_pool() -> None:
    engine = FakeEngine(num_blocks=8, block_size=4, max_num_batched_tokens=7, max_model_len=32)
    for length, wanted in ((33, 0), (32, 1)):
        refusal = engine.add("longer", prompt(length), max_tokens=wanted)
        assert refusal is not None and f"{length} tokens" in (refusal.error or "")
    engine.add("a", prompt(32), max_tokens=0)
    engine.add("b", prompt(32), max_tokens=0)  # but for the last page, all of it is found
    engine.run()
    for name in ("a", "b"):
        assert (engine.outputs[name], engine.results[name].finish_reason) == ([], "length")
    assert engine.pool.num_free == 8


def test_a_row_that_failed_ends_its_request_alone() -> None:
    engine = FakeEngine()
    engine.add("good", prompt(4), max_tokens=6)
    engine.add("bad", prompt(5, 1), max_tokens=6)
    engine.step()
    output = engine.scheduler.schedule()
    rows = [row if row.request_id == "good" else SampledRow("bad", error="no") for row in engine.runner.execute(output)]
    results = {result.request_id: result for result in engine.scheduler.update(output, rows)}
    assert (results["bad"].finish_reason, results["bad"].error) == ("error", "no")
    engine.run()
    assert engine.outputs["good"][1:] == alone(prompt(4), 6)[2:]
    assert engine.pool.num_free == 64


def test_prompt_logprobs_are_collected_over_chunks_and_sent_once_with_the_first_token() -> None:
    engine = FakeEngine(max_num_batched_tokens=4)
    engine.add("a", prompt(6), max_tokens=3, prompt_logprobs=0)
    entry = TokenLogprobs([1], [-1.0], 1)
    first = engine.scheduler.schedule()
    assert engine.scheduler.update(first, [SampledRow("a", prompt_logprobs=[None, entry, entry, entry])]) == []
    second = engine.scheduler.schedule()
    row = SampledRow("a", token_id=5, prompt_logprobs=[entry, entry])
    (result,) = engine.scheduler.update(second, [row])
    assert result.prompt_logprobs == [None, entry, entry, entry, entry, entry]
    (result,) = engine.scheduler.update(engine.scheduler.schedule(), [SampledRow("a", token_id=6)])
    assert result.prompt_logprobs is None


def test_rows_of_a_request_that_was_aborted_during_the_step_are_dropped() -> None:
    engine = FakeEngine()
    engine.add("a", prompt(4))
    output = engine.scheduler.schedule()
    engine.scheduler.abort(["a"])
    assert engine.scheduler.update(output, engine.runner.execute(output)) == []
    assert engine.pool.num_free == 64


def test_the_counters_count() -> None:
    engine = FakeEngine()
    engine.add("a", prompt(10), max_tokens=3)
    engine.add("b", prompt(11), max_tokens=4)
    assert engine.scheduler.num_waiting_tokens == 21
    engine.run()
    scheduler = engine.scheduler
    assert (scheduler.counts["prompt_tokens"], scheduler.counts["generation_tokens"]) == (21, 7)
    assert (scheduler.num_waiting_tokens, scheduler.counts["preemptions"], scheduler.num_steps) == (0, 0, 4)


def test_whatever_comes_and_goes_answers_pages_and_order_are_right() -> None:
    """Random arrivals, aborts and steps in a small pool; the invariants hold after each."""
    preemptions = sum(_come_and_go(random.Random(seed)) for seed in range(40))
    assert preemptions > 100


def _come_and_go(rng: random.Random) -> int:
    engine = FakeEngine(num_blocks=12, block_size=3, max_num_seqs=5, max_num_batched_tokens=11, max_model_len=36)
    wanted: dict[str, list[int]] = {}
    aborted: set[str] = set()
    arrivals: list[str] = []
    for _ in range(150):
        action = rng.random()
        if action < 0.25:
            name, tokens = f"r{len(arrivals)}", prompt(rng.randint(1, 20), len(arrivals))
            wanted[name] = alone(tokens, rng.randint(1, 16))
            assert engine.add(name, tokens, max_tokens=len(wanted[name])) is None
            arrivals.append(name)
        elif action < 0.3 and arrivals:
            aborted.update(output.request_id for output in engine.scheduler.abort([rng.choice(arrivals)]))
        else:
            assert engine.step().total_tokens <= 11
        _check_invariants(engine, arrivals)
    engine.run()
    for name, answer in wanted.items():
        got = engine.outputs.get(name, [])
        assert got == (answer[: len(got)] if name in aborted else answer)
    assert engine.pool.num_free == 12 and engine.scheduler.num_waiting_tokens == 0
    return engine.scheduler.counts["preemptions"]


def _check_invariants(engine: FakeEngine, arrivals: list[str]) -> None:
    scheduler = engine.scheduler
    for group in (scheduler.running, scheduler.waiting):
        names = {request.request_id for request in group}
        assert [request.request_id for request in group] == [name for name in arrivals if name in names]
    assert len(scheduler.running) + len(scheduler.waiting) == len(scheduler.requests)
    assert len(scheduler.running) <= 5
    held = [block for request in scheduler.running for block in scheduler.kv_cache.block_ids(request)]
    assert len(held) == len(set(held)) == 12 - engine.pool.num_free
    assert scheduler.num_waiting_tokens == sum(request.num_tokens for request in scheduler.waiting)
