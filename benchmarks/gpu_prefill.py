"""What prefill is made of, on a GPU: its products with what stands between them, and steps of an engine.

    python benchmarks/gpu_prefill.py [--only right products sustained engine] [--json FILE] [--seconds SECONDS]

- right: products of Hopper's own kernel against cuBLAS and `silu_and_mul`, over ragged rows.
- products: each product of a layer of the 8B shape, by rows: the library's, and the kernel's by configuration.
- sustained: whole layers without attention for half a second each, in turns: at the card's power limit, where prefill
  runs, other things count than for one product alone.
- engine: steps of up to 8192 tokens against 2048: prefill, a shared prefix, first token, throughput B step by step;
  kernels by time.

Exit status 1 if something is wrong.
"""

import argparse
import json
import random
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "tests/support", "benchmarks")]

import gpu_kernels as common  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from octavo_kernels.hopper_linear import HopperLinearConfig, hopper_gated, hopper_linear  # noqa: E402
from octavo_kernels.rms_norm import add_rms_norm, rms_norm  # noqa: E402
from octavo_kernels.silu_and_mul import silu_and_mul  # noqa: E402

# Written down before the first run.
PREDICTIONS: Final = {
    "products": "gate-up at 2048: cuBLAS 680 us (707 TFLOP/s) + SwiGLU 60; the kernel 700 (690) with SwiGLU in it; "
    "at 8192 2650 + 245 against 2750; at 512 190 + 14 against 200",
    "addmm": "o and down 3 us slower at 2048 each, norm 22 -> 11 us",
    "sustained": "2048: 1.42 ms a layer, 1.37 gated, 1.36 with both; 8192: 5.6, 5.4, 5.35",
    "engine": "32x2048 43,000 in steps of 8192 (42,200 in 2048), first token of 4096 in one step 97 ms (99), "
    "B 10,100 (9,800), prefix 0.36 s in both",
}
WIDTHS: Final = {"qkv": (6144, 4096), "o": (4096, 4096), "gates": (28672, 4096), "down": (4096, 14336)}
ROWS: Final = (128, 512, 1024, 2048, 8192)
# Groups, outputs, stages, band.
GATED: Final = ((2, 256, 4, 16), (2, 256, 4, 8), (2, 256, 4, 64), (2, 256, 3, 16), (1, 256, 5, 16), (2, 128, 6, 16))
PLAIN: Final = ((2, 256, 4, 16), (2, 128, 6, 16), (1, 128, 8, 16), (1, 256, 5, 16))
COPIES: Final = 3


def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale


def warm(configs: list[Callable[[], object]]) -> None:
    """Compiles in threads; what fails here fails again where it is timed."""
    with ThreadPoolExecutor(12) as threads:
        for job in [threads.submit(each) for each in configs]:
            if job.exception() is not None:
                print("   ", str(job.exception())[:200], flush=True)
    torch.cuda.synchronize()


def warm_all() -> None:
    x, w = draw(64, 128), draw(512, 128)
    calls: list[Callable[[], object]] = [lambda c=c: hopper_gated(x, w, HopperLinearConfig(*c)) for c in GATED]  # type: ignore[misc]
    calls += [lambda c=c: hopper_linear(x, w, HopperLinearConfig(*c)) for c in PLAIN]  # type: ignore[misc]
    calls += [lambda: silu_and_mul(w), lambda: rms_norm(x, x[0], 1e-5), lambda: add_rms_norm(x, x.clone(), x[0], 1e-5)]
    warm(calls)


