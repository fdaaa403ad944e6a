"""Tiny random checkpoints in Hugging Face layout, written by transformers itself."""

from pathlib import Path
from typing import Any

import torch
import transformers

TINY = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # the usual 0.02 gives a model that repeats one token
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS = {
    "llama": transformers.LlamaConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "mistral": transformers.MistralConfig,
}


def write_checkpoint(folder: Path, kind: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Saves a random float32 model of a kind into `folder`, which is also the result."""
    extra = {"qwen3": {"head_dim": 16}, "mistral": {"sliding_window": 24}}.get(kind, {})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = transformers.AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            CONFIGS[kind](**{**TINY, **extra, **changes})
        )
    model.to(torch.float32).save_pretrained(folder)
    return folder


def greedy(folder: Path, prompt: list[int], count: int) -> list[int]:
    """What transformers' own `generate` answers."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens
