"""config.json and generation_config.json: what is read, what is refused. Truth: what transformers makes of the file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from octavo_common.generation_config import GenerationDefaults, parse_generation_defaults, read_generation_defaults
from octavo_common.json_fields import ModelConfigError
from octavo_common.model_config import ARCHITECTURES, ModelConfig, RopeScaling, parse_model_config, read_model_config
from tiny_models import MODEL_TYPES, config_json

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def theirs(directory: Path, config: dict[str, Any]) -> transformers.PreTrainedConfig:
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return transformers.AutoConfig.from_pretrained(directory)


def their_windows(config: transformers.PreTrainedConfig) -> tuple[int | None, ...]:
    """Layer by layer, as transformers' models decide."""
    window = getattr(config, "sliding_window", None)
    if config.model_type == "mistral":
        return (window,) * config.num_hidden_layers
    if config.model_type == "llama":
        return (None,) * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in config.layer_types)


def as_ids(value: int | list[int] | None) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bos_token_id": None, "eos_token_id": None, "max_position_embeddings": None, "rms_norm_eps": None},
        {"head_dim": 32, "tie_word_embeddings": True},
        {"num_attention_heads": 32, "num_key_value_heads": None, "hidden_size": 64},
        {"sliding_window": 99, "max_window_layers": 2},
        {"sliding_window": 99, "max_window_layers": 2, "use_sliding_window": True},
        {"use_sliding_window": True, "max_window_layers": None},
        {"eos_token_id": [2, 7], "rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}},
    ],
    ids=str,
)
def test_absent_and_present_keys_mean_what_they_mean_to_transformers(
    architecture: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    content = config_json(architecture, **changes)
    ours, expected = parse_model_config(content), theirs(tmp_path, content)
    # Qwen2 has no head_dim of its own.
    head_dim = getattr(expected, "head_dim", None) or expected.hidden_size // expected.num_attention_heads
    assert ours.architecture == architecture
    assert ours.head_dim == head_dim
    assert ours.num_kv_heads == expected.num_key_value_heads
    assert ours.max_position_embeddings == expected.max_position_embeddings
    assert ours.rms_norm_eps == expected.rms_norm_eps
    assert ours.tie_word_embeddings == expected.tie_word_embeddings
    assert ours.sliding_window == their_windows(expected)
    assert ours.rope.theta == expected.rope_parameters["rope_theta"]
    assert ours.bos_token_id == expected.bos_token_id
    assert ours.eos_token_ids == as_ids(expected.eos_token_id)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_number_of_parameters_is_that_of_transformers(architecture: str, tmp_path: Path) -> None:
    for changes in ({}, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 40}):
        content = config_json(architecture, **changes)
        model = transformers.AutoModelForCausalLM.from_config(theirs(tmp_path, content))
        assert parse_model_config(content).num_parameters == sum(weight.numel() for weight in model.parameters())


def test_null_is_not_the_same_as_absent() -> None:
    mistral = config_json("MistralForCausalLM", eos_token_id=None)
    assert parse_model_config(mistral).sliding_window == (4096,) * 3
    assert parse_model_config(mistral).eos_token_ids == (2,)
    explicit = parse_model_config({**mistral, "sliding_window": None, "eos_token_id": None})
    assert explicit.sliding_window == (None,) * 3
    assert explicit.eos_token_ids == ()