def check_right() -> dict[str, Any]:
    """Relative error against float64, ours and the library's; and values that differ from the library's."""
    report, failures = dict[str, Any](), []
    for rows, inputs, width in ((300, 4096, 2048), (2048, 1024, 3072), (77, 192, 200), (129, 4096, 14336)):
        x, weight = draw(rows, inputs), draw(2 * width, inputs, scale=inputs**-0.5)
        truth = F.linear(x.double(), weight.double())
        gated = F.silu(truth[:, :width]) * truth[:, width:]
        usual = silu_and_mul(F.linear(x, weight))
        for configs, product, want in ((GATED, hopper_gated, gated), (PLAIN, hopper_linear, truth)):
            for c in configs:
                found = product(x, weight, HopperLinearConfig(*c))
                error = float((found.double() - want).norm() / want.norm())
                name = f"{product.__name__} {rows}x{inputs}->{width} {c}"
                report[name] = error
                if not error < 6e-3:
                    failures.append(f"{name}: {error:.1e}")
        differ = int((hopper_gated(x, weight, HopperLinearConfig(*GATED[0])) != usual).sum())
        print(
            f"   {rows}x{inputs}->{width}: {error:.1e}; {differ} of {usual.numel()} differ from the library's",
            flush=True,
        )
    return {**report, **({"failures": failures} if failures else {})}


def time_products() -> dict[str, Any]:
    report = dict[str, Any]()
    weights = {name: [draw(*shape, scale=shape[1] ** -0.5) for _ in range(COPIES)] for name, shape in WIDTHS.items()}
    for rows in ROWS:
        report[str(rows)] = products_of(rows, weights)
    return report


def products_of(rows: int, weights: dict[str, list[torch.Tensor]]) -> dict[str, Any]:
    found = dict[str, Any]()
    inputs = {width: draw(rows, width) for width in (4096, 14336)}

    def measure(name: str, run: Callable[[torch.Tensor, torch.Tensor], object]) -> float:
        calls = [lambda w=w: run(inputs[w.shape[1]], w) for w in weights[name]]  # type: ignore[misc]
        return common.tried(lambda: common.graph_us(calls * (1 if rows > 1024 else 3), 5))

    for name, (outputs, width) in WIDTHS.items():
        times = {"cuBLAS": measure(name, F.linear)}
        if name in ("o", "down"):
            total = draw(rows, outputs)
            times["cuBLAS, added"] = measure(name, lambda x, w, t=total: torch.addmm(t, x, w.t(), out=t))  # type: ignore[misc]
        if name == "gates":
            times["and SwiGLU"] = measure(name, lambda x, w: silu_and_mul(F.linear(x, w)))
            for c in GATED:
                times[f"gated {c}"] = measure(name, lambda x, w, c=c: hopper_gated(x, w, HopperLinearConfig(*c)))  # type: ignore[misc]
        for c in PLAIN[:1] if rows > 1024 else PLAIN:
            times[f"plain {c}"] = measure(name, lambda x, w, c=c: hopper_linear(x, w, HopperLinearConfig(*c)))  # type: ignore[misc]
        found[name] = {key: round(value, 1) for key, value in times.items()}
        rate = 2 * rows * outputs * width / times["cuBLAS"] / 1e6
        print(f"   {rows} {name}, us ({rate:.0f} TFLOP/s by cuBLAS): {found[name]}", flush=True)
    x, total, weight = draw(rows, 4096), draw(rows, 4096), draw(4096)
    copies = [(draw(rows, 4096), draw(rows, 4096)) for _ in range(4)]
    norms = {
        "add_rms_norm": [lambda a=a, b=b: add_rms_norm(a, b, weight, 1e-5) for a, b in copies],  # type: ignore[misc]
        "rms_norm": [lambda a=a: rms_norm(a, weight, 1e-5) for a, _ in copies],  # type: ignore[misc]
    }
    found |= {name: round(common.graph_us(calls, 5), 1) for name, calls in norms.items()}
    print(f"   {rows} norms, us: { ({name: found[name] for name in norms}) }", flush=True)
    del x, total
    return found


