"""A step scheduled while the one before it runs: late ends, aborts, failures; and pressure on the pages, either way."""

from pathlib import Path
from typing import Any

import pytest

from engine_fakes import VOCAB, FakeEngine, alone
from octavo_server.step import SchedulerOutput
from octavo_server.step_ring import NUM_RECORDS, RECORD_BYTES, StepRing, read_steps, steps_path

WAYS = [
    pytest.param({}, id="step by step"),
    pytest.param({"overlap": True, "compute": "early"}, id="overlap, early"),
    pytest.param({"overlap": True, "compute": "late"}, id="overlap, late"),
    pytest.param({"overlap": True, "compute": "late", "copies": "late"}, id="overlap, all late"),
]


def prompt(length: int, salt: int = 0) -> list[int]:
    return [(17 * index + 3 * salt) % VOCAB for index in range(length)]


@pytest.mark.parametrize("way", WAYS)
def test_an_end_that_is_found_late_costs_a_step_and_counts_nowhere(way: dict[str, Any]) -> None:
    answer = alone(prompt(5), 12)
    end = next(index for index in range(3, 12) if answer[index] not in answer[:index])
    engine = FakeEngine(eos=frozenset({answer[end]}), **way)
    engine.add("a", prompt(5), max_tokens=30)
    engine.add("b", prompt(6, 1), max_tokens=30, ignore_eos=True)
    engine.run()
    assert engine.outputs == {"a": answer[: end + 1], "b": alone(prompt(6, 1), 30)}
    assert engine.results["a"].finish_reason == "stop"
    stats = engine.core.stats()
    assert (stats.prompt_tokens, stats.generation_tokens) == (11, end + 1 + 30)
    rows = sum(output.num_scheduled_tokens.get("a", 0) for output in engine.runner.steps)
    assert rows == 5 + end + bool(way)  # one too many with overlap
    assert engine.kv_cache.stats["kv_blocks_used"] == 0


@pytest.mark.parametrize("way", WAYS)
def test_no_token_is_computed_beyond_the_longest_answer(way: dict[str, Any]) -> None:
    engine = FakeEngine(max_model_len=16, **way)
    engine.add("a", prompt(5), max_tokens=4)
    engine.add("b", prompt(10, 1), max_tokens=100)
    engine.add("none", prompt(7, 2), max_tokens=0)
    engine.run()
    assert engine.outputs == {"a": alone(prompt(5), 4), "b": alone(prompt(10, 1), 6), "none": []}
    rows = {name: sum(o.num_scheduled_tokens.get(name, 0) for o in engine.runner.steps) for name in ("a", "b", "none")}
    assert rows == {"a": 8, "b": 15, "none": 7}


@pytest.mark.parametrize("way", WAYS)
def test_the_step_after_next_is_not_launched_before_a_step_is_taken_in(way: dict[str, Any]) -> None:
    engine = FakeEngine(**way)
    engine.add("a", prompt(5), max_tokens=6)
    launched = []
    for _ in range(3):
        engine.step()
        launched.append((len(engine.runner.steps), len(engine.outputs.get("a", []))))
    assert launched == ([(1, 0), (2, 1), (3, 2)] if way else [(1, 1), (2, 2), (3, 3)])


@pytest.mark.parametrize("steps", range(9))
@pytest.mark.parametrize("way", WAYS)
def test_abort_at_every_stage_frees_the_pages_once_the_step_under_way_is_over(way: dict[str, Any], steps: int) -> None:
    """Waiting, in mid-prefill, with its first token under way, in decode, preempted."""
    engine = FakeEngine(
        num_blocks=12,
        block_size=4,
        max_model_len=40,
        max_num_batched_tokens=12,
        prefix_caching=True,
        host_slots=8,
        **way,
    )
    engine.add("other", prompt(4), max_tokens=30)
    engine.add("gone", prompt(20, 1), max_tokens=15)
    for _ in range(steps):
        engine.step()
    got = len(engine.outputs.get("gone", []))
    (result,) = engine.abort("gone", "never seen", "gone")
    assert (result.request_id, result.finish_reason, result.token_ids) == ("gone", "abort", [])
    engine.step()
    engine.step()
    held = set(engine.kv_cache.block_ids(engine.scheduler.requests["other"]))
    assert engine.kv_cache.stats["kv_blocks_used"] == len(held)
    engine.run()
    assert len(engine.outputs["gone"]) == got  # nothing came after it
    assert engine.outputs["other"] == alone(prompt(4), 30)
    stats = engine.core.stats()
    assert (stats.kv_blocks_used, stats.generation_tokens) == (0, 30 + got)


@pytest.mark.parametrize("way", WAYS)
def test_pages_of_an_aborted_request_wait_for_the_step_under_way(way: dict[str, Any]) -> None:
    engine = FakeEngine(**way)
    engine.add("a", prompt(9), max_tokens=20)
    engine.add("b", prompt(2, 1), max_tokens=20)
    engine.step()
    used = engine.kv_cache.stats["kv_blocks_used"]
    engine.abort("a")
    assert engine.kv_cache.stats["kv_blocks_used"] == (used if way else used - 3)
    engine.step()
    assert engine.kv_cache.stats["kv_blocks_used"] == used - 3


@pytest.mark.parametrize("way", WAYS)
def test_an_id_that_was_aborted_comes_back_while_its_last_step_is_under_way(way: dict[str, Any]) -> None:
    engine = FakeEngine(**way)
    engine.add("a", prompt(9), max_tokens=20)
    engine.step()
    engine.step()
    engine.abort("a")
    engine.outputs.clear()
    engine.add("a", prompt(7, 5), max_tokens=6)
    engine.run()
    assert engine.outputs["a"] == alone(prompt(7, 5), 6)
    assert engine.kv_cache.stats["kv_blocks_used"] == 0


@pytest.mark.parametrize(
    ("failure", "message", "kind"),
    [
        (MemoryError("secret"), "the engine ran out of memory in the step", "out_of_memory"),
        (ValueError("secret"), "the engine failed in the step", "internal"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_breaks_ends_who_was_in_it_or_behind_it_and_no_others(
    way: dict[str, Any], failure: Exception, message: str, kind: str
) -> None:
    engine = FakeEngine(max_num_seqs=2, prefix_caching=True, **way)
    engine.add("in it", prompt(12), max_tokens=20)
    engine.step()
    engine.runner.fails[2] = failure
    engine.step()  # breaks, or launches it
    engine.add("behind it", prompt(10, 1), max_tokens=20)
    if way:
        engine.step()
    engine.add("later", prompt(12), max_tokens=20)
    engine.run()
    ended = {"in it", "behind it"} if way else {"in it"}
    for name in ended:
        last = engine.results[name]
        assert (last.finish_reason, last.error_kind) == ("error", kind)
        assert last.error == f"{message} that this request was part of"
    assert engine.outputs["later"] == alone(prompt(12), 20)
    if not way:
        assert engine.outputs["behind it"] == alone(prompt(10, 1), 20)
    assert engine.runner.recovered == 1
    assert engine.kv_cache.stats["kv_blocks_used"] == 0
    assert not engine.runner.states.keys() & ended


@pytest.mark.parametrize("way", WAYS)
def test_pages_of_a_prompt_whose_step_broke_are_not_hit(way: dict[str, Any]) -> None:
    engine = FakeEngine(prefix_caching=True, **way)
    engine.runner.fails[1] = MemoryError("injected")
    engine.add("a", prompt(20), max_tokens=2)
    while "a" not in engine.results:
        engine.step()
    engine.add("b", prompt(20), max_tokens=8)
    engine.run()
    assert engine.outputs["b"] == alone(prompt(20), 8)
    assert engine.first_results["b"].num_cached_tokens == 0
    engine.add("c", prompt(20), max_tokens=8)
    engine.run()
    assert engine.first_results["c"].num_cached_tokens == 16


@pytest.mark.parametrize("prefix_caching", [False, True], ids=["no prefix caching", "prefix caching"])
@pytest.mark.parametrize("mode", ["swap", "recompute", "auto"])
@pytest.mark.parametrize("way", WAYS)
def test_64_requests_in_a_pool_for_8_answer_as_each_alone(way: dict[str, Any], mode: Any, prefix_caching: bool) -> None:
    engine = FakeEngine(
        num_blocks=8 * 6,
        block_size=4,
        max_num_seqs=64,
        max_num_batched_tokens=64,
        max_model_len=48,
        preemption_mode=mode,
        prefix_caching=prefix_caching,
        host_slots=40,
        **way,
    )
    for index in range(64):
        engine.add(f"r{index}", prompt(4 + index % 5, index), max_tokens=16)
    engine.run()
    assert engine.outputs == {f"r{index}": alone(prompt(4 + index % 5, index), 16) for index in range(64)}
    stats = engine.core.stats()
    assert stats.preemptions > 0
    if mode == "recompute":
        assert stats.preemptions_by_swap == 0
    else:
        assert stats.preemptions_by_swap > 0 and stats.swapped_out > 0 and stats.swapped_in > 0
    assert stats.kv_blocks_used == 0
    assert (stats.prompt_tokens, stats.generation_tokens) == (sum(4 + i % 5 for i in range(64)), 64 * 16)


@pytest.mark.parametrize(
    ("copy_speed", "swaps"), [(1e9, True), (1.0, False)], ids=["copies are fast", "copies are slow"]
)
def test_swap_or_recompute_is_chosen_by_what_is_estimated_to_be_faster(copy_speed: float, swaps: bool) -> None:
    engine = FakeEngine(num_blocks=12, block_size=4, max_model_len=40, host_slots=20)
    rates = engine.scheduler.rates
    engine.runner.copy_bytes_per_second = copy_speed
    engine.add("old", prompt(8), max_tokens=30)
    engine.add("young", prompt(8, 1), max_tokens=30)

    def measured(_output: SchedulerOutput) -> None:
        rates.prefill_tokens_per_second, rates.copy_bytes_per_second = 1000.0, copy_speed

    engine.run(measured)
    stats = engine.core.stats()
    assert stats.preemptions > 0 and (stats.preemptions_by_swap > 0) == swaps
    assert engine.outputs == {"old": alone(prompt(8), 30), "young": alone(prompt(8, 1), 30)}


def test_where_host_memory_is_full_a_forced_swap_becomes_a_recompute() -> None:
    engine = FakeEngine(num_blocks=12, block_size=4, max_model_len=40, host_slots=1, preemption_mode="swap")
    engine.add("old", prompt(8), max_tokens=30)
    engine.add("young", prompt(8, 1), max_tokens=30)
    engine.run()
    stats = engine.core.stats()
    assert stats.preemptions > 0 and stats.preemptions_by_swap == 0
    assert engine.outputs == {"old": alone(prompt(8), 30), "young": alone(prompt(8, 1), 30)}


@pytest.mark.parametrize("way", WAYS)
def test_pages_come_back_from_disk_and_a_request_waits_for_them_alone(way: dict[str, Any]) -> None:
    engine = FakeEngine(
        num_blocks=10, block_size=4, max_model_len=40, prefix_caching=True, host_slots=4, disk=True, **way
    )
    engine.add("first", prompt(24), max_tokens=2)
    engine.run()
    for index in range(12):
        engine.add(f"filler {index}", prompt(24, index + 1), max_tokens=2)
        engine.run()
    stats = engine.core.stats()
    assert stats.stored > 0 and stats.disk_blocks > 0
    engine.add("again", prompt(24), max_tokens=8)
    engine.add("meanwhile", prompt(3, 50), max_tokens=8)
    engine.run()
    assert engine.outputs["again"] == alone(prompt(24), 8)
    assert engine.outputs["meanwhile"] == alone(prompt(3, 50), 8)
    stats = engine.core.stats()
    assert stats.loaded > 0 and stats.prefix_hits_disk > 0


def test_at_an_orderly_end_cached_pages_go_to_disk() -> None:
    engine = FakeEngine(prefix_caching=True, host_slots=8, disk=True, overlap=True, compute="late")
    engine.add("done", prompt(16), max_tokens=2)
    engine.run()
    engine.add("open", prompt(20, 1), max_tokens=30)
    engine.step()
    engine.step()
    engine.core.close(10.0)
    assert engine.runner.closed and len(engine.runner.disk) == 4 + 5
    assert engine.kv_cache.stats["kv_blocks_used"] == 0


def test_speeds_are_measured_for_prefill_and_decode_apart() -> None:
    engine = FakeEngine(max_num_batched_tokens=16)
    launch = engine.runner.launch

    def slow(output: SchedulerOutput, *given: Any) -> Any:
        engine.clock.now += output.total_tokens / 100  # seconds: 100 tokens in one, whatever they are
        return launch(output, *given)

    engine.runner.launch = slow  # type: ignore[method-assign]
    assert engine.core.stats().prefill_tokens_per_second == 0
    engine.add("a", prompt(32), max_tokens=10)
    engine.run()
    stats = engine.core.stats()
    assert stats.prefill_tokens_per_second == pytest.approx(100) == stats.decode_tokens_per_second
    assert (stats.step_tokens, stats.step_seconds) == (1, pytest.approx(0.01))


def test_the_last_hundred_steps_stand_in_a_file_whatever_becomes_of_the_process(tmp_path: Path) -> None:
    path = steps_path(str(tmp_path / "engine.sock"))
    assert read_steps(path) == []
    engine = FakeEngine(overlap=True, compute="late", max_num_batched_tokens=8)
    engine.core.ring = StepRing(path)
    assert read_steps(path) == []
    engine.runner.fails[110] = MemoryError("injected")
    for index in range(60):
        engine.add(f"r{index}", prompt(20, index), max_tokens=8)
    while engine.scheduler.num_steps < 112:
        engine.step()
    steps = read_steps(path)
    assert path.stat().st_size == NUM_RECORDS * RECORD_BYTES and len(steps) == NUM_RECORDS
    numbers = [int(step.split()[0]) for step in steps]
    assert numbers == list(range(numbers[0], numbers[0] + NUM_RECORDS))
    by_number = dict(zip(numbers, steps, strict=True))
    assert "failed: MemoryError" in by_number[110] and "failed: MemoryError" in by_number[111]
    assert by_number[109].split(": ")[1].startswith("done in") and "8 tokens" in by_number[109]
    assert by_number[112].endswith("scheduled")
    assert "64 pages" not in by_number[109] and "waiting" in by_number[109]


def test_a_record_that_is_cut_short_or_overlong_does_no_harm(tmp_path: Path) -> None:
    ring = StepRing(tmp_path / "steps")
    ring.write(7, "é" * 300)
    ring.write(8, "fine")
    with (tmp_path / "steps").open("r+b") as file:
        file.write(b"\xff\xff garbage")
    records = read_steps(tmp_path / "steps")
    assert records[1] == "8 fine" and records[0].startswith("7 éé") and len(records) == 2
    ring.close()
