"""Two experiments on a GPU; nothing in the engine hangs on this file.

    python benchmarks/gpu_experiments.py [--json FILE] [--only gemm cache] [--seconds SECONDS]

- gemm: the products of a decode step at 8 to 256 rows, cuBLAS against `stream_linear` and the tiles of `linear`.
- cache: decode attention, and the gathering of a prompt, over all layers of an 8B model with a cache of 40 GiB, layer
  first and page first. Page first, a page is one piece to copy; but a layer's reads then span the whole cache.

Weights and layers rotate past the L2. Each candidate is checked before it is timed. Exit status 1 if one is wrong.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gpu_kernels as common
import torch
import torch.nn.functional as F
from gpu_swap import layer_first, page_first
from kernel_checks import warm
from stream_linear import StreamConfig, stream_linear

from octavo_kernels.gathered_attention import gather_pages
from octavo_kernels.linear import LinearConfig, linear_tiles
from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.paged_attention import paged_attention
from octavo_server.worker.models.interface import KVCacheSpec

# Written down before the run.
PREDICTIONS: Final = {
    "8b 8": "5.45 ms (cuBLAS 5.89): even stretches on all processors read at 2.9 TB/s, and 2 us a product to fill up",
    "8b 16": "5.45 ms",
    "8b 32": "5.5 ms",
    "8b 64": "5.6 ms (cuBLAS 5.85): a step of 64 would come from 9.29 to 9.05",
    "8b 128": "6.0 ms: reading x for each tile from the L2 begins to show",
    "8b 256": "7.4 ms: no better than cuBLAS (7.28)",
    "0.6b 8": "0.75 ms (cuBLAS 0.89): of products of 2 to 13 MB some 3 us are not reading, however they are cut",
    "0.6b 16": "0.75 ms",
    "0.6b 32": "0.77 ms",
    "0.6b 64": "0.80 ms (cuBLAS 0.91)",
    "0.6b 128": "0.9 ms",
    "0.6b 256": "1.05 ms: as cuBLAS (1.04)",
    "cache 64x1024": "page first 2 % slower: each 64 KiB of a page lies 2 MiB from the next, a translation for each",
    "cache 64x8192": "page first 4 % slower",
    "cache 256x1024": "page first 3 % slower",
    "cache 256x8192": "page first 4 % slower",
    "cache gather 1x8192": "page first 5 % slower",
}

ROWS: Final = (8, 16, 32, 64, 128, 256)
# By rows, at most: outputs and tokens of a tile (0: all rows), inputs, warps, stages, programs a processor (0: a tile
# each).
FEW: Final = ((64, 0, 128, 4, 4, 2), (64, 0, 128, 4, 8, 1), (128, 0, 64, 4, 5, 2), (64, 0, 128, 4, 4, 0))
STREAMS: Final[dict[int, tuple[tuple[int, ...], ...]]] = {
    16: (*FEW, (64, 0, 64, 4, 5, 4), (64, 0, 256, 4, 5, 1)),
    32: (*FEW, (64, 0, 64, 4, 6, 3)),
    64: (
        *((64, 0, 128, 4, 3, 2), (64, 0, 128, 4, 6, 1), (64, 0, 64, 4, 6, 2)),
        *((128, 0, 128, 8, 4, 1), (64, 0, 128, 4, 3, 0)),
    ),
    128: (
        *((64, 0, 64, 4, 4, 2), (128, 0, 64, 8, 6, 1), (128, 0, 128, 8, 3, 1)),
        *((128, 0, 64, 8, 3, 2), (128, 0, 64, 8, 6, 0)),
    ),
    256: (
        *((128, 0, 64, 8, 4, 1), (64, 0, 64, 4, 5, 1), (128, 128, 64, 8, 6, 1)),
        *((128, 128, 64, 8, 3, 2), (128, 0, 64, 8, 4, 0)),
    ),
}
# Rows, outputs, inputs, warps, stages: without descriptors and without exchange.
TILES: Final[dict[int, tuple[tuple[int, ...], ...]]] = {
    16: ((16, 32, 128, 4, 6), (16, 64, 128, 4, 5)),
    32: ((32, 32, 128, 4, 5), (32, 64, 128, 4, 4)),
    64: ((64, 32, 128, 4, 4), (64, 64, 128, 4, 4)),
    128: ((128, 64, 64, 8, 4), (128, 32, 128, 8, 3)),
    256: ((128, 128, 64, 8, 3),),
}
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def candidates(rows: int) -> dict[str, Product]:
    """What is tried at so many rows, by name."""
    size = min(most for most in STREAMS if rows <= most)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    found: dict[str, Product] = {}
    for o, t, *rest in STREAMS[size]:
        config = StreamConfig(o, t or rows, *rest)
        found[f"stream {config}"] = lambda x, w, c=config: stream_linear(x, w, c, processors)  # type: ignore[misc]
    for m, n, k, warps, stages in TILES[size]:
        tile = LinearConfig(m, n, k, warps, stages)
        found[f"tiles {m}x{n}x{k} w{warps} s{stages}"] = lambda x, w, c=tile: linear_tiles(x, w, None, c)  # type: ignore[misc]
    return found


def check(rows: int, products: dict[str, Product]) -> list[str]:
    """Names of those that are wrong, or not the same twice; one that does not compile is left to the timing."""
    x, w = (torch.randn(n, 2048, device="cuda", dtype=torch.bfloat16) for n in (rows - 3, 5000))
    truth, wrong = x.double() @ w.double().t(), []
    for name, product in products.items():
        try:
            first, second = product(x, w), product(x, w)
        except Exception:
            continue
        error = ((first.double() - truth).norm() / truth.norm()).item()
        if not (error <= 4e-3 and torch.equal(first, second)):
            wrong.append(f"{rows} rows, {name}: {error:.1e}, same twice: {torch.equal(first, second)}")
    return wrong


def time_gemm(end: float) -> dict[str, Any]:
    """Microseconds of each product, and milliseconds of a step's: cuBLAS, and the best of each."""
    named = {rows: candidates(rows) for rows in ROWS}
    x, w = (torch.zeros(256, 1024, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    begin = time.perf_counter()
    warm([lambda p=p, r=r: p(x[:r], w) for r in reversed(ROWS) for p in named[r].values()], 60.0)  # type: ignore[misc]
    failures = [entry for rows in ROWS for entry in check(rows, named[rows])]
    print(f"    compiled and checked in {time.perf_counter() - begin:.0f} s; wrong: {failures}", flush=True)
    report: dict[str, Any] = {"failures": failures} if failures else {}
    sums = {(model, rows): [0.0, 0.0] for model in common.PRODUCTS for rows in ROWS}
    for model, shapes in common.PRODUCTS.items():
        for outputs, inputs, times in shapes:
            copies = max(2, min(24, int(1.5e8 / (outputs * inputs * 2))))
            weights = [torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
            for rows in ROWS:
                if time.perf_counter() > end:
                    return {**report, "left out from": f"{model} {inputs} to {outputs}, {rows} rows"}
                name = f"{rows} x {inputs} to {outputs}"
                report[name] = found = time_product(rows, weights, named[rows])
                floor = max(outputs * inputs * 2 / common.BANDWIDTH, 2 * rows * outputs * inputs / common.RATE) * 1e6
                cublas, (best, value) = found["cuBLAS"], min(found.items(), key=lambda item: item[1])
                alone = {key: round(us, 1) for key, us in list(found.items())[:4]}
                print(
                    f"{name}: floor {floor:.1f}, cuBLAS {cublas:.1f}, best {value:.1f} us ({best}); {alone}", flush=True
                )
                sums[model, rows][0] += cublas * times / 1000
                sums[model, rows][1] += value * times / 1000
            del weights
            torch.cuda.empty_cache()
        for rows in ROWS:
            cublas, value = sums[model, rows]
            report[f"{model} {rows}"] = {"cuBLAS ms": round(cublas, 3), "best ms": round(value, 3)}
            said = PREDICTIONS[f"{model} {rows}"]
            print(
                f"== {model}, {rows} rows, a step's: cuBLAS {cublas:.3f}, best {value:.3f} ms; predicted {said}",
                flush=True,
            )
    return report


def time_product(rows: int, weights: list[torch.Tensor], products: dict[str, Product]) -> dict[str, float]:
    """Microseconds, the fastest first."""
    x = torch.randn(rows, weights[0].shape[1], device="cuda", dtype=torch.bfloat16)
    found = {}
    for name, product in {"cuBLAS": F.linear, **products}.items():
        found[name] = round(common.tried(lambda p=product: common.graph_us([lambda w=w: p(x, w) for w in weights])), 2)  # type: ignore[misc]
    return dict(sorted(found.items(), key=lambda item: item[1]))


PAGES: Final = 20480  # of 2 MiB
LAYERS: Final = 32


def time_cache(end: float) -> dict[str, Any]:
    """Microseconds a layer, over all layers in one graph, for both orders of the cache."""
    spec = KVCacheSpec(LAYERS, PAGES, 16, 8, 128, torch.bfloat16, torch.device("cuda"))
    report: dict[str, Any] = {}
    for layout in (layer_first, page_first):
        cache = layout(spec)
        for k, v in cache:
            k.normal_()
            v.normal_()
        for batch, context in ((64, 1024), (64, 8192), (256, 1024), (256, 8192)):
            if time.perf_counter() > end:
                return {**report, "left out from": f"{layout.__name__} {batch}x{context}"}
            report[f"cache {batch}x{context}, {layout.__name__}"] = time_layers(cache, batch, context)
        prompt = metadata_of(1, 8192, 8192)
        calls = [lambda k=k, v=v, p=prompt: gather_pages(k, v, p, 8192) for k, v in cache]  # type: ignore[misc]
        report[f"cache gather 1x8192, {layout.__name__}"] = round(common.tried(lambda c=calls: common.graph_us(c)), 2)  # type: ignore[misc]
        del cache, calls
        torch.cuda.empty_cache()
    for name in [name.removesuffix(", layer_first") for name in report if name.endswith("layer_first")]:
        layer, page = report[f"{name}, layer_first"], report[f"{name}, page_first"]
        said = PREDICTIONS[name]
        told = f"layer first {layer:.1f}, page first {page:.1f} us a layer ({page / layer - 1:+.1%})"
        print(f"{name}: {told}; predicted {said}", flush=True)
    return report


def metadata_of(batch: int, tokens: int, context: int) -> AttentionMetadata:
    """Pages at random; where the cache has too few for all, some stand in several tables, far apart in time."""
    count = batch * context // 16
    pages = torch.cat([torch.randperm(PAGES, device="cuda") for _ in range(-(-count // PAGES))])[:count]
    starts = torch.arange(0, batch * tokens + 1, tokens, dtype=torch.int32, device="cuda")
    contexts = torch.full((batch,), context, dtype=torch.int32, device="cuda")
    tables = pages.view(batch, -1).int()
    return AttentionMetadata(starts, contexts, tables, max_query_len=tokens, max_context_len=context)


def time_layers(cache: list[tuple[torch.Tensor, torch.Tensor]], batch: int, context: int) -> float:
    q = torch.randn(batch, 32, 128, device="cuda", dtype=torch.bfloat16)
    metadata = metadata_of(batch, 1, context)
    calls = [lambda k=k, v=v: paged_attention(q, k, v, metadata, 128**-0.5) for k, v in cache]  # type: ignore[misc]
    return round(common.tried(lambda: common.graph_us(calls, 7)), 2)


SECTIONS: Final = {"cache": time_cache, "gemm": time_gemm}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--seconds", type=float, default=110.0, help="nothing begins after so many (default: 110)")
    arguments = parser.parse_args()
    start = time.perf_counter()
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name in arguments.only:
        begin = time.perf_counter()
        try:
            with torch.inference_mode():
                report[name] = SECTIONS[name](start + arguments.seconds)
        except Exception as error:
            report[name] = {"failures": [repr(error)[:2000]]}
        torch.cuda.empty_cache()
        print(f"== {name}: {report[name].get('failures', 'ok')}, {time.perf_counter() - begin:.0f} s", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(any("failures" in report[name] for name in arguments.only))


if __name__ == "__main__":
    sys.exit(main())