class Layers:
    """Some layers of the 8B shape without attention, in place over one stream."""

    def __init__(self, rows: int, count: int = 4) -> None:
        self.weights = [
            {name: draw(*shape, scale=shape[1] ** -0.5) for name, shape in WIDTHS.items()} for _ in range(count)
        ]
        self.norm = torch.ones(4096, device="cuda", dtype=torch.bfloat16)
        self.hidden, self.rows = draw(rows, 4096), rows

    def run(self, gated: tuple[int, ...] | None, added: bool) -> None:
        hidden, pending = self.hidden, self.hidden * 0
        for w in self.weights:
            x = rms_norm(hidden, self.norm, 1e-5) if added else add_rms_norm(pending, hidden, self.norm, 1e-5)[0]
            x = F.linear(x, w["qkv"])[:, :4096]
            if added:
                torch.addmm(hidden, x, w["o"].t(), out=hidden)
                x = rms_norm(hidden, self.norm, 1e-5)
            else:
                x, _ = add_rms_norm(F.linear(x, w["o"]), hidden, self.norm, 1e-5)
            if gated:
                x = hopper_gated(x, w["gates"], HopperLinearConfig(*gated))
            else:
                x = silu_and_mul(F.linear(x, w["gates"]))
            if added:
                torch.addmm(hidden, x, w["down"].t(), out=hidden)
            else:
                pending = F.linear(x, w["down"])

    def graph(self, gated: tuple[int, ...] | None, added: bool) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            self.run(gated, added)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run(gated, added)
        return graph


def time_sustained(seconds: float = 0.45) -> dict[str, Any]:
    """Milliseconds of a layer, the median over the later half of each turn; two turns."""
    report = dict[str, Any]()
    for rows in (2048, 8192):
        layers = Layers(rows)
        ways = {"as it is": (None, False), "added": (None, True)}
        ways |= {f"gated {c}": (c, False) for c in GATED[:2]} | {"both": (GATED[0], True)}
        graphs = {name: layers.graph(*way) for name, way in ways.items()}
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(2):
            for name, graph in graphs.items():
                found[name].append(replayed_ms(graph, seconds) / len(layers.weights))
        report[str(rows)] = {name: [round(each, 4) for each in times] for name, times in found.items()}
        print(f"   {rows}, ms a layer: {report[str(rows)]}", flush=True)
        del layers, graphs
    return report


