"""Attention alone, and the model alone, as the engine calls them: on a GPU in a CUDA graph, between device events."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

import torch

from octavo_common.model_config import ModelConfig
from octavo_kernels.ops import AttentionMetadata, Ops, pick_ops
from octavo_server.bench.report import Figure, rounded
from octavo_server.worker.models.interface import ForwardBatch, KVCacheSpec
from octavo_server.worker.random_weights import random_decoder

_PAGE: Final = 16
_GRAPH_SECONDS: Final = 0.02  # that the calls in one graph take together, about


def time_attention(
    shape: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    decodes: Sequence[tuple[int, int]] = (),
    prefills: Sequence[tuple[int, int]] = (),
) -> list[Figure]:
    """Decode in microseconds, causal prefill in TFLOP/s, for each (requests, tokens); pages of 16 in random order."""
    ops, figures = pick_ops(device), []
    for count, length in decodes:
        call = _attention(ops, shape, (device, dtype), (count, 1, length))
        seconds = _median_seconds(call, device)
        read = 2 * count * length * shape.num_kv_heads * shape.head_dim * dtype.itemsize
        details = {"TB/s": rounded(read / seconds / 1e12)}
        figures.append(Figure(f"attention-decode-{count}x{length}", rounded(seconds * 1e6), "us", True, details))
    for count, length in prefills:
        call = _attention(ops, shape, (device, dtype), (count, length, length))
        seconds = _median_seconds(call, device)
        operations = 2 * count * shape.num_attention_heads * shape.head_dim * length * (length + 1)
        rate = rounded(operations / seconds / 1e12)
        details = {"us": rounded(seconds * 1e6)}
        figures.append(Figure(f"attention-prefill-{count}x{length}", rate, "TFLOP/s", False, details))
    return figures


def time_model(shape: ModelConfig, device: torch.device, dtype: torch.dtype, rows: Sequence[int]) -> list[Figure]:
    """Milliseconds of forward pass and logits for each number of rows, each a request of one token.

    So attention has next to nothing to read: what is left are the linear maps, and what stands between them.
    """
    decoder, figures = random_decoder(shape, dtype, device, pick_ops(device)), []
    weights = shape.num_parameters - (0 if shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size)
    spec = KVCacheSpec(shape.num_layers, max(rows), _PAGE, shape.num_kv_heads, shape.head_dim, dtype, device)
    cache = spec.allocate()
    for count in rows:
        pages = torch.arange(count, device=device)
        batch = ForwardBatch(
            token_ids=torch.randint(0, shape.vocab_size, (count,), device=device),
            positions=torch.zeros_like(pages),
            slot_mapping=pages * _PAGE,
            query_start=torch.arange(count + 1, dtype=torch.int32, device=device),
            context_lens=torch.ones(count, dtype=torch.int32, device=device),
            block_tables=pages.int().view(count, 1),
            max_query_len=1,
            max_context_len=1,
        )

        def step(batch: ForwardBatch = batch) -> None:
            decoder.logits(decoder.forward(batch, cache))

        with torch.inference_mode():
            seconds = _median_seconds(step, device, once=True)
        details = {"TB/s of weights": rounded(weights * dtype.itemsize / seconds / 1e12)}
        figures.append(Figure(f"model-{count}", rounded(seconds * 1e3), "ms", True, details))
    return figures


def _attention(
    ops: Ops, shape: ModelConfig, where: tuple[torch.device, torch.dtype], size: tuple[int, int, int]
) -> Callable[[], object]:
    """size: (requests, tokens of each in the step, tokens of each in the cache)."""
    (device, dtype), (count, tokens, context) = where, size
    pages = -(-context // _PAGE)
    spec = KVCacheSpec(1, count * pages, _PAGE, shape.num_kv_heads, shape.head_dim, dtype, device)
    ((k, v),) = spec.allocate()
    k.normal_()
    v.normal_()
    q = torch.randn(count * tokens, shape.num_attention_heads, shape.head_dim, device=device, dtype=dtype)
    metadata = AttentionMetadata(
        torch.arange(0, count * tokens + 1, tokens, dtype=torch.int32, device=device),
        torch.full((count,), context, dtype=torch.int32, device=device),
        torch.randperm(count * pages, device=device).int().view(count, pages),
        max_query_len=tokens,
        max_context_len=context,
    )
    scale = shape.head_dim**-0.5
    return lambda: ops.paged_attention(q, k, v, metadata, scale, None)


def _median_seconds(call: Callable[[], object], device: torch.device, *, once: bool = False) -> float:
    """Of one call. once: a call is long enough, and reads enough, to be alone in its graph."""
    if device.type != "cuda":
        return statistics.median(_host_seconds(call) for _ in range(5))
    begin = time.perf_counter()
    for _ in range(2):
        call()
        torch.cuda.synchronize()
        began, begin = begin, time.perf_counter()
    often = 1 if once else max(1, min(50, int(_GRAPH_SECONDS / (begin - began))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(often):
            call()
    return event_seconds(graph.replay) / often


def event_seconds(run: Callable[[], object], repeat: int = 7) -> float:
    """Between device events around a run, the median."""
    times = list[float]()
    for _ in range(repeat + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times[2:])


def _host_seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
