"""What a decode step of few rows is made of, on a GPU: products alone, and steps of whole models, by configuration.

    python benchmarks/gpu_decode.py [--json FILE] [--only right products models] [--seconds SECONDS]

- right: products against float64; logits of a whole step with overlapping launches equal to the bit to those without.
- products: each product of a step at 1 and 8 rows, by configuration, one after the other with weights past the L2.
- models: steps of whole models in one CUDA graph at a context of 1024, with and without overlap, by configuration.

Exit status 1 if something is wrong.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import gpu_kernels as common
import kernel_models
import torch
import torch.nn.functional as F

from octavo_common.model_config import parse_model_config
from octavo_kernels import few_rows, gemv, paged_attention, reference, rms_norm, rope, silu_and_mul, small_linear
from octavo_kernels.few_rows import FewRowsConfig, few_rows_gated, few_rows_linear, few_rows_parts
from octavo_kernels.gemv import GemvConfig, gated_gemv

# Written down before the first run.
PREDICTIONS: Final = {
    "8b 1": "5.25 ms (5.66 without overlap): 2 us a product to fill and drain, and half of 0.44 ms of small kernels",
    "8b 8": "6.0 ms (6.51): the same, less what tensor-core tiles cannot fetch ahead",
    "0.6b 1": "0.90 ms (1.14): 28 x 8 us of launches and first reads",
    "0.6b 8": "1.40 ms (1.67): splits for products of 1024 outputs, and the launches",
    "gemv": "stretches of a whole row of 4096: 1 us a product faster than 1024, as more is fetched before the wait",
    "few rows": "two splits and more for 4096 outputs: 10 % faster; ahead: 1 us a product",
}

# Outputs (gated: pairs), inputs, how often in a step, and what kind of map.
PRODUCTS: Final = {
    "8b": (
        *((6144, 4096, 32, "linear"), (4096, 4096, 32, "split"), (14336, 4096, 32, "gated")),
        *((4096, 14336, 32, "split"), (128256, 4096, 1, "linear")),
    ),
    "0.6b": (
        *((4096, 1024, 28, "linear"), (1024, 2048, 28, "split"), (3072, 1024, 28, "gated")),
        *((1024, 3072, 28, "split"), (151936, 1024, 1, "linear")),
    ),
}
# Outputs, inputs at a time, warps.
GEMV: Final = (
    *((1, 512, 2), (1, 1024, 8), (1, 2048, 8), (2, 1024, 2), (2, 1024, 4), (2, 2048, 8)),
    *((4, 512, 4), (4, 1024, 4), (4, 1024, 8), (8, 512, 4)),
)
# Outputs, inputs at a time, warps, stages, splits, ahead.
FEW: Final = {
    "linear": (
        *((32, 128, 4, 6, 1, 0), (32, 128, 2, 6, 1, 0), (32, 128, 4, 6, 1, 512), (16, 256, 2, 5, 1, 0)),
        *((32, 256, 4, 1, 1, 0), (32, 512, 4, 1, 1, 0), (16, 512, 2, 1, 1, 0), (16, 256, 2, 1, 1, 0)),
        *((32, 256, 2, 1, 1, 0), (64, 256, 8, 1, 1, 0), (16, 1024, 2, 1, 1, 0)),
    ),
    "gated": (
        *((32, 128, 4, 5, 1, 0), (32, 128, 4, 5, 1, 512), (16, 128, 2, 6, 1, 0), (16, 256, 2, 4, 1, 0)),
        *((32, 128, 4, 1, 1, 0), (32, 256, 4, 1, 1, 0), (16, 256, 2, 1, 1, 0), (16, 512, 2, 1, 1, 0)),
        (16, 512, 4, 1, 1, 0),
    ),
    "split": (
        *((32, 128, 4, 6, 4, 512), (64, 128, 4, 5, 4, 0), (64, 128, 4, 5, 4, 512), (64, 128, 4, 4, 8, 512)),
        *((32, 128, 4, 6, 8, 256), (32, 256, 4, 1, 4, 0), (32, 512, 4, 1, 4, 0), (16, 512, 2, 1, 2, 0)),
        *((16, 256, 2, 1, 4, 0), (32, 256, 4, 1, 8, 0), (64, 256, 8, 1, 4, 0)),
    ),
}
OFF: Final = {"OVERLAP": False, "launch_pdl": False}
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@contextmanager
def without_overlap() -> Iterator[None]:
    modules = (few_rows, gemv, paged_attention, rms_norm, rope, silu_and_mul)
    usual = gemv.overlap
    for module in modules:
        module.overlap = lambda _: OFF  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in modules:
            module.overlap = usual


def candidates(rows: int, kind: str, inputs: int) -> dict[str, Product]:
    """What is tried, by name."""
    found: dict[str, Product] = {}
    if rows == 1:
        norm = (torch.ones(inputs, device="cuda", dtype=torch.bfloat16), 1e-6)
        map_ = {
            "gated": lambda x, w, b, c: gated_gemv(x, w, b, c, norm=norm),
            "linear": lambda x, w, b, c: gemv.gemv(x, w, b, c, norm=norm),
            "split": gemv.gemv,
        }[kind]
        for c in GEMV:
            if c[1] <= inputs:
                found["gemv {}x{} w{}".format(*c)] = lambda x, w, c=c, m=map_: m(x, w, None, GemvConfig(*c))  # type: ignore[misc]
    for f in FEW[kind] if rows > 1 else ():
        found["tiles {}x{} w{} s{} /{} ahead {}".format(*f)] = product_of(kind, FewRowsConfig(*f))
    return found


def product_of(kind: str, config: FewRowsConfig) -> Product:
    if kind == "gated":
        return lambda x, w: few_rows_gated(x, w, None, config)
    if kind == "split":
        return lambda x, w: few_rows_parts(x, w, config)
    return lambda x, w: few_rows_linear(x, w, None, config)


def compile_one(task: tuple[int, str, int, str | FewRowsConfig]) -> str | None:
    """In a process of its own: what fails here fails again, and is told, where it is timed."""
    rows, kind, inputs, what = task
    x, w = (torch.zeros(n, inputs, device="cuda", dtype=torch.bfloat16) for n in (rows, 128))
    try:
        product = candidates(rows, kind, inputs)[what] if isinstance(what, str) else product_of(kind, what)
        product(x, w)
    except Exception as error:
        return f"{task}: {error!r}"[:200]
    return None


def compile_all(seconds: float) -> None:
    tasks: list[tuple[int, str, int, str | FewRowsConfig]] = []
    for outputs, inputs, _, kind in (shape for shapes in PRODUCTS.values() for shape in shapes):
        tasks += [(rows, kind, inputs, name) for rows in (1, 8) for name in candidates(rows, kind, inputs)]
        for one, gated, split in TRIPLES.values():
            config = {"linear": FewRowsConfig(*one), "gated": FewRowsConfig(*gated), "split": split_of(outputs, split)}
            tasks.append((8, kind, inputs, config[kind]))
    tasks = list(dict.fromkeys(tasks))
    begin = time.perf_counter()
    with ProcessPoolExecutor(14, mp_context=multiprocessing.get_context("spawn")) as pool:
        failed = [error for error in pool.map(compile_one, tasks, timeout=seconds, chunksize=4) if error]
    print(f"    {len(tasks)} compiled in {time.perf_counter() - begin:.0f} s; not: {failed}", flush=True)


def check_right() -> dict[str, Any]:
    failures = []
    for shapes in PRODUCTS.values():
        for outputs, inputs, _, kind in shapes[:4]:
            weight = torch.randn(2 * outputs if kind == "gated" else outputs, inputs, device="cuda").bfloat16()
            for rows in (1, 8, 13):
                x = torch.randn(rows, inputs, device="cuda").bfloat16() / inputs**0.5
                truth = (x.double() if rows > 1 or kind == "split" else normed(x)) @ weight.double().t()
                if kind == "gated":
                    truth = reference.silu_and_mul(truth)
                for name, product in candidates(rows, kind, inputs).items():
                    try:
                        found = product(x, weight)
                    except Exception:
                        continue
                    found = found.double().sum(0) if found.dim() == 3 else found.double()
                    error = ((found - truth).norm() / truth.norm()).item()
                    if not error <= 6e-3:
                        failures.append(f"{rows} x {inputs} to {outputs} {kind}, {name}: {error:.1e}")
    failures += check_overlap()
    return {"failures": failures} if failures else {}


def normed(x: torch.Tensor) -> torch.Tensor:
    return x.double() / (x.double().square().mean() + 1e-6).sqrt()


def check_overlap() -> list[str]:
    """Logits of a step, replayed 20 times, with overlap and without: names of batches where a bit differs."""
    config = parse_model_config(kernel_models.MODELS["0.6b"])
    decoder, failures = kernel_models.random_decoder(config, False), []
    cache = kernel_models.random_cache(config, 64 * 65)
    for requests in (1, 2, 8, 16, 64):
        batch = kernel_models.batch_of(requests, 1, kernel_models.CONTEXT, cache)
        with without_overlap():
            expected = decoder.logits(decoder.forward(batch, cache))
        graph, out = torch.cuda.CUDAGraph(), torch.empty_like(expected)
        decoder.logits(decoder.forward(batch, cache), out)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            decoder.logits(decoder.forward(batch, cache), out)
        for _ in range(20):
            out.fill_(torch.nan)
            graph.replay()
            graph.replay()
            if not torch.equal(out, expected):
                failures.append(f"{requests} rows: {(out != expected).sum().item()} logits differ with overlap")
                break
    return failures


def time_products(end: float) -> dict[str, Any]:
    """Microseconds, one after the other, overlapping; the best of each shape and their sum over a step."""
    report: dict[str, Any] = {}
    for model, shapes in PRODUCTS.items():
        sums = {1: [0.0, 0.0], 8: [0.0, 0.0]}
        for outputs, inputs, times, kind in shapes:
            rows_of_w = 2 * outputs if kind == "gated" else outputs
            copies = max(2, min(32, int(2e8 / (rows_of_w * inputs * 2))))
            weights = [torch.randn(rows_of_w, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
            floor = rows_of_w * inputs * 2 / common.BANDWIDTH * 1e6
            for rows in (1, 8):
                if time.perf_counter() > end:
                    return {**report, "left out from": f"{model} {inputs} to {outputs}, {rows} rows"}
                x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
                found = time_product(x, weights, {"cuBLAS": F.linear, **candidates(rows, kind, inputs)})
                name = f"{model}: {rows} x {inputs} to {outputs} {kind}"
                report[name] = found
                shown = ", ".join(f"{key}: {us}" for key, us in list(found.items())[:7])
                print(f"{name}: floor {floor:.1f}; {shown}; cuBLAS {found['cuBLAS']}", flush=True)
                sums[rows][0] += found["cuBLAS"] * times / 1000
                sums[rows][1] += min(found.values()) * times / 1000
            del weights
            torch.cuda.empty_cache()
        for rows, (cublas, best) in sums.items():
            print(f"== {model}, {rows} rows, a step's: cuBLAS {cublas:.3f}, best {best:.3f} ms", flush=True)
    return report


def time_product(x: torch.Tensor, weights: list[torch.Tensor], products: dict[str, Product]) -> dict[str, float]:
    """Microseconds, the fastest first."""
    found = {}
    for name, product in products.items():
        calls = [lambda w=w, p=product: p(x, w) for w in weights * -(-24 // len(weights))]  # type: ignore[misc]
        found[name] = round(common.tried(lambda c=calls: common.graph_us(c, 7)), 2)  # type: ignore[misc]
    return dict(sorted(found.items(), key=lambda item: item[1]))


def time_models(end: float) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for model in ("0.6b", "8b"):
        config = parse_model_config(kernel_models.MODELS[model])
        decoder = kernel_models.random_decoder(config, False)
        cache = kernel_models.random_cache(config, 256 * (kernel_models.CONTEXT // 16 + 1))
        for requests in (1, 8, 16, 64, 256):
            batch = kernel_models.batch_of(requests, 1, kernel_models.CONTEXT, cache)
            out = torch.empty(requests, config.vocab_size, device="cuda")

            def step(batch: Any = batch, out: torch.Tensor = out, decoder: Any = decoder, cache: Any = cache) -> object:
                return decoder.logits(decoder.forward(batch, cache), out)

            name = f"{model} {requests}"
            if time.perf_counter() > end:
                return {**report, "left out from": name}
            report[name] = round(common.tried(lambda s=step: common.graph_us([s]) / 1000), 3)  # type: ignore[misc]
            with without_overlap():
                plain = round(common.tried(lambda s=step: common.graph_us([s]) / 1000), 3)  # type: ignore[misc]
            report[f"{name}, without overlap"] = plain
            said = PREDICTIONS.get(name, "-")
            print(f"{name}: {report[name]} ms, without overlap {plain}; predicted {said}", flush=True)
            if requests >= 64:
                usual_ops = decoder.ops
                decoder.ops = replace(usual_ops, logits=lambda x, w, out: out.copy_(F.linear(x, w)))
                copied = round(common.tried(lambda s=step: common.graph_us([s]) / 1000), 3)  # type: ignore[misc]
                report[f"{name}, logits copied"], decoder.ops = copied, usual_ops
                print(f"    {name}, logits of 16 bits, copied: {copied} ms", flush=True)
            if requests <= 16:
                tables = F.pad(batch.block_tables, (0, 1024 - batch.block_tables.shape[1]))
                long = replace(batch, max_context_len=16384, block_tables=tables)
                long_ms = common.tried(lambda s=step, b=long: common.graph_us([lambda: s(b)]) / 1000)  # type: ignore[misc]
                report[f"{name}, room for 16384"] = round(long_ms, 3)
                print(f"    {name}, room for 16384 tokens: {long_ms:.3f} ms", flush=True)
            if requests <= 8:
                profile(step)
                with without_overlap():
                    profile(step)
            for kind, patched in variants(requests).items():
                usual = {key: getattr(module, key) for module, key, _ in patched}
                for module, key, value in patched:
                    setattr(module, key, value)
                report[f"{name}, {kind}"] = round(common.tried(lambda s=step: common.graph_us([s]) / 1000), 3)  # type: ignore[misc]
                for module, key, _ in patched:
                    setattr(module, key, usual[key])
                print(f"    {name}, {kind}: {report[f'{name}, {kind}']} ms", flush=True)
        del decoder, cache, step
        torch.cuda.empty_cache()
    return report


_PLAIN: Final = (32, 128, 4, 6, 1, 0), (32, 128, 4, 5, 1, 0), (32, 128, 4, 6, 0, 0)
# Of steps of 8 rows: the choices for qkv and head, for gate and up, and for output and down (their splits: two programs
# a processor, 8 at most).
TRIPLES: Final = {
    "split ahead 512": (*_PLAIN[:2], (32, 128, 4, 6, 0, 512)),
    "split 64 wide": (*_PLAIN[:2], (64, 128, 4, 5, 0, 0)),
    "split 64 wide, ahead 512": (*_PLAIN[:2], (64, 128, 4, 5, 0, 512)),
    "split registers": (*_PLAIN[:2], (32, 256, 4, 1, 0, 0)),
    "linear two warps": ((32, 128, 2, 6, 1, 0), *_PLAIN[1:]),
    "linear ahead 512": ((32, 128, 4, 6, 1, 512), *_PLAIN[1:]),
    "linear registers": ((32, 256, 4, 1, 1, 0), *_PLAIN[1:]),
    "linear registers 16": ((16, 512, 2, 1, 1, 0), *_PLAIN[1:]),
    "gated registers": (_PLAIN[0], (32, 128, 4, 1, 1, 0), _PLAIN[2]),
    "gated registers 16": (_PLAIN[0], (16, 256, 2, 1, 1, 0), _PLAIN[2]),
    "gated ahead 256": (_PLAIN[0], (32, 128, 4, 5, 1, 256), _PLAIN[2]),
    "all registers": ((32, 256, 4, 1, 1, 0), (32, 128, 4, 1, 1, 0), (32, 256, 4, 1, 0, 0)),
}


def split_of(outputs: int, choice: tuple[int, ...]) -> FewRowsConfig:
    return FewRowsConfig(*choice[:4], max(1, min(8, 264 * choice[0] // outputs)), choice[5])


def variants(requests: int) -> dict[str, list[tuple[Any, str, Any]]]:
    """Other choices for steps of so many rows: what stands where."""
    found: dict[str, list[tuple[Any, str, Any]]] = {}
    if requests <= 8:
        for keys in (0, 64, 256):
            found[f"{keys} keys of a split fetched"] = [(paged_attention, "_FETCHED_KEYS", keys)]
    if requests == 1:
        for c in ((2, 1024, 8), (2, 1024, 4), (4, 1024, 8), (4, 1024, 4), (4, 512, 4), (2, 2048, 8)):
            found[f"gemv {c}"] = [
                (gemv, "gemv_config", lambda n, c=c: GemvConfig(c[0], c[1] if n % c[1] == 0 else 1024, c[2]))
            ]
    if requests == 8:
        for name, (one, gated, split) in TRIPLES.items():
            found[name] = [
                (small_linear, "few_rows_config", lambda _, c=one: FewRowsConfig(*c)),
                (small_linear, "gated_config", lambda c=gated: FewRowsConfig(*c)),
                (small_linear, "split_config", lambda n, c=split: split_of(n, c)),
            ]
    return found


def profile(step: Callable[[], object]) -> None:
    """Prints the kernels of a step's middle layer: microseconds and the gap before, from a replayed graph."""
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(3):
            graph.replay()
        torch.cuda.synchronize()
    events = sorted(found.events(), key=lambda event: event.time_range.start)
    events = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    each = len(events) // 3
    heads = [i for i in range(each, 2 * each) if "rotate" in events[i].name]
    if len(heads) < 12:
        print("    profile:", [event.name for event in events[:5]], flush=True)
        return
    period = heads[11] - heads[10]
    spans: dict[int, list[tuple[float, float]]] = {}
    for head in heads[4:-2]:
        for offset in range(period):
            now, last = events[head + offset].time_range, events[head + offset - 1].time_range
            spans.setdefault(offset, []).append((now.end - now.start, now.start - last.end))
    told = []
    for offset, values in spans.items():
        times, gaps = zip(*values, strict=True)
        name = events[heads[10] + offset].name.replace("_kernel", "").strip("_")[:22]
        told.append(f"{name} {statistics.median(times):.1f} (+{statistics.median(gaps):.1f})")
    around = [
        f"{e.name[:30]} {e.time_range.elapsed_us():.1f}"
        for e in (*events[each : heads[0]], *events[2 * each - 3 : 2 * each])
    ]
    print("    a layer:", "; ".join(told), "| around:", "; ".join(around), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    sections = {"right": lambda _: check_right(), "models": time_models, "products": time_products}
    parser.add_argument("--only", nargs="+", choices=sections, default=list(sections), metavar="SECTION")
    parser.add_argument("--seconds", type=float, default=80.0, help="nothing begins after so many (default: 80)")
    arguments = parser.parse_args()
    end = time.perf_counter() + arguments.seconds
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    compile_all(arguments.seconds)
    for name in arguments.only:
        begin = time.perf_counter()
        try:
            with torch.inference_mode():
                report[name] = sections[name](end)
        except Exception as error:
            report[name] = {"failures": [repr(error)[:2000]]}
        torch.cuda.empty_cache()
        print(f"== {name}: {report[name].get('failures', 'ok')}, {time.perf_counter() - begin:.0f} s", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(any("failures" in report[name] for name in arguments.only))


if __name__ == "__main__":
    sys.exit(main())
