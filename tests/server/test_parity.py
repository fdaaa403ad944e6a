"""Our logits against those of transformers, on tiny random checkpoints of every kind that we load."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from octavo_common.model_config import read_model_config
from octavo_server.worker.models.decoder import Decoder, load_decoder
from paged_loop import PagedLoop, Sequence
from tiny_models import config_json, reference_logits, write_checkpoint

TOLERANCE = 1e-4
BLOCK_SIZE = 16

# By name: architecture and what differs from the small config. The dialect of transformers 5 unless the name says else.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama one head a key head": ("LlamaForCausalLM", {"num_key_value_heads": 6}),
    "llama one key head": ("LlamaForCausalLM", {"num_key_value_heads": 1}),
    "llama 5 to 1": ("LlamaForCausalLM", {"num_attention_heads": 10, "head_dim": 8, "hidden_size": 80}),
    "llama 12 to 1": ("LlamaForCausalLM", {"num_attention_heads": 12, "num_key_value_heads": 1}),
    "llama head of 40": ("LlamaForCausalLM", {"head_dim": 40}),
    "llama head of 80": ("LlamaForCausalLM", {"head_dim": 80}),
    "llama theta": ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    "llama linear": (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama llama3": (
        "LlamaForCausalLM",
        {
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama yarn": (
        "LlamaForCausalLM",
        {
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "qwen3 yarn in detail": (
        "Qwen3ForCausalLM",
        {
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 24.0,
                "beta_slow": 2.0,
                "mscale": 1.2,
                "mscale_all_dim": 0.8,
                "truncate": False,
            },
        },
    ),
    "qwen2": ("Qwen2ForCausalLM", {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}),
    "qwen2 tied": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen2 window": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 21, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}),
    "qwen3 tied, biases": ("Qwen3ForCausalLM", {"head_dim": 24, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3 layer types": (
        "Qwen3ForCausalLM",
        {
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 33,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "mistral": ("MistralForCausalLM", {"sliding_window": 100}),
    "mistral window": ("MistralForCausalLM", {"sliding_window": 17, "head_dim": 10}),
}

# config.json as models are published: written out by hand, in the older dialect.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama 3.1 as published": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": [2, 3, 4],
        "hidden_act": "silu",
        "hidden_size": 48,
        "initializer_range": 0.02,
        "intermediate_size": 112,
        "max_position_embeddings": 512,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3",
        "use_cache": True,
        "vocab_size": 131,
    },
    "llama with linear scaling as published": {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 48,
        "intermediate_size": 112,
        "max_position_embeddings": 512,
        "model_type": "llama",
        "num_attention_heads": 6,
        "num_hidden_layers": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"factor": 4.0, "type": "linear"},
        "torch_dtype": "float16",
        "vocab_size": 131,
    },
    "qwen2.5 with yarn as published": {
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 48,
        "intermediate_size": 112,
        "max_position_embeddings": 512,
        "max_window_layers": 1,
        "model_type": "qwen2",
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 128, "type": "yarn"},
        "rope_theta": 1000000.0,
        "sliding_window": 20,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": 131,
    },
    "qwen3 as published": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 48,
        "intermediate_size": 112,
        "max_position_embeddings": 512,
        "max_window_layers": 3,
        "model_type": "qwen3",
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": 131,
    },
    "mistral as published": {
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 48,
        "intermediate_size": 112,
        "max_position_embeddings": 512,
        "model_type": "mistral",
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 25,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 131,
    },
}


@dataclass
class Pair:
    """One checkpoint, as transformers and as we read it."""

    theirs: transformers.PreTrainedModel
    ours: Decoder

    def loop(self) -> PagedLoop:
        return PagedLoop(self.ours, num_blocks=128, block_size=BLOCK_SIZE)


def load(directory: Path) -> Decoder:
    return load_decoder(directory, read_model_config(directory), torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module", params=[*VARIANTS, *PUBLISHED])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("model")
    if request.param in PUBLISHED:
        config = PUBLISHED[request.param]
    else:
        architecture, overrides = VARIANTS[request.param]
        config = config_json(architecture, **overrides)
    return Pair(write_checkpoint(directory, config), load(directory))


def prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(131) for _ in range(length)] for length in lengths]


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The checker itself: every logit of every position within the tolerance; NaN is never within it."""
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs().max()
    assert difference <= TOLERANCE, f"logits differ by {difference:.2e}"


def test_logits_of_a_prompt_alone_equal_those_of_transformers(pair: Pair) -> None:
    # One token, a page but one, a page, one more, and across several tiles of keys.
    for prompt in prompts([1, 15, 16, 17, 150]):
        [ours] = pair.loop().step([(Sequence(), prompt)])
        assert_same(ours, reference_logits(pair.theirs, prompt))


def test_logits_in_a_ragged_batch_of_prefill_and_decode_equal_those_of_transformers(pair: Pair) -> None:
    texts = prompts([3, 16, 33, 70, 149], seed=1)
    loop = pair.loop()
    # Some have all but their last token in the cache (decode), some a part (a later chunk), some nothing.
    cached = [2, 15, 20, 0, 148]
    sequences = [Sequence() for _ in texts]
    for sequence, text, length in zip(sequences, texts, cached, strict=True):
        if length:
            loop.step([(sequence, text[:length])])
    batch = [(sequence, text[length:]) for sequence, text, length in zip(sequences, texts, cached, strict=True)]
    for ours, text, length in zip(loop.step(batch), texts, cached, strict=True):
        assert_same(ours, reference_logits(pair.theirs, text)[length:])


def test_logits_of_a_chunked_prompt_equal_those_of_transformers(pair: Pair) -> None:
    [prompt] = prompts([150], seed=2)
    loop, sequence, start, found = pair.loop(), Sequence(), 0, []
    for size in (1, 31, 1, 64, 3, 50):
        found += loop.step([(sequence, prompt[start : start + size])])
        start += size
    assert_same(torch.cat(found), reference_logits(pair.theirs, prompt))


def test_a_hundred_greedy_tokens_equal_those_of_transformers(pair: Pair) -> None:
    texts = prompts([5, 30], seed=3)
    for text, found in zip(texts, pair.loop().greedy(texts, 100), strict=True):
        # Each token must be the likeliest after those before it. That these are the same follows by induction.
        likeliest = reference_logits(pair.theirs, text + found[:-1])[len(text) - 1 :].argmax(-1)
        assert found == likeliest.tolist()


def test_a_corrupted_logit_is_found(pair: Pair) -> None:
    [prompt] = prompts([20])
    [ours] = pair.loop().step([(Sequence(), prompt)])
    for wrong in (2 * TOLERANCE, -2 * TOLERANCE, torch.nan):
        corrupted = ours.clone()
        corrupted[7, 100] += wrong
        with pytest.raises(AssertionError):
            assert_same(corrupted, reference_logits(pair.theirs, prompt))
