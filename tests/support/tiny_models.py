"""Tiny random checkpoints, made and read by transformers: the independent truth for our own decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from octavo_common.model_config import parse_model_config
from octavo_kernels.ops import Ops
from octavo_server.worker.models.decoder import Decoder, weight_places

if TYPE_CHECKING:
    import transformers  # which takes longer to import than torch: by those alone who make a checkpoint or read one

# Tiny matrices gain nothing from more, and tests share the machine.
torch.set_num_threads(1)

# Sizes that are multiples of nothing convenient: 3 query heads a key head, 112 inner columns, 131 tokens.
SMALL: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MistralForCausalLM": "mistral",
}


def config_json(architecture: str, **overrides: Any) -> dict[str, Any]:
    """The content of a config.json with small sizes; an override of None removes the key."""
    config = {"architectures": [architecture], "model_type": MODEL_TYPES[architecture], **SMALL, **overrides}
    return {name: value for name, value in config.items() if value is not None}


def write_checkpoint(
    directory: Path, config: dict[str, Any], *, seed: int = 0, max_shard_size: str = "1GB"
) -> transformers.PreTrainedModel:
    """Makes a random checkpoint for `config`, whose config.json is `config` to the letter.

    Returns:
        What transformers makes of the directory, in float32 and with its plainest attention.
    """
    import transformers

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(directory), dtype=torch.float32
    )
    randomize(model, seed)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return read_checkpoint(directory)


def write_backbone(directory: Path, config: dict[str, Any], *, seed: int = 0) -> transformers.PreTrainedModel:
    """A random checkpoint without a language-model head: its weights' names have no `model.` before them.

    Returns:
        What transformers makes of the directory, in float32 and with its plainest attention.
    """
    import transformers

    directory.mkdir(parents=True, exist_ok=True)
    named = config["architectures"][0].removesuffix("ForCausalLM").removesuffix("Model")
    written = json.dumps({**config, "architectures": [f"{named}Model"]})
    (directory / "config.json").write_text(written, encoding="utf-8")
    model = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(directory), dtype=torch.float32)
    randomize(model, seed)
    model.save_pretrained(directory)
    (directory / "config.json").write_text(written, encoding="utf-8")
    return read_backbone(directory)


def read_backbone(directory: Path) -> transformers.PreTrainedModel:
    """The same of a checkpoint that is there, with or without a head."""
    import transformers

    model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def reference_pooled(model: transformers.PreTrainedModel, token_ids: list[int], pooling: str) -> torch.Tensor:
    """[hidden] float64 of the last hidden states, which come in float32."""
    hidden = model(torch.tensor([token_ids]), use_cache=False).last_hidden_state[0].double()
    return {"mean": hidden.mean(dim=0), "last": hidden[-1], "cls": hidden[0]}[pooling]


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that every one of them shows in the logits: biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                weight.copy_(1 + 0.2 * noise)
            elif "embed_tokens" in name or weight.dim() == 1:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(noise * 1.5 / weight.shape[1] ** 0.5)


def read_checkpoint(directory: Path) -> transformers.PreTrainedModel:
    """The model as transformers reads it, in float32 and with its plainest attention."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@torch.no_grad()
def reference_logits(model: transformers.PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    """[len(token_ids), vocab] float32, the whole sequence in one pass without a cache."""
    return model(torch.tensor([token_ids]), use_cache=False).logits[0]


def random_decoder(config: dict[str, Any], seed: int = 0, ops: Ops | None = None) -> Decoder:
    """Our decoder with random float32 weights, without a checkpoint."""
    decoder = Decoder(parse_model_config(config), torch.float32, torch.device("cpu"), ops)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in weight_places(decoder).items():
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            weight.copy_(1 + 0.2 * noise)
        else:
            weight.copy_(noise * (1.5 / weight.shape[1] ** 0.5 if weight.dim() == 2 else 0.5))
    decoder.pack()
    return decoder
