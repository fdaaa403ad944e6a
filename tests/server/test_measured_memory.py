"""What is measured at the start, and what nothing may exceed afterwards."""

import gc
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_common.memory import MemoryBill, MemoryLimits, memory_bill
from octavo_common.model_config import parse_model_config, read_model_config
from octavo_server.config import EngineConfig, ServerConfig
from octavo_server.engine_start import start_engine
from octavo_server.errors import ConfigError
from octavo_server.ipc import SamplingParams
from octavo_server.worker import memory
from octavo_server.worker.input_batch import ScheduledRow
from octavo_server.worker.memory import measure, weights_bytes, worst_steps
from octavo_server.worker.model_runner import ModelRunner
from octavo_server.worker.shallow import StepBounds
from tiny_models import config_json, random_decoder, write_checkpoint

CPU = torch.device("cpu")
WIDE = config_json("LlamaForCausalLM", vocab_size=4096, hidden_size=96)
# 512 rows of logits are 64 MiB: more than the allocator of the C library ever keeps for itself.
WIDEST = config_json("LlamaForCausalLM", vocab_size=32_768, num_hidden_layers=1, max_position_embeddings=64)
LOGITS = 512 * 32_768 * 4


def runner(config: dict[str, Any]) -> ModelRunner:
    made = ModelRunner(parse_model_config(config), CPU, torch.float32, block_size=16, max_num_seqs=8)
    made.decoder = random_decoder(config)
    return made


def plan(config: dict[str, Any]) -> MemoryBill:
    return memory_bill(parse_model_config(config), MemoryLimits(device="cpu", dtype="float32"))


