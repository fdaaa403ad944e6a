"""The shape of a model, without torch: the server builds from it, `octavo plan` bills from it.

`parse_model_config` reads a `config.json` in either dialect: that of transformers 5 (`rope_parameters`, `dtype`) and
that of most published models (`rope_theta`, `rope_scaling`, `torch_dtype`). What an absent key means is what
transformers 5 takes it to mean, for each architecture; `tests/server/test_model_config.py` holds the two equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from octavo_common.generation_config import read_generation_defaults
from octavo_common.json_fields import FieldReader, ModelConfigError, read_json_object
from octavo_common.rope_config import RopeScaling, parse_rope

Architecture = Literal["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"]

__all__ = [
    "ARCHITECTURES",
    "BACKBONES",
    "Architecture",
    "ModelConfig",
    "RopeScaling",
    "parse_model_config",
    "read_model_config",
]

ARCHITECTURES: Final[tuple[Architecture, ...]] = get_args(Architecture)
# Without a language-model head: they make embeddings, and no text.
BACKBONES: Final[dict[str, Architecture]] = {
    architecture.removesuffix("ForCausalLM") + "Model": architecture for architecture in ARCHITECTURES
}
DTYPES: Final = ("bfloat16", "float16", "float32")
LAYER_TYPES: Final = ("full_attention", "sliding_attention")

# What transformers takes for a key that is not there; a key that is there with null is something else.
_DEFAULTS: Final[dict[Architecture, dict[str, Any]]] = {
    "LlamaForCausalLM": {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "Qwen2ForCausalLM": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "Qwen3ForCausalLM": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
    "MistralForCausalLM": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer of the Llama family. Sizes are counts, not bytes.

    `generates`: False for a bare backbone, which has no language-model head. `tie_word_embeddings` is true then: where
    a step is tried out, the embedding stands in for the head, and takes no memory of its own.
    """

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    hidden_act: str
    tie_word_embeddings: bool
    attention_bias: bool  # of q, k and v
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: tuple[int | None, ...]  # one entry a layer; None: full attention
    dtype: str  # as published: "bfloat16", "float16" or "float32"
    rope: RopeScaling = field(default_factory=RopeScaling)
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    generates: bool = True

    @property
    def num_parameters(self) -> int:
        """Weights of the model, embeddings counted once where they are tied."""
        q, kv = self.num_attention_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (q + 2 * kv) + q * self.hidden_size
        attention += (q + 2 * kv) if self.attention_bias else 0
        attention += self.hidden_size if self.attention_output_bias else 0
        attention += 2 * self.head_dim if self.qk_norm else 0
        mlp = 3 * self.hidden_size * self.intermediate_size
        mlp += (2 * self.intermediate_size + self.hidden_size) if self.mlp_bias else 0
        layer = attention + mlp + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of K and V that one token holds over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_bytes


def read_model_config(directory: Path) -> ModelConfig:
    """The shape of the model in `directory`, from its `config.json`.

    Ends of sequence that only `generation_config.json` names are added to `eos_token_ids`.

    Raises:
        ModelConfigError: a file is missing or no JSON, or the model is of a kind that is not supported.
    """
    config = parse_model_config(read_json_object(directory / "config.json"))
    extra = read_generation_defaults(directory).eos_token_ids
    return replace(config, eos_token_ids=tuple(dict.fromkeys(config.eos_token_ids + extra)))


def parse_model_config(config: Mapping[str, Any]) -> ModelConfig:
    """The shape that the content of a `config.json` describes.

    Raises:
        ModelConfigError: names the field, what it holds and what is allowed.
    """
    architecture, generates = _architecture(config)
    _refuse_unsupported(config)
    fields = FieldReader({**_DEFAULTS[architecture], **config})
    heads = fields.count("num_attention_heads")
    hidden = fields.count("hidden_size")
    kv_heads = fields.count("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise ModelConfigError(f"num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})")
    head_dim = _head_dim(fields, hidden, heads)
    num_layers = fields.count("num_hidden_layers")
    max_positions = fields.count("max_position_embeddings")
    optional_bias = architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM") and fields.flag("attention_bias")
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.count("intermediate_size"),
        num_layers=num_layers,
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        rms_norm_eps=fields.number("rms_norm_eps", default=1e-6, at_least=0.0),
        hidden_act=fields.choice("hidden_act", ("silu",), default="silu"),
        tie_word_embeddings=fields.flag("tie_word_embeddings") or not generates,
        attention_bias=optional_bias or architecture == "Qwen2ForCausalLM",
        attention_output_bias=optional_bias,
        mlp_bias=architecture == "LlamaForCausalLM" and fields.flag("mlp_bias"),
        qk_norm=architecture == "Qwen3ForCausalLM",
        sliding_window=_sliding_windows(fields, architecture, num_layers),
        dtype=_dtype(fields),
        rope=parse_rope(config, max_positions),
        bos_token_id=fields.token_id("bos_token_id"),
        eos_token_ids=fields.token_ids("eos_token_id"),
        generates=generates,
    )


