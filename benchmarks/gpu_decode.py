"""What a decode step of few rows is made of, on a GPU: products alone, and the choices in steps of whole models.

    python benchmarks/gpu_decode.py [--only right search profile products] [--models …] [--rows …] [--write]

- right: products against float64; logits of a whole step with overlapping launches equal to the bit to those without.
- search: a step in one CUDA graph at a context of 1024, of 1 and of 8 rows; choice after choice each candidate is
  tried, and the best is kept for those that follow. Then steps of other sizes with what was kept. With --write the
  products' best go into `octavo_kernels/tuned_products.json` as those of this device (`product_choices`).
- profile: the kernels of a layer, one after the other. (The profiler slows all that is timed after it.)
- products: each product of a step at 1 and 8 rows alone, by configuration, with weights past the L2.

Exit status 1 if something is wrong.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import gpu_kernels as common
import kernel_models
import torch
import torch.nn.functional as F
from guarded_sections import run_section

from octavo_common.model_config import parse_model_config
from octavo_kernels import (
    few_rows,
    gemv,
    paged_attention,
    product_choices,
    reference,
    rms_norm,
    rope,
    silu_and_mul,
    small_linear,
)
from octavo_kernels.few_rows import FewRowsConfig, few_rows_gated, few_rows_linear, few_rows_parts
from octavo_kernels.gemv import GemvConfig, gated_gemv

# Written down before the last run.
PREDICTIONS: Final = {
    "8b 1": "5.24 ms, as before: no norms and sums in the products any more",
    "0.6b 1": "0.77 ms, as before",
    "8b 8": "6.06 ms with the choices of two searches",
    "0.6b 8": "1.23 ms with the choices of the first one",
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
    *((1, 1024, 8), (1, 2048, 8), (1, 4096, 8), (2, 1024, 4), (2, 2048, 8), (2, 4096, 8)),
    *((4, 1024, 4), (4, 512, 4)),
)
# Outputs, inputs at a time, warps, stages, splits, ahead.
FEW: Final = {
    "linear": (
        *((32, 128, 4, 6, 1, 0), (32, 128, 4, 6, 1, 256), (32, 128, 4, 6, 1, 512), (32, 128, 2, 6, 1, 0)),
        *((16, 256, 2, 5, 1, 0), (16, 256, 2, 5, 1, 512), (64, 128, 4, 5, 1, 256), (32, 256, 4, 4, 1, 256)),
    ),
    "gated": (
        *((32, 128, 4, 5, 1, 0), (32, 128, 4, 5, 1, 256), (32, 128, 4, 5, 1, 512), (16, 128, 2, 6, 1, 256)),
        *((32, 128, 4, 4, 1, 256), (16, 256, 2, 4, 1, 256), (32, 256, 4, 3, 1, 256)),
    ),
    "split": (
        *((32, 128, 4, 6, 8, 0), (32, 128, 4, 6, 4, 0), (32, 128, 4, 6, 2, 0), (32, 128, 4, 6, 2, 512)),
        *((64, 128, 4, 5, 4, 0), (64, 128, 4, 5, 4, 256), (64, 128, 4, 4, 8, 0), (64, 128, 4, 5, 2, 256)),
        *((32, 128, 4, 6, 1, 0), (32, 256, 4, 4, 4, 0)),
    ),
}
# W into registers: outputs, inputs at a time, warps, splits.
REGISTERS: Final[dict[str, tuple[tuple[int, int, int, int], ...]]] = {
    "linear": ((16, 512, 4, 1), (16, 1024, 4, 1), (32, 512, 8, 1)),
    "gated": (),
    "split": ((16, 512, 4, 1), (16, 512, 4, 2), (16, 512, 4, 4), (32, 512, 4, 4), (32, 512, 8, 1)),
}
DEVICE: Final = torch.device("cuda", 0)
OFF: Final = {"OVERLAP": False, "launch_pdl": False}
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@contextmanager
def without_overlap() -> Iterator[None]:
    modules = (few_rows, gemv, paged_attention, rms_norm, rope, silu_and_mul)
    usual = [module.overlap for module in modules]
    for module in modules:
        module.overlap = lambda _, late=False: OFF  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, before in zip(modules, usual, strict=True):
            module.overlap = before


def candidates(rows: int, kind: str, inputs: int) -> dict[str, Product]:
    """What is tried, by name."""
    found: dict[str, Product] = {}
    if rows == 1:
        product = gated_gemv if kind == "gated" else gemv.gemv
        for c in (c for c in GEMV if c[1] <= inputs):
            config = GemvConfig(*c)
            found["gemv {}x{} w{}".format(*c)] = lambda x, w, c=config, p=product: p(x, w, None, c)  # type: ignore[misc]
    for f in few_rows_configs(kind, inputs) if rows > 1 else ():
        found[name_of(f)] = product_of(kind, f)
    return found


def few_rows_configs(kind: str, inputs: int) -> list[FewRowsConfig]:
    few = [FewRowsConfig(*f) for f in FEW[kind]]
    for outputs, block_k, warps, splits in REGISTERS[kind]:
        if block_k * splits <= inputs:
            few.append(FewRowsConfig(outputs, block_k, warps, 1, splits, registers=True))
    return few


def name_of(c: FewRowsConfig) -> str:
    if c.registers:
        return f"registers {c.block_n}x{c.block_k} w{c.num_warps} /{c.splits}"
    return f"tiles {c.block_n}x{c.block_k} w{c.num_warps} s{c.num_stages} /{c.splits} ahead {c.ahead}"


def product_of(kind: str, config: FewRowsConfig) -> Product:
    if kind == "gated":
        return lambda x, w: few_rows_gated(x, w, None, config)
    if kind == "split":
        return lambda x, w: few_rows_parts(x, w, config)
    return lambda x, w: few_rows_linear(x, w, None, config)


@dataclass(frozen=True)
class Task:
    """A product to compile."""

    rows: int
    kind: str
    inputs: int
    name: str


def compile_one(task: Task) -> str | None:
    """In a process of its own: what fails here fails again, and is told, where it is timed."""
    x, w = (torch.zeros(n, task.inputs, device="cuda", dtype=torch.bfloat16) for n in (task.rows, 128))
    try:
        candidates(task.rows, task.kind, task.inputs)[task.name](x, w)
    except Exception as error:
        return f"{task}: {error!r}"[:200]
    return None


def sizes(searched: list[int]) -> list[int]:
    """Rows of which each that are searched stand for: up to 8 and up to 16 are two variants, and the search's own."""
    return sorted({rows for each in searched for rows in ((1,) if each == 1 else (8, 13))})


