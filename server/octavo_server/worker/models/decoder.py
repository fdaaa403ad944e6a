"""The decoder of the Llama family, shaped by its config: Llama, Qwen2, Qwen3, Mistral."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from octavo_common.memory import context_length
from octavo_common.model_config import ModelConfig
from octavo_kernels.ops import AttentionMetadata, Ops, Residual, Workspace, pick_ops
from octavo_server.worker.models.interface import ForwardBatch
from octavo_server.worker.models.rope import rope_cache
from octavo_server.worker.weights import load_weights


@dataclass(slots=True)
class Projection:
    """A linear map: weight [out, in], bias [out] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def pack(self, ops: Ops) -> None:
        """Puts the weight, once it is read, into the order in which it is used."""
        self.weight = ops.pack_weight(self.weight)

    @property
    def parts(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.weight, self.bias


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer; q, k and v are one matrix, gate and up another."""

    input_norm: torch.Tensor
    qkv: Projection
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: Projection
    post_norm: torch.Tensor
    gate_up: Projection
    down: Projection


class Decoder:
    """Token ids to hidden states to logits, over a paged KV cache. Holds no state of requests."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device, ops: Ops | None = None) -> None:
        """Makes room for the weights; `load_decoder` fills it. ops: by default those that suit the device."""
        self.config = config
        self.ops = ops or pick_ops(device)
        self.scale = config.head_dim**-0.5
        self.embedding = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = [_empty_layer(config, dtype, device) for _ in range(config.num_layers)]
        self.norm = torch.empty(config.hidden_size, dtype=dtype, device=device)
        self.head = Projection(torch.empty_like(self.embedding), None)
        self.read_seconds = 0.0  # that reading its weights took
        self._workspace = Workspace()
        self.cos, self.sin = rope_cache(config.rope, config.head_dim, context_length(config), device)

    @torch.inference_mode()
    def forward(
        self,
        batch: ForwardBatch,
        kv_cache: list[tuple[torch.Tensor, torch.Tensor]],
        on_progress: Callable[[], None] = lambda: None,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The last hidden states of the batch's tokens, [T, hidden], after the final norm.

        rows: of these alone, places [n] int64: [n, hidden]. After the last layer's attention nobody needs the others.

        kv_cache: (K, V) of each layer, as `KVCacheSpec.allocate` gives them; the batch's own K and V are stored there.
        on_progress: called after each half of a layer. On a GPU that says only that the host got there.
        """
        ops, eps = self.ops, self.config.rms_norm_eps
        metadata = AttentionMetadata(
            batch.query_start,
            batch.context_lens,
            batch.block_tables,
            self._workspace,
            max_query_len=batch.max_query_len,
            max_context_len=batch.max_context_len,
            shared=batch.shared,
            all_chunks=batch.all_chunks,
        )
        hidden, rope = ops.begin_step(self.embedding, self.cos, self.sin, batch.token_ids, batch.positions)
        residual = Residual(hidden)
        for layer, cache, window in zip(self.layers, kv_cache, self.config.sliding_window, strict=True):
            qkv = ops.norm_linear(residual, (layer.input_norm, eps), layer.qkv.parts)
            qkv = qkv.view(len(qkv), -1, self.config.head_dim)
            q = ops.rotate_and_store(qkv, rope, self._head_norms(layer), cache, batch.slot_mapping)
            attended = ops.paged_attention(q, *cache, metadata, self.scale, window)
            if rows is not None and layer is self.layers[-1]:
                attended, residual = attended.index_select(0, rows), residual.take(rows)
                if len(rows) == 0:
                    return residual.hidden
            ops.linear_add(attended.flatten(1), layer.output.parts, residual)
            on_progress()
            x = ops.norm_gated_linear(residual, (layer.post_norm, eps), layer.gate_up.parts)
            ops.linear_add(x, layer.down.parts, residual)
            on_progress()
        return ops.norm_residual(residual, (self.norm, eps))

    @torch.inference_mode()
    def logits(self, hidden_rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[n, hidden] → [n, vocab] float32, into `out` if it is given."""
        return self.ops.logits(hidden_rows, self.head.weight, out)

    def pack(self) -> None:
        """Makes the weights ready for use, once they are read."""
        if self.config.generates:
            self.head.pack(self.ops)
        for layer in self.layers:
            for projection in (layer.qkv, layer.output, layer.gate_up, layer.down):
                projection.pack(self.ops)

    def _head_norms(self, layer: Layer) -> tuple[torch.Tensor, torch.Tensor, float] | None:
        if layer.q_norm is None or layer.k_norm is None:
            return None
        return layer.q_norm, layer.k_norm, self.config.rms_norm_eps


def load_decoder(
    path: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    ops: Ops | None = None,
    meanwhile: Callable[[Decoder], None] | None = None,
) -> Decoder:
    """The decoder with the weights of the model directory. ops: by default those that suit the device.

    meanwhile: is given the decoder while its weights are read; each of them is 0 or what it is to be.

    Raises:
        ModelError: the weights are missing, broken, or not those of `config`; the message names the remedy.
    """
    decoder = Decoder(config, dtype, device, ops)
    places = weight_places(decoder)
    # A checkpoint may carry the head though it is tied to the embedding; where it differs, transformers unties it.
    optional = ["lm_head.weight"] if config.tie_word_embeddings else []

    def load() -> set[str]:
        begin = time.perf_counter()
        found = load_weights(path, places, optional)
        decoder.read_seconds = time.perf_counter() - begin
        return found

    found = load() if meanwhile is None else _load_beside(load, decoder, meanwhile)
    if optional and (not found or torch.equal(decoder.head.weight, decoder.embedding)):
        decoder.head.weight = decoder.embedding
    decoder.pack()
    return decoder


def _load_beside(load: Callable[[], set[str]], decoder: Decoder, meanwhile: Callable[[Decoder], None]) -> set[str]:
    """What `load` returns, in a thread of its own while this one has other work."""
    for place in weight_places(decoder).values():
        place.zero_()
    if decoder.embedding.device.type == "cuda":
        torch.cuda.synchronize(decoder.embedding.device)  # other streams write there from now on
    with ThreadPoolExecutor(1, thread_name_prefix="octavo load") as thread:
        loading = thread.submit(load)
        meanwhile(decoder)
        return loading.result()


def _empty_layer(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Layer:
    hidden, width = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_attention_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def projection(inputs: int, outputs: int, bias: bool) -> Projection:
        return Projection(empty(outputs, inputs), empty(outputs) if bias else None)

    return Layer(
        input_norm=empty(hidden),
        qkv=projection(hidden, q_size + 2 * kv_size, config.attention_bias),
        q_norm=empty(config.head_dim) if config.qk_norm else None,
        k_norm=empty(config.head_dim) if config.qk_norm else None,
        output=projection(q_size, hidden, config.attention_output_bias),
        post_norm=empty(hidden),
        gate_up=projection(hidden, 2 * width, config.mlp_bias),
        down=projection(width, hidden, config.mlp_bias),
    )


def weight_places(decoder: Decoder) -> dict[str, torch.Tensor]:
    """Where each tensor goes, by its name in Hugging Face's checkpoints."""
    places = {
        "model.embed_tokens.weight": decoder.embedding,
        "model.norm.weight": decoder.norm,
        "lm_head.weight": decoder.head.weight,
    }
    for index, layer in enumerate(decoder.layers):
        for name, place in _layer_places(layer, decoder.config):
            places[f"model.layers.{index}.{name}"] = place
    return places


def _layer_places(layer: Layer, config: ModelConfig) -> list[tuple[str, torch.Tensor]]:
    q_size, kv_size = config.num_attention_heads * config.head_dim, config.num_kv_heads * config.head_dim
    places = [("input_layernorm.weight", layer.input_norm), ("post_attention_layernorm.weight", layer.post_norm)]
    if layer.q_norm is not None and layer.k_norm is not None:
        places += [("self_attn.q_norm.weight", layer.q_norm), ("self_attn.k_norm.weight", layer.k_norm)]
    for projection, names, sizes in (
        (layer.qkv, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), [q_size, kv_size, kv_size]),
        (layer.output, ("self_attn.o_proj",), [config.hidden_size]),
        (layer.gate_up, ("mlp.gate_proj", "mlp.up_proj"), [config.intermediate_size] * 2),
        (layer.down, ("mlp.down_proj",), [config.hidden_size]),
    ):
        places += _parts(projection.weight, names, sizes, "weight")
        if projection.bias is not None:
            places += _parts(projection.bias, names, sizes, "bias")
    return places


def _parts(fused: torch.Tensor, names: tuple[str, ...], sizes: list[int], kind: str) -> list[tuple[str, torch.Tensor]]:
    """The parts of a fused tensor, one after the other along its outputs."""
    return [(f"{name}.{kind}", part) for name, part in zip(names, torch.split(fused, sizes), strict=True)]