def run_the_largest_step_greedily(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes, but for the sampling, which takes the longest."""
    monkeypatch.setattr(memory, "_CPU_OPERATIONS", 1e12)
    monkeypatch.setattr(memory, "FULL_SAMPLING", SamplingParams(temperature=0.0))


def tokens(rows: list[ScheduledRow]) -> int:
    return sum(row.end - row.start for row in rows)


def test_weights_are_counted_once_and_all_of_them() -> None:
    model = parse_model_config(WIDE)
    rope = 2 * 512 * model.head_dim // 2 * 4  # cosines and sines of each position, in float32
    assert weights_bytes(random_decoder(WIDE)) == 4 * model.num_parameters + rope


def test_the_worst_steps_are_as_large_as_a_step_may_be_at_the_longest_context() -> None:
    prefill, mixed = worst_steps(runner(WIDE), StepBounds(max_num_seqs=5, max_num_batched_tokens=70, max_model_len=40))
    assert tokens(prefill) == tokens(mixed) == 70
    assert [row.end - row.start for row in prefill] == [40, 30]
    assert [row.end - row.start for row in mixed] == [1] * 5 + [40, 25]
    assert all(row.end == 40 for row in (*prefill, *mixed))
    assert all(row.wants_prompt_logprobs for row in prefill)
    few = worst_steps(runner(WIDE), StepBounds(max_num_seqs=5, max_num_batched_tokens=3, max_model_len=40))
    assert [tokens(rows) for rows in few] == [3, 3]


@pytest.mark.parametrize("max_num_seqs", [1, 2, 5, 40])
def test_in_the_worst_steps_no_more_rows_sample_than_there_can_be_requests(max_num_seqs: int) -> None:
    """The sampling kernels have no room for more: with few requests of short contexts others were written over."""
    for rows in worst_steps(runner(WIDE), StepBounds(max_num_seqs, max_num_batched_tokens=400, max_model_len=40)):
        assert tokens(rows) == 400
        assert sum(row.samples for row in rows) == min(max_num_seqs, len(rows))


def test_the_measured_workspace_covers_what_a_step_holds_for_sure_and_leaves_no_request_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_the_largest_step_greedily(monkeypatch)
    made, bounds = runner(WIDEST), StepBounds(max_num_seqs=512, max_num_batched_tokens=512, max_model_len=64)
    found = measure(made, bounds, plan(WIDEST))
    assert found.how == "measured"
    assert found.weights_bytes == weights_bytes(made.decoder)
    # On the CPU it is the growth of what is resident: a few pages were so before.
    assert 0.99 * LOGITS < found.workspace_bytes < 20 * LOGITS
    assert made.batch.states == {} and made.kv_cache == []


def test_what_died_before_does_not_hide_what_a_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cycle, which only the collector frees, and pieces of malloc's heap below one that is alive."""
    run_the_largest_step_greedily(monkeypatch)
    made, bounds = runner(WIDEST), StepBounds(max_num_seqs=512, max_num_batched_tokens=512, max_model_len=64)
    monkeypatch.setattr(made, "rehearse", lambda rows: (gc.collect(), type(made).rehearse(made, rows)))
    gc.disable()
    try:
        dead: list[object] = [torch.ones(LOGITS // 4)]
        dead.append(dead)
        pieces = [b"x" * 2**16 for _ in range(LOGITS // 2**16)]
        del dead, pieces[:-1]
        found = measure(made, bounds, plan(WIDEST))
    finally:
        gc.enable()
    assert found.workspace_bytes > 0.99 * LOGITS


def test_a_step_too_long_for_a_cpu_is_made_smaller_and_the_bill_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CPU_OPERATIONS", 1e7)
    bounds = StepBounds(max_num_seqs=64, max_num_batched_tokens=512, max_model_len=128)
    found = measure(runner(WIDE), bounds, plan(WIDE))
    assert re.fullmatch(r"estimate; a step of \d+ tokens took .*", found.how)
    assert found.workspace_bytes >= plan(WIDE).workspace_bytes


def test_prompt_logprobs_are_made_in_chunks_that_do_not_grow_with_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    made = runner(WIDE)
    made.allocate_cache(1)
    seen: list[int] = []
    assert made.decoder is not None
    logits = made.decoder.logits
    monkeypatch.setattr(made.decoder, "logits", lambda rows: seen.append(len(rows)) or logits(rows))
    monkeypatch.setattr("octavo_server.worker.logprobs.CHUNK_BYTES", 10 * 8 * 4096)
    monkeypatch.setattr("octavo_server.worker.next_tokens._SAMPLED_LOGITS_BYTES", 4 * 4 * 4096)
    for rows in worst_steps(made, StepBounds(max_num_seqs=11, max_num_batched_tokens=64, max_model_len=64)):
        made.rehearse(rows)
    assert max(seen) == 10 and sum(seen) >= 63 + 11
    assert seen[-3:] == [4, 4, 3]  # 11 that decode; the one that reads its prompt beside them is one too many


def test_the_bill_is_printed_as_a_table_with_what_was_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_the_largest_step_greedily(monkeypatch)
    write_checkpoint(tmp_path, WIDEST)
    caplog.set_level(logging.INFO)
    config = EngineConfig(model=tmp_path, device="cpu", swap_space=0.01, max_num_batched_tokens=512, max_num_seqs=512)
    core = start_engine(config, lambda _phase: None)
    (table,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("memory:\n")]
    rows = dict(re.split(r" {2,}", line.strip()) for line in table.splitlines()[1:])
    amount, unit = rows["workspace (measured)"].split()
    assert float(amount) * {"MiB": 2**20, "GiB": 2**30}[unit] > 0.99 * LOGITS
    assert rows["pages"] == f"{core.scheduler.kv_cache.pool.num_blocks:,} of 16 tokens"
    assert rows["swap space on the host"] == "10.2 MiB"
    assert int(rows["pages in swap space"].replace(",", "")) == int(0.01 * 2**30) // core.runner.bytes_per_page
    core.close(1.0)


def test_with_a_disk_the_bill_names_as_many_pages_as_host_memory_comes_to_have(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, WIDEST)
    options: dict[str, Any] = {"device": "cpu", "swap_space": 0.01, "disk_cache_dir": tmp_path / "disk"}
    core = start_engine(EngineConfig(model=tmp_path, **options), lambda _phase: None)
    while core.idle():
        pass
    core.idle()  # hears of the last of it
    model, dtype_limits = read_model_config(tmp_path), MemoryLimits("cpu", "float32", swap_space=0.01, disk_cache=True)
    assert core.stats().host_blocks_total == memory_bill(model, dtype_limits).num_host_blocks > 0
    core.close(1.0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"preemption_mode": "swap", "device": "cpu"}, "preemption_mode\n  Pages are swapped .* --swap-space above 0"),
        ({"preemption_mode": "swap", "swap_space": 0}, "preemption_mode\n  Pages are swapped .* --swap-space above 0"),
        ({"disk_cache_size": 16.0}, "disk_cache_size\n  There is no disk cache without --disk-cache-dir"),
        ({"num_gpu_blocks_override": 9, "kv_cache_memory_bytes": 2**20}, "--num-gpu-blocks-override says the same"),
        ({"disk_cache_dir": "/d", "swap_space": 1, "enable_prefix_caching": False}, "--no-enable-prefix-caching"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ServerConfig(model=Path("/nowhere"), **given)


def test_flags_that_go_together_are_taken() -> None:
    whole = {"preemption_mode": "swap", "swap_space": 1.0, "disk_cache_dir": "/d", "disk_cache_size": 3.0}
    for given in (whole, {"preemption_mode": "swap"}, {"num_gpu_blocks_override": 9}, {"kv_cache_memory_bytes": 9}):
        config = ServerConfig.model_validate({"model": Path("/nowhere"), **given})
        assert EngineConfig.model_validate_json(config.engine().model_dump_json()) == config.engine()


def test_a_disk_tier_without_host_memory_is_refused_at_once() -> None:
    for given in ({"swap_space": 0.0}, {"device": "cpu"}):
        with pytest.raises(
            ValueError, match="disk_cache_dir\n  Pages come to the disk from host memory: give --swap-s"
        ):
            ServerConfig(model=Path("/nowhere"), disk_cache_dir=Path("/nowhere"), **given)  # type: ignore[arg-type]
    ServerConfig(model=Path("/nowhere"), disk_cache_dir=Path("/nowhere"), device="cpu", swap_space=0.5)
    ServerConfig(model=Path("/nowhere"), disk_cache_dir=Path("/nowhere"))  # a GPU may be found


def test_a_disk_tier_where_no_gpu_brings_host_memory_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_checkpoint(tmp_path, config_json("LlamaForCausalLM"))
    with pytest.raises(ConfigError, match="--disk-cache-dir: pages come to the disk from host memory"):
        start_engine(EngineConfig(model=tmp_path, disk_cache_dir=tmp_path / "disk"), lambda _phase: None)