def compile_all(seconds: float, models: list[str], rows_of: list[int]) -> None:
    tasks = [
        Task(rows, kind, inputs, name)
        for kind, inputs in sorted({(kind, inputs) for name in models for _, inputs, _, kind in PRODUCTS[name]})
        for rows in sizes(rows_of)
        for name in candidates(rows, kind, inputs)
    ]
    begin = time.perf_counter()
    with ProcessPoolExecutor(14, mp_context=multiprocessing.get_context("spawn")) as pool:
        failed = [error for error in pool.map(compile_one, tasks, timeout=seconds, chunksize=4) if error]
    print(f"    {len(tasks)} compiled in {time.perf_counter() - begin:.0f} s; not: {failed}", flush=True)


def check_right(names: list[str], searched: list[int]) -> dict[str, Any]:
    failures = []
    for shapes in [PRODUCTS[name] for name in names]:
        for outputs, inputs, _, kind in shapes[:4]:
            weight = torch.randn(2 * outputs if kind == "gated" else outputs, inputs, device="cuda").bfloat16()
            for rows in sizes(searched):
                x = torch.randn(rows, inputs, device="cuda").bfloat16() / inputs**0.5
                truth = x.double() @ weight.double().t()
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


def time_products(end: float, names: list[str], searched: list[int]) -> dict[str, Any]:
    """Microseconds, one after the other, overlapping; the best of each shape and their sum over a step."""
    report: dict[str, Any] = {}
    for model in names:
        shapes = PRODUCTS[model]
        sums = {rows: [0.0, 0.0] for rows in searched}
        for outputs, inputs, times, kind in shapes:
            rows_of_w = 2 * outputs if kind == "gated" else outputs
            copies = max(2, min(32, int(2e8 / (rows_of_w * inputs * 2))))
            weights = [torch.randn(rows_of_w, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
            floor = rows_of_w * inputs * 2 / common.BANDWIDTH * 1e6
            for rows in searched:
                if time.perf_counter() > end:
                    return {**report, "left out from": f"{model} {inputs} to {outputs}, {rows} rows"}
                x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
                found = time_product(x, weights, {"cuBLAS": F.linear, **candidates(rows, kind, inputs)})
                name = f"{model}: {rows} x {inputs} to {outputs} {kind}"
                report[name] = found
                shown = ", ".join(f"{key}: {us}" for key, us in list(found.items())[:8])
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


Patch = Callable[[], None]


class Model:
    """Random weights, a cache, and steps over it."""

    def __init__(self, name: str, most: int) -> None:
        self.config = parse_model_config(kernel_models.MODELS[name])
        self.decoder = kernel_models.random_decoder(self.config, False)
        self.cache = kernel_models.random_cache(self.config, most * (kernel_models.CONTEXT // 16 + 1))

    def step(self, requests: int, room: int | None = None) -> Callable[[], object]:
        """room: tokens of the longest context that the graph is made for."""
        batch = kernel_models.batch_of(requests, 1, kernel_models.CONTEXT, self.cache)
        if room is not None:
            tables = F.pad(batch.block_tables, (0, room // 16 - batch.block_tables.shape[1]))
            batch = replace(batch, max_context_len=room, block_tables=tables)
        out = torch.empty(requests, self.config.vocab_size, device="cuda")
        return lambda: self.decoder.logits(self.decoder.forward(batch, self.cache), out)


def step_ms(step: Callable[[], object]) -> float:
    return round(common.tried(lambda: common.graph_us([step], 15) / 1000), 4)


def search(end: float, names: list[str], searched: list[int]) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for name in names:
        model = Model(name, 256)
        for rows in searched:
            if time.perf_counter() > end:
                return {**report, "left out from": f"{name} {rows}"}
            report[f"{name} {rows}"] = descend(name, rows, model.step(rows), end)
            with without_overlap():
                print(f"    {name} {rows}, without overlap: {step_ms(model.step(rows))} ms", flush=True)
        for rows in (1, 2, 4, 8, 16):
            told = [step_ms(model.step(rows)), step_ms(model.step(rows, 16384))]
            if 1 < rows <= 16:
                usual, small_linear.MOST_ROWS = small_linear.MOST_ROWS, 1
                told.append(step_ms(model.step(rows)))
                small_linear.MOST_ROWS = usual
            report[f"{name} {rows}, and with room for 16384, and cuBLAS"] = told
            print(
                f"    {name} {rows}: {told[0]} ms, with room for 16384 tokens {told[1]}, by cuBLAS {told[2:]}",
                flush=True,
            )
        del model
        torch.cuda.empty_cache()
    return report


def descend(name: str, rows: int, step: Callable[[], object], end: float) -> dict[str, Any]:
    """Milliseconds of each candidate of each choice, on top of the best of those before."""
    best = step_ms(step)
    found: dict[str, Any] = {"first": best}
    print(f"{name} {rows}: {best} ms; predicted {PREDICTIONS.get(f'{name} {rows}', '-')}", flush=True)
    for choice, options in (choices_of_one(name) if rows == 1 else choices_of_few(name, rows)).items():
        if time.perf_counter() > end:
            break
        times = {}
        for option, patch in options.items():
            patch()
            times[option] = step_ms(step)
        winner = min(times, key=lambda option: times[option])
        # Within the noise the first one stays.
        if times[winner] > 0.998 * next(iter(times.values())):
            winner = next(iter(times))
        options[winner]()
        found[choice] = {"taken": winner, **times}
        print(f"    {choice}: {winner}; {times}", flush=True)
    found["last"] = step_ms(step)
    print(f"== {name} {rows}: {found['last']} ms", flush=True)
    return found


def setter(module: Any, key: str, value: Any) -> Patch:
    return lambda: setattr(module, key, value)


def overlaps(module: Any) -> dict[str, Patch]:
    return {
        "as chosen": setter(module, "overlap", module.overlap),
        "none": setter(module, "overlap", lambda _, late=False: OFF),
    }


def attentions(rows: int, *cuts: tuple[int, int, int, int, int, int, bool]) -> dict[str, Patch]:
    """cuts: keys, warps, stages, programs wanted, the least keys of a split, keys ahead, late; first the usual one."""
    usual = paged_attention.decode_config

    def patch(cut: tuple[int, int, int, int, int, int, bool]) -> Patch:
        *numbers, ahead, late = cut

        def config(dtype: torch.dtype, block_d: int, group: int, programs: int) -> paged_attention.AttentionConfig:
            if programs != 8 * rows:
                return usual(dtype, block_d, group, programs)
            return paged_attention.AttentionConfig(16, *numbers, ahead=ahead, late=bool(late))

        return setter(paged_attention, "decode_config", config)

    return {"as chosen": setter(paged_attention, "decode_config", usual), **{str(cut): patch(cut) for cut in cuts}}


def entry(table: dict[tuple[int, int], Any], shape: tuple[int, int], config: object, usual: object) -> Patch:
    """Puts a configuration into a table; what comes of the rules, or stands there, stays as it is."""
    if config == usual and shape not in table:
        return lambda: table.pop(shape, None) and None
    return lambda: table.update({shape: config})


def choices_of_one(name: str) -> dict[str, dict[str, Patch]]:
    table = product_choices.tuned(DEVICE).one_row
    found: dict[str, dict[str, Patch]] = {}
    for outputs, inputs, _, kind in PRODUCTS[name]:
        shape = (2 * outputs if kind == "gated" else outputs, inputs)
        usual = product_choices.one_row(torch.empty(shape, device=DEVICE, dtype=torch.bfloat16))
        configs = dict.fromkeys((usual, *(GemvConfig(*c) for c in GEMV if c[1] <= inputs)))
        found[f"{inputs} to {shape[0]}"] = {str(c): entry(table, shape, c, usual) for c in configs}
    found["attention"] = attentions(
        *(1, (128, 4, 3, 128, 128, 0, False), (128, 4, 3, 128, 128, 128, True), (64, 4, 3, 128, 64, 64, False)),
        *((64, 4, 2, 264, 64, 64, False), (128, 8, 3, 64, 128, 128, False)),
    )
    return found


def choices_of_few(name: str, rows: int) -> dict[str, dict[str, Patch]]:
    tuned, found = product_choices.tuned(DEVICE), dict[str, dict[str, Patch]]()
    table = tuned.eight_rows if rows <= 8 else tuned.sixteen_rows
    for outputs, inputs, _, kind in PRODUCTS[name]:
        shape = (2 * outputs if kind == "gated" else outputs, inputs)
        rule = {"gated": product_choices.few_rows_of_gates, "split": product_choices.few_rows_in_parts}
        weight = torch.empty(shape, device=DEVICE, dtype=torch.bfloat16)
        usual = rule.get(kind, product_choices.few_rows)(weight, rows)
        configs = dict.fromkeys((usual, *few_rows_configs(kind, inputs)))
        found[f"{inputs} to {shape[0]}"] = {name_of(c): entry(table, shape, c, usual) for c in configs}
    found["attention"] = attentions(
        *(rows, (64, 4, 2, 528, 256, 0, True), (64, 4, 2, 528, 256, 128, True), (64, 4, 2, 528, 256, 64, False)),
        *((128, 4, 2, 264, 256, 64, True), (64, 4, 3, 264, 256, 64, True)),
    )
    found["norms overlap"], found["products overlap"] = overlaps(rms_norm), overlaps(few_rows)
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


def show_profiles(end: float) -> dict[str, Any]:
    for name in ("0.6b", "8b"):
        model = Model(name, 8)
        for rows in (1, 8):
            if time.perf_counter() < end:
                print(f"{name} {rows}, without overlap:", flush=True)
                with without_overlap():
                    profile(model.step(rows))
        del model
        torch.cuda.empty_cache()
    return {}


SECTIONS: Final = ("right", "search", "profile", "products")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--models", nargs="+", choices=PRODUCTS, default=list(PRODUCTS), metavar="MODEL")
    parser.add_argument(
        "--rows", nargs="*", type=int, choices=(1, 8, 16), default=[1, 8], help="of `right`, `search`, `products`"
    )
    parser.add_argument("--write", action="store_true", help="the best products of `search`, into the table of devices")
    parser.add_argument("--compiled", action="store_true", help="the kernels are in Triton's cache")
    parser.add_argument("--tiles-only", action="store_true", help="no candidates with the weight in registers")
    parser.add_argument("--seconds", type=float, default=80.0, help="nothing begins after so many (default: 80)")
    arguments = parser.parse_args()
    sections = {
        "right": lambda _: check_right(arguments.models, arguments.rows),
        "search": lambda end: search(end, arguments.models, arguments.rows),
        "profile": show_profiles,
        "products": lambda end: time_products(end, arguments.models, arguments.rows),
    }
    end = time.perf_counter() + arguments.seconds
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    if arguments.tiles_only:
        REGISTERS.update(dict.fromkeys(REGISTERS, ()))
    if not arguments.compiled:
        compile_all(arguments.seconds, arguments.models, arguments.rows)
    for name in arguments.only:
        run_section(report, name, partial(sections[name], end), file=arguments.json)
    if arguments.write and "failures" not in report.get("search", {}):
        tables = product_choices.read(product_choices.FILE.read_text(encoding="utf-8"))
        tables[report["device"]] = product_choices.tuned(DEVICE)
        product_choices.FILE.write_text(product_choices.to_json(tables), encoding="utf-8")
    return int(any("failures" in report[name] for name in arguments.only))


if __name__ == "__main__":
    sys.exit(main())
