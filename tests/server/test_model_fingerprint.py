"""What names a model's pages on disk: everything that decides their content, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from octavo_server.errors import ModelError
from octavo_server.worker.fingerprint import cpu_model, device_facts, fingerprint

FACTS = (torch.bfloat16, 16, "cpu")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"num_hidden_layers": 2}', encoding="utf-8")
    write_weights(directory, weights())
    return directory


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layer.{i}": torch.randn(64, 96, generator=generator) for i in range(3)}
    return {**tensors, "tiny": torch.ones(1), "none": torch.ones(0)}


def write_weights(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def test_a_copy_of_the_model_has_the_same_name(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert fingerprint(copy, *FACTS) == fingerprint(model, *FACTS)
    assert len(bytes.fromhex(fingerprint(model))) == 16


@pytest.mark.parametrize("facts", [(torch.float16, 16, "cpu"), (torch.bfloat16, 32, "cpu"), (torch.bfloat16, 16)])
def test_other_facts_make_another_name(model: Path, facts: tuple[object, ...]) -> None:
    assert fingerprint(model, *facts) != fingerprint(model, *FACTS)


def test_another_cpu_makes_another_name(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, cpu = device_facts(torch.device("cpu")), torch.device("cpu")
    assert device_facts(cpu) == here
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    other_instructions = device_facts(cpu)
    monkeypatch.undo()
    monkeypatch.setattr("octavo_server.worker.fingerprint.cpu_model", lambda: "another")
    other_model = device_facts(cpu)
    names = {fingerprint(model, *facts) for facts in (here, other_instructions, other_model)}
    assert len(names) == 3
    core = "processor\t: {}\nmodel name\t: {}\ncpu MHz\t: {}\n"
    file = tmp_path / "cpuinfo"
    file.write_text(core.format(0, "Big", 2000.5) + core.format(1, "Big", 2100.1) + core.format(2, "Little", 900))
    assert cpu_model(file) == "model name : Big; model name : Little", "not how fast they run just now"
    assert cpu_model(tmp_path / "none") == cpu_model(tmp_path / "no other")


def test_another_gpu_makes_another_name(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for name, capability in (("H100", (9, 0)), ("H200", (9, 0)), ("H100", (9, 1))):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device, name=name: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, capability=capability: capability)
        names.add(fingerprint(model, *device_facts(torch.device("cuda"))))
    assert len(names) == 3


def test_another_config_makes_another_name(model: Path) -> None:
    before = fingerprint(model)
    (model / "config.json").write_text('{"num_hidden_layers": 2, "rope_theta": 1e6}', encoding="utf-8")
    assert fingerprint(model) != before


@pytest.mark.parametrize("name", ["layer.0", "layer.2", "tiny"])
def test_a_fine_tune_of_one_tensor_has_another_name(model: Path, name: str) -> None:
    """Same names, shapes, sizes and header: only the numbers differ."""
    before, tensors, size = fingerprint(model), weights(), (model / "model.safetensors").stat().st_size
    tensors[name] += 0.01
    write_weights(model, tensors)
    assert (model / "model.safetensors").stat().st_size == size
    assert fingerprint(model) != before


def test_shards_are_told_apart(model: Path) -> None:
    before = fingerprint(model)
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(weights(), "model-00001-of-00001.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert fingerprint(model) != before


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, (5).to_bytes(8, "little") + b"hello", b"\2\0\0\0\0\0\0\0[]"])
def test_broken_weights_are_refused(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        fingerprint(model)
