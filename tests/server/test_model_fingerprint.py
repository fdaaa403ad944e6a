"""What names a model's pages on disk: everything that decides their content, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from octavo_server.errors import ModelError
from octavo_server.worker.fingerprint import fingerprint

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
