"""Whole models on random weights: a decode step in a CUDA graph, and prefill. The shapes are those of the tables."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from octavo_common.model_config import ModelConfig, parse_model_config
from octavo_kernels import small_linear
from octavo_kernels.gathered_attention import gathered_attention, whole_prompt_attention, whole_prompts
from octavo_kernels.ops import triton_ops
from octavo_server.worker.models.decoder import Decoder, weight_places
from octavo_server.worker.models.interface import ForwardBatch, KVCacheSpec

SHAPES: Final = Path(__file__).resolve().parent / "shapes"
MODELS: Final[dict[str, dict[str, Any]]] = {
    name: json.loads((SHAPES / file).read_text(encoding="utf-8"))
    for name, file in (("8b", "llama-8b.json"), ("0.6b", "qwen3-0.6b.json"))
}
PREFILLS: Final = ((1, 128), (1, 512), (1, 1024), (1, 2048), (1, 8192), (4, 2048))
# Up to how many rows the small linear maps are taken, otherwise cuBLAS.
MOST_ROWS: Final = (0, 1, 16)
CONTEXT: Final = 1024


def time_models(
    graph_us: Callable[[list[Callable[[], object]]], float],
    event_ms: Callable[..., float],
    tried: Callable[[Callable[[], float]], float],
    predictions: dict[str, str],
) -> dict[str, Any]:
    """Milliseconds of forward and logits: decode steps in a graph at a context of 1024, prefill without one."""
    report: dict[str, Any] = {}
    runs = (("0.6b", (1, 8, 64, 256), False), ("8b", (1, 8, 64, 256), False), ("8b", (1, 64), True))
    for model, batches, invariant in runs:
        kind = f"{model} invariant" if invariant else model
        config = parse_model_config(MODELS[model])
        decoder = random_decoder(config, invariant)
        cache = random_cache(config, max(*batches, 8) * (CONTEXT // 16 + 1))

        def run(batch: ForwardBatch, last: int, decoder: Decoder = decoder, cache: Any = cache) -> torch.Tensor:
            return decoder.logits(decoder.forward(batch, cache)[-last:])

        for requests in batches:
            batch = batch_of(requests, 1, CONTEXT, cache)
            name = f"{kind} step {requests}"
            report[name] = round(tried(lambda b=batch, n=requests, r=run: graph_us([lambda: r(b, n)]) / 1000), 3)  # type: ignore[misc]
            print(f"{name}: {report[name]} ms; predicted {predictions.get(name, '-')}", flush=True)
        for rows in MOST_ROWS if not invariant else ():
            small_linear.MOST_ROWS, usual = rows, small_linear.MOST_ROWS
            for requests in (1, 8):
                batch = batch_of(requests, 1, CONTEXT, cache)
                name = f"{kind} step {requests}, small linear up to {rows}"
                report[name] = round(tried(lambda b=batch, n=requests, r=run: graph_us([lambda: r(b, n)]) / 1000), 3)  # type: ignore[misc]
                print(f"{name}: {report[name]} ms", flush=True)
            small_linear.MOST_ROWS = usual
        for requests, tokens in PREFILLS if not invariant else ():
            batch = batch_of(requests, tokens, tokens, cache)
            name = f"{kind} prefill {requests}x{tokens}"
            report[name] = round(tried(lambda b=batch, r=run: event_ms(lambda: r(b, 1))), 2)  # type: ignore[misc]
            print(f"{name}: {report[name]} ms, {requests * tokens / report[name] * 1000:.0f} tok/s", flush=True)
            if tokens >= 2048:
                usual_ops = decoder.ops
                for kept, attend in (("gathered", gathered_attention), ("gathered, SDPA", sdpa_attention)):
                    decoder.ops = replace(usual_ops, paged_attention=attend)
                    name = f"{kind} prefill {requests}x{tokens}, {kept}"
                    report[name] = round(tried(lambda b=batch, r=run: event_ms(lambda: r(b, 1), 3)), 2)  # type: ignore[misc]
                    print(f"{name}: {report[name]} ms, {requests * tokens / report[name] * 1000:.0f} tok/s", flush=True)
                decoder.ops = usual_ops
        del decoder, cache, run
        torch.cuda.empty_cache()
    return report


def sdpa_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: Any, scale: float, _: Any) -> Any:
    """For whole prompts of one length and nothing else."""
    if not whole_prompts(metadata, len(q)):
        raise ValueError("these are not whole prompts of one length")
    return whole_prompt_attention(q, k, v, metadata, scale)


def random_decoder(config: ModelConfig, invariant: bool) -> Decoder:
    return random_weights(Decoder(config, torch.bfloat16, torch.device("cuda"), triton_ops(batch_invariant=invariant)))


def random_weights(decoder: Decoder) -> Decoder:
    """Fills it, and returns it."""
    for place in weight_places(decoder).values():
        place.normal_(std=0.02)
    if decoder.config.tie_word_embeddings:
        decoder.head.weight = decoder.embedding
    return decoder


def random_cache(config: ModelConfig, pages: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    spec = KVCacheSpec(
        num_layers=config.num_layers,
        num_blocks=pages,
        block_size=16,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=torch.bfloat16,
        device=torch.device("cuda"),
    )
    cache = spec.allocate()
    for k, v in cache:
        k.normal_()
        v.normal_()
    return cache


def batch_of(requests: int, tokens: int, context: int, cache: list[tuple[torch.Tensor, torch.Tensor]]) -> ForwardBatch:
    """Each request computes its last `tokens` of `context`; pages in random order."""
    tables = torch.randperm(len(cache[0][0]), device="cuda")[: requests * -(-context // 16)].view(requests, -1)
    positions = torch.arange(context - tokens, context, device="cuda").repeat(requests)
    row = torch.arange(requests, device="cuda").repeat_interleave(tokens)
    return ForwardBatch(
        token_ids=torch.randint(0, 100_000, (requests * tokens,), device="cuda"),
        positions=positions,
        slot_mapping=tables[row, positions // 16] * 16 + positions % 16,
        query_start=torch.arange(0, requests * tokens + 1, tokens, dtype=torch.int32, device="cuda"),
        context_lens=torch.full((requests,), context, dtype=torch.int32, device="cuda"),
        block_tables=tables.int(),
        max_query_len=tokens,
        max_context_len=context,
    )
