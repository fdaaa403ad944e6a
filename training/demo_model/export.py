"""Writes a trained model in Hugging Face layout: config, bfloat16 weights, tokenizer, chat template, generation defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from .chat_format import TEMPLATE
from .model import Llama, Shape


def config_of(shape: Shape, tokenizer: Tokenizer) -> dict[str, Any]:
    """`config.json`, in the dialect that transformers 4 and 5 both read."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "max_position_embeddings": shape.positions,
        "rope_theta": shape.theta,
        "rope_scaling": None,
        "rms_norm_eps": shape.eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def export(model: Llama, tokenizer: Tokenizer, out: Path) -> None:
    """Writes everything but the model card to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    ends, stop = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    weights = {name: p.detach().to(torch.bfloat16).cpu().contiguous() for name, p in model.named_parameters()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>"],
        "model_max_length": model.shape.positions,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    generation = {
        "bos_token_id": ends,
        "eos_token_id": [stop, ends],
        "pad_token_id": ends,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.95,
    }
    files = {
        "config.json": config_of(model.shape, tokenizer),
        "tokenizer_config.json": tokenizer_config,
        "generation_config.json": generation,
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    (out / "chat_template.jinja").write_text(TEMPLATE.read_text())
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
