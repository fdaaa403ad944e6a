"""The steps that find the kernels to compile, and the shallow model they are run on; what they find: tests/kernels."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from octavo_common.model_config import parse_model_config
from octavo_server.config import EngineConfig
from octavo_server.engine_start import start_engine
from octavo_server.errors import ConfigError
from octavo_server.worker.input_batch import ScheduledRow
from octavo_server.worker.kernel_variants import DryRecorder, ZeroedMemory, run_variants
from octavo_server.worker.model_runner import ModelRunner
from octavo_server.worker.shallow import StepBounds, shallow, shallow_runner
from tiny_models import config_json, random_decoder, write_checkpoint

CPU = torch.device("cpu")
LAYERS = ["full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
CONFIG = config_json(
    "Qwen3ForCausalLM",
    num_hidden_layers=len(LAYERS),
    layer_types=LAYERS,
    use_sliding_window=True,
    sliding_window=20,
    max_position_embeddings=128,
)


@pytest.fixture
def runner() -> ModelRunner:
    made = ModelRunner(parse_model_config(CONFIG), CPU, torch.float32, block_size=16, max_num_seqs=9)
    made.decoder = random_decoder(CONFIG)
    return made


def test_a_shallow_model_has_layers_of_every_window_and_the_same_weights() -> None:
    decoder = random_decoder(CONFIG)
    for count, kept in ((1, [0, 1]), (2, [0, 1, 2, 3]), (7, [0, 1, 2, 3, 4])):
        found = shallow(decoder, count)
        assert all(layer is decoder.layers[index] for layer, index in zip(found.layers, kept, strict=True))
        assert found.config.sliding_window == tuple(decoder.config.sliding_window[index] for index in kept)
        assert found.config.num_layers == len(kept)
        assert found.embedding is decoder.embedding
    assert len(decoder.layers) == len(LAYERS)


def test_steps_stay_within_the_bounds_reach_them_and_mix_decode_with_chunks(runner: ModelRunner) -> None:
    bounds, seen = StepBounds(9, 70, 100), list[list[ScheduledRow]]()
    dry = shallow_runner(runner, bounds, 1, DryRecorder())
    dry.rehearse = seen.append  # type: ignore[method-assign]
    run_variants(dry, bounds)
    sizes = [[row.end - row.start for row in rows] for rows in seen]
    assert max(map(sum, sizes)) == 70 and all(size > 0 for rows in sizes for size in rows)
    assert all(0 <= row.start < row.end <= 100 for rows in seen for row in rows)
    assert {1, 2, 3, 4, 5, 8, 9} <= {len(rows) for rows in sizes if set(rows) == {1}}
    assert any(1 in rows and max(rows) > 1 for rows in sizes)
    assert any(row.wants_prompt_logprobs for rows in seen for row in rows)


def test_the_runner_that_is_compiled_for_is_left_as_it_is(runner: ModelRunner) -> None:
    bounds = StepBounds(9, 20, 100)
    run_variants(shallow_runner(runner, bounds, 1, DryRecorder()), bounds)
    assert runner.kv_cache == [] and runner.graphs is None and runner.batch.states == {}


@pytest.fixture
def _poisoned_memory() -> Iterator[None]:
    """Whatever is allocated holds NaN and the greatest integers."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_poisoned_memory")
def test_what_is_allocated_while_kernels_are_left_out_is_zero() -> None:
    like = torch.ones(4, 4)
    assert torch.empty(3).isnan().all()
    with torch.inference_mode(), ZeroedMemory():
        made = [
            torch.empty(9, dtype=torch.int64),
            torch.empty_like(like),
            like.new_empty(2, 3),
            torch.empty_strided((2, 2), (2, 1)),
            like.new_empty(5, dtype=torch.int32),
        ]
    assert all(not tensor.any() for tensor in made)


def test_the_place_for_compiled_kernels_is_made_and_told_to_triton(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    write_checkpoint(tmp_path, config_json("LlamaForCausalLM"))
    place = tmp_path / "a" / "b"
    core = start_engine(EngineConfig(model=tmp_path, device="cpu", compile_cache_dir=place), lambda _phase: None)
    core.close(1.0)
    assert os.environ["TRITON_CACHE_DIR"] == str(place) and list(place.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = EngineConfig(model=tmp_path, device="cpu", compile_cache_dir=tmp_path / "file" / "cache")
    with pytest.raises(ConfigError, match=r"--compile-cache-dir .*file/cache: Not a directory; give a directory"):
        start_engine(config, lambda _phase: None)
