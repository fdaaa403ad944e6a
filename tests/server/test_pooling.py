"""Vectors of a prompt's hidden states: as transformers' to the last bit that matters, and the same in any company."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from octavo_common.json_fields import ModelConfigError
from octavo_common.memory import MemoryLimits, memory_bill
from octavo_common.model_config import ARCHITECTURES, BACKBONES, parse_model_config, read_model_config
from octavo_server.engine.core import EngineCore
from octavo_server.errors import ModelError
from octavo_server.ipc import AddRequest, RequestOutput, SamplingParams
from octavo_server.worker.memory import weights_bytes
from octavo_server.worker.pooling import NOT_FINITE
from octavo_server.worker.weights import load_weights
from real_engine import add, answers, finish, start
from tiny_models import config_json, reference_pooled, write_backbone, write_checkpoint

POOLINGS: Final = ("mean", "last", "cls")
PROMPT_ONLY: Final = SamplingParams(max_tokens=0)
OVERRIDES: Final[dict[str, dict[str, Any]]] = {
    "LlamaForCausalLM": {"attention_bias": True},
    "Qwen2ForCausalLM": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    "Qwen3ForCausalLM": {"head_dim": 24, "tie_word_embeddings": True},
    "MistralForCausalLM": {"sliding_window": None},
}


def tokens(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 131, count).tolist()


PROMPTS: Final = {f"{length} tokens": tokens(length, seed=length) for length in (1, 7, 8, 17, 64, 150)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pooling")
    write_checkpoint(directory, config_json("LlamaForCausalLM"))
    return directory


def pooled(core: EngineCore, asked: dict[str, tuple[list[int], str]]) -> dict[str, RequestOutput]:
    """Prompts that come together; each ends with a vector and without a token."""
    for name, (prompt, pooling) in asked.items():
        add(core, name, prompt, PROMPT_ONLY, pooling=pooling)
    found = {name: last for name, (_, last) in finish(core).items()}
    assert {(last.finish_reason, len(last.token_ids), last.error) for last in found.values()} == {("stop", 0, None)}
    return found


def vector(output: RequestOutput) -> np.ndarray:
    return np.frombuffer(output.embedding, dtype="<f4")


ALL: Final = {f"{name}, {how}": (prompt, how) for name, prompt in PROMPTS.items() for how in POOLINGS}


@pytest.fixture(scope="module")
def alone(model: Path) -> dict[str, bytes]:
    """Each vector from an engine that has nothing else to do, in one chunk, nothing being cached."""
    core = start(model, enable_prefix_caching=False, max_num_batched_tokens=512)
    return {name: pooled(core, {name: asked})[name].embedding for name, asked in ALL.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backbone", [False, True], ids=["with a head", "bare"])
def test_vectors_are_those_of_transformers(architecture: str, backbone: bool, tmp_path: Path) -> None:
    config = config_json(architecture, **OVERRIDES[architecture])
    truth = write_backbone(tmp_path, config, seed=3) if backbone else write_checkpoint(tmp_path, config, seed=3).model
    found = pooled(start(tmp_path, max_num_batched_tokens=16), ALL)
    for name, (prompt, pooling) in ALL.items():
        expected = reference_pooled(truth, prompt, pooling).numpy()
        assert np.abs(vector(found[name]) - expected).max() <= 1e-5, name


@pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlapping"])
@pytest.mark.parametrize("budget", [11, 64])
def test_neither_chunks_nor_company_show(overlap: bool, budget: int, model: Path, alone: dict[str, bytes]) -> None:
    core = start(model, max_num_batched_tokens=budget, async_scheduling=overlap, enable_prefix_caching=False)
    talking = SamplingParams(max_tokens=40, ignore_eos=True, logprobs=0, prompt_logprobs=1)
    for index in range(6):
        add(
            core,
            f"talk {index}",
            tokens(9 + index, seed=index),
            talking if index % 2 else SamplingParams(max_tokens=9, logprobs=0),
        )
    found = pooled_beside(core, ALL)
    assert {name: found[name].embedding for name in ALL} == alone


def pooled_beside(core: EngineCore, asked: dict[str, tuple[list[int], str]]) -> dict[str, RequestOutput]:
    for name, (prompt, pooling) in asked.items():
        add(core, name, prompt, PROMPT_ONLY, pooling=pooling)
    return {name: last for name, (_, last) in finish(core).items()}


def test_answers_do_not_change_beside_vectors(model: Path) -> None:
    """Though a step with vectors computes all of its tokens' last states, and one without those that are sampled."""
    asked = {
        f"talk {index}": (tokens(9 + index, seed=index), SamplingParams(seed=index, max_tokens=30, logprobs=3))
        for index in range(6)
    }
    alone = answers(start(model), asked)
    core = start(model, max_num_batched_tokens=32)
    for name, (prompt, pooling) in ALL.items():
        add(core, name, prompt, PROMPT_ONLY, pooling=pooling)
    beside = answers(core, asked)
    assert {name: beside[name] for name in asked} == alone


def test_only_the_last_token_needs_no_more_than_the_end(model: Path, alone: dict[str, bytes]) -> None:
    core = start(model)
    assert pooled(core, ALL).keys() == alone.keys()
    again = pooled(core, ALL)
    assert {name: output.embedding for name, output in again.items()} == alone
    cached = {name: output.num_cached_tokens for name, output in again.items()}
    assert cached["150 tokens, last"] == 144
    assert cached["64 tokens, last"] == 56  # one token at least is computed
    assert {count for name, count in cached.items() if not name.endswith("last")} == {0}