def replayed_ms(graph: torch.cuda.CUDAGraph, seconds: float) -> float:
    events = [torch.cuda.Event(enable_timing=True)]
    events[0].record()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        graph.replay()
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()
        if len(events) > 4:
            events[-4].synchronize()
    torch.cuda.synchronize()
    times = [before.elapsed_time(after) for before, after in pairwise(events)]
    return statistics.median(times[len(times) // 2 :])


def time_engine() -> dict[str, Any]:
    import figure_sections as sections

    report = dict[str, Any]()
    bench = sections.engine("8b", max_num_batched_tokens=8192)
    full = bench.limits

    def note(tokens: int, figures: list[Any]) -> None:
        for figure in figures:
            report[f"{figure.name}, {tokens}"] = figure.value
            print(f"   {tokens}: {figure.name} {figure.value} {figure.unit} {dict(figure.details)}", flush=True)

    try:
        for tokens in (8192, 2048):
            bench.limits = replace(full, max_num_batched_tokens=tokens)
            note(tokens, sections.time_prefill(bench, [(32, 2048)], repeat=2))
            note(tokens, sections.time_prefix(bench, repeat=2))
        note(2048, sections.time_first_token(bench, [128, 4096], repeat=5))
        bench.limits = replace(full, max_num_batched_tokens=4096)
        note(4096, sections.time_first_token(bench, [4096], repeat=5))  # in one step, without a graph
        for tokens in (8192, 2048):
            bench.limits = replace(full, max_num_batched_tokens=tokens)
            report[f"B, {tokens}"] = throughput_by_steps(bench, tokens)
        for tokens in (2048, 8192):
            bench.limits = replace(full, max_num_batched_tokens=tokens)
            report[f"kernels, {tokens}"] = profiled(bench, f"16x2048 in steps of {tokens}", [(16, 2048, 1)])
        report["kernels, 512 decode"] = profiled(bench, "512 decode", [(512, 16, 16)])
    finally:
        bench.close()
    return report


def throughput_by_steps(bench: Any, tokens: int) -> dict[str, Any]:
    """Throughput B, and where its seconds go: steps with prefill, full decodes, the end."""
    from octavo_server.bench.workloads import WORKLOADS

    asks = WORKLOADS["b"].asks(0, bench.vocab_size)
    bench.warm(asks)
    kinds = list[tuple[int, int]]()
    with bench.fresh() as engine:
        scheduler = engine.core.scheduler
        schedule = scheduler.schedule

        def noted() -> Any:
            output = schedule()
            if not output.is_empty:
                kinds.append((output.total_tokens, scheduler.num_prefill_tokens))
            return output

        scheduler.schedule = noted
        run = engine.run(asks)
        del scheduler.schedule
    rows = Counter[str](), Counter[str](), Counter[str]()
    for (total, prefill), step in zip(kinds, run.steps[1:], strict=False):
        kind = "prefill" if prefill else f"decode {-(-total // 64) * 64}"
        for counter, value in zip(rows, (1, step.seconds, step.host), strict=True):
            counter[kind] += value
    table = {kind: (count, round(rows[1][kind], 3), round(rows[2][kind], 3)) for kind, count in rows[0].items()}
    found = {
        "out tok/s": round(run.output_tokens / run.seconds),
        "s": round(run.seconds, 3),
        "preempted": run.preemptions,
    }
    print(f"   B, {tokens}: {found}; steps, s, host s: {table}", flush=True)
    print(f"      first steps: {kinds[:12]} ... {kinds[30:36]}", flush=True)
    return {**found, "steps": table}


def profiled(bench: Any, name: str, prompts: list[tuple[int, int, int]]) -> dict[str, Any]:
    """Kernels by their time, of one run."""
    from torch.profiler import ProfilerActivity, profile

    from octavo_server.bench.workloads import Ask, random_prompt

    draw_ids = random.Random(1)
    asks = [
        Ask(random_prompt(draw_ids, length, bench.vocab_size), out)
        for count, length, out in prompts
        for _ in range(count)
    ]
    with bench.fresh() as engine:
        engine.run(asks[: len(asks) // 4])
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            run = engine.run(asks)
            torch.cuda.synchronize()
    events = [event for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    spent, count = Counter[str](), Counter[str]()
    for event in events:
        spent[event.name[:70]] += event.time_range.elapsed_us() / 1000
        count[event.name[:70]] += 1
    begin, end = min(e.time_range.start for e in events), max(e.time_range.end for e in events)
    busy = sum(spent.values())
    print(
        f"   {name}: {run.seconds:.3f} s, {len(run.steps)} steps, span {(end - begin) / 1e3:.1f} ms, busy {busy:.1f} ms"
    )
    for kernel, ms in spent.most_common(16):
        print(f"      {ms:9.2f} ms {count[kernel]:6d} x {1000 * ms / count[kernel]:8.1f} us  {kernel}", flush=True)
    return {"busy, ms": busy, **{kernel: (round(ms, 2), count[kernel]) for kernel, ms in spent.most_common(40)}}


SECTIONS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "right": check_right,
    "sustained": time_sustained,
    "products": time_products,
    "engine": time_engine,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--seconds", type=float, default=100.0, help="no section begins after so many (default: 100)")
    arguments = parser.parse_args()
    start, report, failed = time.perf_counter(), dict[str, Any](), False
    if arguments.only != ["engine"]:
        warm_all()
    for name in arguments.only:
        begin = time.perf_counter()
        if begin - start > arguments.seconds:
            print(f"== {name}: LEFT OUT", flush=True)
            continue
        print(f"== {name}", flush=True)
        try:
            with torch.inference_mode(name != "engine"):
                report[name] = SECTIONS[name]()
        except Exception as error:
            traceback.print_exc(file=sys.stdout)
            report[name] = {"failures": [repr(error)[:500]]}
        torch.cuda.empty_cache()
        failures = report[name].get("failures", [])
        failed |= bool(failures)
        print(f"== {name}: {failures[:6] or 'ok'}, {time.perf_counter() - begin:.0f} s", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
