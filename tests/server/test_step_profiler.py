"""Steps recorded while an engine serves."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from octavo_server.config import EngineConfig
from octavo_server.engine_start import start_engine
from octavo_server.errors import ConfigError
from octavo_server.ipc import SamplingParams
from octavo_server.worker import step_profiler
from octavo_server.worker.step_profiler import StepProfiler
from real_engine import add, answers, start
from tiny_models import config_json, write_checkpoint

CONFIG = config_json("LlamaForCausalLM", num_hidden_layers=1)


def names(path: Path) -> list[str]:
    """Of the steps in a record."""
    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    return [event["name"] for event in events if event.get("name", "").startswith("step ") and event.get("ph") == "X"]


def test_steps_are_recorded_when_the_file_appears_and_answers_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_profiler, "RECORDED_STEPS", 3)
    write_checkpoint(tmp_path / "model", CONFIG)
    requests = {
        name: ([5, 6, 7, 8], SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=0))
        for name in ("a", "b")
    }
    plain = answers(start(tmp_path / "model"), requests)
    records = tmp_path / "records" / "here"
    core = start(tmp_path / "model", profile_dir=records)
    assert answers(core, requests) == plain and list(records.iterdir()) == []
    (records / "start").touch()
    assert answers(core, requests) == plain
    (record,) = records.iterdir()  # and the file `start` is gone
    first = int(record.name.split("-")[1])
    assert record.name == f"steps-{first}-{first + 2}.json.gz"
    assert names(record) == [
        f"step {first}: 0 decodes, 2 prefills, 8 tokens",
        f"step {first + 1}: 2 decodes, 0 prefills, 2 tokens",
        f"step {first + 2}: 2 decodes, 0 prefills, 2 tokens",
    ]
    (records / "start").touch()
    add(core, "c", *requests["a"])
    core.step()
    core.close(1.0)  # an engine that ends writes what it has
    assert len(list(records.iterdir())) == 2


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--profile-dir .*file/records: Not a directory"):
        StepProfiler(tmp_path / "file" / "records", torch.device("cpu"))


def test_a_start_is_refused_for_it_before_the_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    write_checkpoint(tmp_path / "model", CONFIG)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")  # reading it would be another error
    with pytest.raises(ConfigError, match="--profile-dir"):
        start(tmp_path / "model", profile_dir=tmp_path / "file")


def test_noise_is_not_counted_as_weights_that_were_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", CONFIG)
    noted: dict[str, float] = {}
    config = EngineConfig(model=tmp_path / "model", load_format="random", device="cpu", num_gpu_blocks_override=64)
    start_engine(config, lambda _phase: None, noted.__setitem__).close(0.0)
    assert noted["weights_bytes"] == 0.0