def test_both_dialects_give_the_same_model() -> None:
    new = config_json(
        "LlamaForCausalLM",
        dtype="bfloat16",
        rope_parameters={**LLAMA3, "rope_theta": 500000.0, "original_max_position_embeddings": 64},
    )
    published = config_json(
        "LlamaForCausalLM",
        torch_dtype="bfloat16",
        rope_theta=500000.0,
        rope_scaling={**LLAMA3, "original_max_position_embeddings": 64},
    )
    older = {**published, "rope_scaling": {"type": "llama3", **published["rope_scaling"]}}
    del older["rope_scaling"]["rope_type"]
    expected = RopeScaling(
        theta=500000.0,
        kind="llama3",
        factor=8.0,
        original_max_position_embeddings=64,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    assert parse_model_config(new).rope == expected
    assert parse_model_config(new).dtype == "bfloat16"
    assert parse_model_config(new) == parse_model_config(published) == parse_model_config(older)


def test_yarn_is_read_with_its_defaults_and_in_detail() -> None:
    def yarn(**fields: Any) -> RopeScaling:
        scaling = {"type": "yarn", "factor": 4.0, **fields}
        return parse_model_config(config_json("Qwen2ForCausalLM", rope_scaling=scaling)).rope

    plain = RopeScaling(kind="yarn", factor=4.0, original_max_position_embeddings=512)
    assert yarn() == plain
    assert yarn(factor=None, original_max_position_embeddings=128) == replace(
        plain, factor=4.0, original_max_position_embeddings=128
    )
    detail = {
        "original_max_position_embeddings": 100,
        "attention_factor": 1.5,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 0.9,
        "truncate": False,
    }
    assert yarn(**detail) == replace(plain, **detail)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["architectures", "GPT2LMHeadModel", *MODEL_TYPES]),
        ({"architectures": None}, ["architectures", *MODEL_TYPES]),
        ({"architectures": ["LlamaForCausalLM", "Qwen2ForCausalLM"]}, ["architectures"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["quantization_config", "bfloat16"]),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}, ["auto_map", "never run"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["rope_scaling.type", "dynamic", "llama3", "yarn"]),
        ({"rope_scaling": {"rope_type": "longrope"}}, ["rope_scaling.rope_type", "longrope"]),
        ({"rope_parameters": {"rope_type": "longrope"}}, ["rope_parameters.rope_type", "longrope"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["rope_parameters", "flat"]),
        ({"rope_scaling": "yarn"}, ["rope_scaling", "yarn", "object"]),
        ({"rope_scaling": {"type": "linear"}}, ["rope_scaling.factor", "missing"]),
        ({"rope_scaling": {**LLAMA3, "factor": "8"}}, ["rope_scaling.factor", "'8'"]),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, ["low_freq_factor", "high_freq_factor"]),
        ({"rope_theta": -1.0}, ["rope_theta"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor", "0.5"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"dtype": "float8_e4m3fn"}, ["dtype", "float8_e4m3fn", "bfloat16"]),
        ({"hidden_size": None}, ["hidden_size", "missing", "positive integer"]),
        ({"hidden_size": 0}, ["hidden_size", "0"]),
        ({"hidden_size": True}, ["hidden_size", "True"]),
        ({"hidden_size": 50}, ["hidden_size", "50", "num_attention_heads"]),
        ({"num_hidden_layers": "3"}, ["num_hidden_layers", "'3'"]),
        ({"num_key_value_heads": 4}, ["num_attention_heads", "num_key_value_heads", "4"]),
        ({"head_dim": 9}, ["head_dim", "9", "even"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps", "nan"]),
        ({"tie_word_embeddings": 1}, ["tie_word_embeddings", "true or false"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id", "</s>"]),
        ({"eos_token_id": [1, -1]}, ["eos_token_id", "-1"]),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        parse_model_config(config_json("LlamaForCausalLM", **changes))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"layer_types": ["full_attention"] * 2}, "num_hidden_layers"),
        ({"layer_types": ["linear_attention"] * 3}, "linear_attention"),
        ({"layer_types": ["sliding_attention"] * 3}, "use_sliding_window"),
        ({"use_sliding_window": True, "sliding_window": -5}, "sliding_window"),
    ],
)
def test_windows_that_make_no_sense_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelConfigError, match=word):
        parse_model_config(config_json("Qwen3ForCausalLM", **changes))


def write(directory: Path, name: str, content: Any) -> None:
    (directory / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def test_ends_of_sequence_of_both_files_count(tmp_path: Path) -> None:
    write(tmp_path, "config.json", config_json("LlamaForCausalLM", eos_token_id=2))
    without: ModelConfig = read_model_config(tmp_path)
    write(tmp_path, "generation_config.json", {"eos_token_id": [5, 2, 6], "temperature": 0.6})
    assert without.eos_token_ids == (2,)
    assert read_model_config(tmp_path) == replace(without, eos_token_ids=(2, 5, 6))


def test_sampling_defaults_are_read_and_kept_as_published(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path) == GenerationDefaults()
    content = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.05,
        "eos_token_id": 7,
        "transformers_version": "4.51.0",
    }
    write(tmp_path, "generation_config.json", content)
    assert read_generation_defaults(tmp_path) == GenerationDefaults(0.6, 0.95, 20, 0.05, 1.05, (7,))


@pytest.mark.parametrize("field", ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "eos_token_id"])
def test_a_broken_sampling_default_is_refused_by_name(field: str) -> None:
    with pytest.raises(ModelConfigError, match=rf"generation_config\.json: {field}"):
        parse_generation_defaults({field: "much"})


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"', "[" * 100_000])
def test_a_broken_file_is_refused_with_its_path(content: str, tmp_path: Path) -> None:
    write(tmp_path, "config.json", content)
    with pytest.raises(ModelConfigError, match=r"config\.json"):
        read_model_config(tmp_path)


def test_a_missing_config_is_refused_with_the_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match=rf"config\.json is missing in {tmp_path}"):
        read_model_config(tmp_path)
