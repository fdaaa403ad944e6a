"""Reading checkpoints: which files, which tensors, what is refused and with which remedy."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo_common.model_config import read_model_config
from octavo_server.errors import ModelError
from octavo_server.model_files import check_model_directory
from octavo_server.worker.models.decoder import Decoder, load_decoder
from paged_loop import PagedLoop, Sequence
from tiny_models import config_json, read_checkpoint, reference_logits, write_checkpoint

CPU = torch.device("cpu")
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return load_decoder(directory, read_model_config(directory), dtype, CPU)


def logits(decoder: Decoder) -> torch.Tensor:
    [found] = PagedLoop(decoder, num_blocks=4, block_size=16).step([(Sequence(), PROMPT)])
    return found


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, config_json("LlamaForCausalLM", num_hidden_layers=2))
    return tmp_path


def edit(directory: Path, **changes: torch.Tensor | None) -> None:
    """Replaces tensors (their names with __ for a dot), or removes them."""
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, directory / "model.safetensors")


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, config_json("Qwen3ForCausalLM", head_dim=16), max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.allclose(logits(load(tmp_path)), reference_logits(model, PROMPT), atol=1e-4, rtol=0)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_cast_from_what_the_file_has(checkpoint: Path, stored: torch.dtype) -> None:
    path = checkpoint / "model.safetensors"
    tensors = {name: tensor.to(stored) for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    decoder = load(checkpoint)
    gate_up = torch.cat([tensors[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up")])
    assert torch.equal(decoder.layers[1].gate_up.weight.to_dense(), gate_up.float())  # it is packed
    assert torch.equal(decoder.embedding, tensors["model.embed_tokens.weight"].float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_to_float32_as_that_of_transformers(checkpoint: Path, dtype: torch.dtype) -> None:
    model = read_checkpoint(checkpoint)
    exact = reference_logits(model, PROMPT)
    found = logits(load(checkpoint, dtype))
    theirs = reference_logits(model.to(dtype), PROMPT).float()
    assert found.dtype == torch.float32
    assert (found - exact).abs().mean() <= 1.5 * (theirs - exact).abs().mean()


def test_a_tied_head_may_be_absent_present_or_different(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, config_json("LlamaForCausalLM", tie_word_embeddings=True))
    expected = reference_logits(model, PROMPT)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    absent = logits(load(tmp_path))
    assert torch.allclose(absent, expected, atol=1e-4, rtol=0)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    edit(tmp_path, lm_head__weight=embedding.clone())
    assert torch.equal(logits(load(tmp_path)), absent)
    # transformers unties a head that differs; so do we.
    edit(tmp_path, lm_head__weight=2 * embedding)
    assert torch.equal(logits(load(tmp_path)), 2 * absent)


def test_tables_that_old_checkpoints_carry_are_passed_over(checkpoint: Path) -> None:
    edit(checkpoint, model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(4))
    load(checkpoint)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model__layers__1__mlp__up_proj__weight": None, "model__norm__weight": None},
            ["2 missing", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"],
        ),
        ({"lm_head__weight": None}, ["1 missing", "lm_head.weight"]),
        (
            {"model__layers__0__self_attn__q_proj__bias": torch.zeros(48)},
            ["1 unexpected", "model.layers.0.self_attn.q_proj.bias"],
        ),
        (
            {"model__layers__0__self_attn__k_proj__weight": torch.zeros(48, 48)},
            ["model.layers.0.self_attn.k_proj.weight", "[48, 48]", "[16, 48]"],
        ),
        (
            {"model__norm__weight": torch.zeros(48, dtype=torch.int8)},
            ["model.norm.weight", "I8", "BF16"],
        ),
    ],
    ids=["missing", "no head", "unexpected", "shape", "type"],
)
def test_tensors_that_do_not_fit_are_named(checkpoint: Path, changes: dict[str, Any], words: list[str]) -> None:
    edit(checkpoint, **changes)
    with pytest.raises(ModelError) as caught:
        load(checkpoint)
    for word in words:
        assert word in str(caught.value)


def test_a_pickle_is_refused_and_never_opened(checkpoint: Path) -> None:
    # A named pipe in the pickle's place: opening it would block for good.
    (checkpoint / "model.safetensors").unlink()
    os.mkfifo(checkpoint / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*Convert with transformers"):
        load(checkpoint)


def test_a_directory_without_weights_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        load(checkpoint)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, config_json("LlamaForCausalLM"), max_shard_size="40KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=gone.name):
        load(tmp_path)


@pytest.mark.parametrize("name", ["../weights.safetensors", "/etc/passwd", "model.bin", 7, ["a.safetensors"]])
def test_an_index_that_points_elsewhere_is_refused(checkpoint: Path, name: Any) -> None:
    (checkpoint / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": name}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        load(checkpoint)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"weight_map": {}}', '{"weight_map": 3}'])
def test_a_broken_index_is_refused(checkpoint: Path, content: str) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        load(checkpoint)


@pytest.mark.parametrize("keep", [0, 4, 5000])
def test_a_truncated_file_is_refused(checkpoint: Path, keep: int) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors.*download it again"):
        load(checkpoint)


def test_a_complete_directory_passes_and_each_missing_part_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text("{}", encoding="utf-8")
    check_model_directory(checkpoint)
    (checkpoint / "tokenizer.json").rename(checkpoint / "tokenizer.model")
    with pytest.raises(ModelError, match=r"only tokenizer\.model.*AutoTokenizer"):
        check_model_directory(checkpoint)
    (checkpoint / "tokenizer.model").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        check_model_directory(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        check_model_directory(checkpoint)
    with pytest.raises(ModelError, match="no model directory"):
        check_model_directory(checkpoint / "nowhere")