def _head_dim(fields: FieldReader, hidden: int, heads: int) -> int:
    """As given, else the hidden size divided among the heads."""
    if not fields.given("head_dim") and hidden % heads:
        raise ModelConfigError(f"hidden_size ({hidden}) is no multiple of num_attention_heads ({heads})")
    head_dim = fields.count("head_dim", default=hidden // heads)
    if head_dim % 2:
        raise ModelConfigError(f"head_dim is {head_dim}; rotary position embedding needs an even one")
    return head_dim


def _architecture(config: Mapping[str, Any]) -> tuple[Architecture, bool]:
    """The one architecture that the model is to be run as, and whether it makes text."""
    named = config.get("architectures")
    supported = f"{', '.join(ARCHITECTURES)}; for embeddings also {', '.join(BACKBONES)}"
    if not isinstance(named, list) or not named:
        raise ModelConfigError(f"architectures is {named!r}; it must name one of {supported}")
    for backbone, architecture in BACKBONES.items():
        if named in ([architecture], [backbone]):
            return architecture, named == [architecture]
    raise ModelConfigError(f"architectures is {named!r}, which is not supported; supported are {supported}")


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    """Fields that would change what the model computes, in ways that we do not."""
    if config.get("auto_map"):
        raise ModelConfigError(
            "auto_map names code that comes with the model; such code is never run. "
            "Use a model that transformers supports by itself, without auto_map"
        )
    if config.get("quantization_config"):
        raise ModelConfigError(
            "quantization_config: quantized weights are not supported; "
            "use the model's bfloat16, float16 or float32 weights"
        )
    for name, causal in (("is_causal", True), ("use_bidirectional_attention", False)):
        if config.get(name) not in (None, causal):
            raise ModelConfigError(
                f"{name} is {config[name]!r}: attention to tokens that come later is not supported; "
                "use a model whose attention is causal"
            )


def _sliding_windows(fields: FieldReader, architecture: Architecture, num_layers: int) -> tuple[int | None, ...]:
    """Each layer's window in tokens (the token itself included), None for full attention.

    Mistral has one window for all layers. In Qwen, `use_sliding_window` switches it on, `layer_types` says where, and
    without `layer_types` the layers from `max_window_layers` on have it. Llama has none, whatever the file says.
    """
    if architecture == "LlamaForCausalLM":
        return (None,) * num_layers
    if architecture == "MistralForCausalLM":
        return (fields.optional_count("sliding_window"),) * num_layers
    window = None
    if fields.flag("use_sliding_window"):
        window = 4096 if fields.absent("sliding_window") else fields.optional_count("sliding_window")
    layer_types = fields.strings("layer_types", LAYER_TYPES)
    if layer_types is None:
        first = fields.number("max_window_layers", default=28, at_least=0)
        return tuple(window if index >= first else None for index in range(num_layers))
    if len(layer_types) != num_layers:
        raise ModelConfigError(f"layer_types has {len(layer_types)} entries; num_hidden_layers is {num_layers}")
    if window is None and "sliding_attention" in layer_types:
        raise ModelConfigError(
            "layer_types has sliding_attention; that needs use_sliding_window true and a sliding_window"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _dtype(fields: FieldReader) -> str:
    """The weights' published type; float32, as transformers has it, where none is named."""
    name = "dtype" if fields.given("dtype") else "torch_dtype"
    return fields.choice(name, DTYPES, default="float32")