def test_a_vector_leaves_pages_for_answers(model: Path) -> None:
    core = start(model)
    pooled(core, {"first": (PROMPTS["64 tokens"], "mean")})
    add(core, "second", [*PROMPTS["64 tokens"], 5], SamplingParams(max_tokens=1, logprobs=0))
    [(_, last)] = finish(core).values()
    assert last.num_cached_tokens == 64


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_preemption_does_not_show(mode: str, pooling: str, model: Path, alone: dict[str, bytes]) -> None:
    """Answers grow until the prompt behind them, which just fitted, gives way in the midst of its chunks."""
    core = start(model, num_gpu_blocks_override=25, max_num_batched_tokens=8, preemption_mode=mode, swap_space=0.01)
    for index in range(3):
        add(core, f"talk {index}", tokens(5, seed=index), SamplingParams(max_tokens=60, ignore_eos=True, logprobs=0))
    name = f"150 tokens, {pooling}"
    found = pooled_beside(core, {name: ALL[name]})[name]
    assert found.embedding == alone[name]
    stats = core.stats()
    assert stats.preemptions > 0
    # A mean and the first token's state are of one pass through the prompt, and begin again.
    assert (stats.preemptions_by_swap > 0) == (mode == "swap" and pooling == "last")


def test_a_prompt_may_fill_the_context(model: Path) -> None:
    core = start(model, max_model_len=64, num_gpu_blocks_override=8)
    assert len(vector(pooled(core, {"full": (tokens(64, seed=0), "last")})["full"])) == 48
    [refusal] = core.add(AddRequest(1, "longer", tokens(65, seed=0), PROMPT_ONLY, 0.0, pooling="last"))
    assert refusal.error_kind == "invalid"


def test_numbers_that_are_none_end_their_own_request_alone(model: Path, alone: dict[str, bytes]) -> None:
    core = start(model, enable_prefix_caching=False)
    core.runner.decoder.embedding[2] = torch.nan  # type: ignore[union-attr]  # no other prompt has this token
    asked = {f"bad {how}": ([2, 5, 2], how) for how in POOLINGS} | ALL
    found = pooled_beside(core, asked)
    assert {found[f"bad {how}"].error for how in POOLINGS} == {NOT_FINITE}
    assert {name: found[name].embedding for name in ALL} == alone


def test_what_was_asked_of_sampling_makes_no_vector_longer(model: Path) -> None:
    """Whoever sends the message, a request that pools samples nothing."""
    core = start(model, async_scheduling=True)
    add(core, "asks for both", tokens(20, seed=0), SamplingParams(max_tokens=5), pooling="last")
    [(answer, last)] = finish(core).values()
    assert (answer, last.token_ids, last.finish_reason) == ([], [], "stop")


def test_weights_may_leave_out_the_name_of_the_backbone(model: Path, tmp_path: Path) -> None:
    """As those of models that generate, but were saved as embedding models."""
    config = config_json("Qwen3ForCausalLM", tie_word_embeddings=True)
    truth = write_backbone(tmp_path, config, seed=3)
    (tmp_path / "config.json").write_text(json.dumps(config))
    core = start(tmp_path)
    assert read_model_config(tmp_path).generates
    found = pooled(core, {"one": (PROMPTS["64 tokens"], "last")})["one"]
    expected = reference_pooled(truth, PROMPTS["64 tokens"], "last").numpy()
    assert np.abs(vector(found) - expected).max() <= 1e-5
    add(core, "answer", PROMPTS["8 tokens"], SamplingParams(max_tokens=3, ignore_eos=True, logprobs=0))
    [(_, last)] = finish(core).values()
    assert last.finish_reason == "length"


def test_missing_weights_of_a_backbone_are_named(tmp_path: Path) -> None:
    write_backbone(tmp_path, config_json("LlamaForCausalLM", num_hidden_layers=1))
    places = {"model.embed_tokens.weight": torch.empty(131, 48), "model.layers.7.mlp.weight": torch.empty(1)}
    with pytest.raises(ModelError, match=r"1 missing: model\.layers\.7\.mlp\.weight"):
        load_weights(tmp_path, places)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architectures": ["BertModel"]}, r"BertModel.*LlamaForCausalLM.*for embeddings also LlamaModel"),
        ({"is_causal": False}, r"is_causal is False: attention to tokens that come later"),
        ({"use_bidirectional_attention": True}, r"use_bidirectional_attention is True"),
    ],
)
def test_models_that_look_ahead_are_refused_by_name(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelConfigError, match=told):
        parse_model_config({**config_json("LlamaForCausalLM"), **change})


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_bill_of_a_model_without_a_head(backbone: str, tmp_path: Path) -> None:
    architecture = BACKBONES[backbone]
    config = config_json(architecture, **OVERRIDES[architecture])
    truth = write_backbone(tmp_path, config)
    model = read_model_config(tmp_path)
    count = sum(weight.numel() for weight in truth.parameters())
    assert model.num_parameters == count
    core = start(tmp_path)
    rope = 2 * 4 * core.runner.decoder.cos.numel()  # type: ignore[union-attr]
    assert weights_bytes(core.runner.decoder) == 4 * count + rope
    limits = MemoryLimits("cpu", "float32")
    with_head = dataclasses.replace(model, generates=True, tie_word_embeddings=False)
    assert memory_bill(model, limits).weights_bytes == 4 * count
    assert memory_bill(model, limits).workspace_bytes < memory_bill(with_head, limits).workspace_bytes
