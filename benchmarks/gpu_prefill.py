"""What prefill is made of, on a GPU: its products with what stands between them, and steps of an engine.

    python benchmarks/gpu_prefill.py [--only SECTION ...] [--json FILE] [--seconds SECONDS]

- right: products of Hopper's own kernel against float64, and against cuBLAS and `silu_and_mul` to the bit.
- attention: of chunks, by each way to cut the work.
- sustained: whole layers without attention for half a second each, in turns: at the card's power limit, where prefill
  runs, other things count than for one product alone.
- layers: the same once, from few rows to many, by the tile of each product.
- engine: the 8B shape: prefill, first token, decode, throughput B step by step, a shared prefix; kernels by their time.
- small, small-profile: the 0.6B shape: throughput A, decode, first token; kernels of its decode steps.

Exit status 1 if something is wrong.
"""

import argparse
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "tests/support", "benchmarks")]

import gpu_kernels as common  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from guarded_sections import run_section  # noqa: E402
from kernel_checks import Case  # noqa: E402

from octavo_kernels.hopper_attention import CONFIGS  # noqa: E402
from octavo_kernels.hopper_linear import HopperLinearConfig, hopper_gated, hopper_linear  # noqa: E402
from octavo_kernels.rms_norm import add_rms_norm, rms_norm  # noqa: E402
from octavo_kernels.silu_and_mul import silu_and_mul  # noqa: E402

# Written down before the second run; what the first one brought: benchmarks/LOG.md.
PREDICTIONS: Final = {
    "attention": "TFLOP/s at 1x2048 510 (448), 1x4096 600 (557), 1x8192 640 (616), 4x2048 500 (481), 16x512 as before",
    "sustained": "2048: 1.40 ms a layer as it is, 1.325 gated and added, 1.32 with own qkv, 1.34 with own all; 8192: "
    "5.6, 5.2, 5.15, 5.2",
    "layers": "gated 5 us less at 128 and at 64 rows, nothing at 24; added 3 us less at 512, 1 at 256; own qkv 2 us "
    "and own down 3 us less at 128; of 0.6B gated 2 us less at 128, 4 at 512",
    "engine": "32x2048 46,000 (43,750), 1x8192 42,000 (39,540), first token 8.2 (8.4) / 12.0 / 21.8 / 44 / 94 (97.3), "
    "decode 64 9.1, 256 18.9, B 10,550 (10,225), prefix 0.35",
    "small": "A 20,300 (20,031)",
}
WIDTHS: Final = {"qkv": (6144, 4096), "o": (4096, 4096), "gates": (28672, 4096), "down": (4096, 14336)}
SMALL: Final = {"qkv": (4096, 1024), "o": (1024, 2048), "gates": (6144, 1024), "down": (1024, 3072)}  # 0.6B
ROWS: Final = (24, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# Groups, outputs, stages, band.
GATED: Final = ((2, 256, 4, 16), (2, 128, 6, 16), (1, 256, 5, 16), (1, 128, 8, 16))
NARROW: Final = (1, 64, 10, 16)


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
    calls += [lambda c=c: hopper_linear(x, w, HopperLinearConfig(*c)) for c in (*GATED, NARROW)]  # type: ignore[misc]
    calls += [lambda c=c: Case([(64, 64)], poison=False).run_hopper(c) for c in CONFIGS]  # type: ignore[misc]
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
        for configs, product, want in (
            (GATED, hopper_gated, gated),
            ((*GATED, NARROW), hopper_linear, truth),
        ):
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


@dataclass(frozen=True)
class Way:
    """How a layer's products are computed: by cuBLAS but for those that are named, with a tile each.

    added: the residual stream is added by cuBLAS, not by the norm behind it.
    """

    gated: tuple[int, ...] | None = None
    added: bool = False
    own: tuple[tuple[str, tuple[int, ...]], ...] = ()


def own_product(config: tuple[int, ...]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    made = HopperLinearConfig(*config)
    return lambda x, w: hopper_linear(x, w, made)


class Layers:
    """Some layers of a shape without attention, in place over one stream."""

    def __init__(self, rows: int, widths: dict[str, tuple[int, int]], count: int = 4) -> None:
        self.weights = [
            {name: draw(*shape, scale=shape[1] ** -0.5) for name, shape in widths.items()} for _ in range(count)
        ]
        hidden, heads = widths["o"]
        self.heads, self.norm = heads, torch.ones(hidden, device="cuda", dtype=torch.bfloat16)
        self.hidden = draw(rows, hidden)

    def run(self, way: Way) -> None:
        hidden, pending, own = self.hidden, self.hidden * 0, dict(way.own)
        product = {name: own_product(own[name]) if name in own else F.linear for name in WIDTHS}
        for w in self.weights:
            x = rms_norm(hidden, self.norm, 1e-5) if way.added else add_rms_norm(pending, hidden, self.norm, 1e-5)[0]
            x = product["qkv"](x, w["qkv"])[:, : self.heads]
            if way.added:
                hidden.addmm_(x, w["o"].t())
                x = rms_norm(hidden, self.norm, 1e-5)
            else:
                x, _ = add_rms_norm(product["o"](x, w["o"]), hidden, self.norm, 1e-5)
            if way.gated:
                x = hopper_gated(x, w["gates"], HopperLinearConfig(*way.gated))
            else:
                x = silu_and_mul(F.linear(x, w["gates"]))
            if way.added:
                hidden.addmm_(x, w["down"].t())
            else:
                pending = product["down"](x, w["down"])

    def graph(self, way: Way) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            self.run(way)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run(way)
        return graph

    def ms(self, way: Way) -> float:
        return common.tried(lambda: common.event_ms(self.graph(way).replay, 9))


def ways_of(rows: int) -> dict[str, Way]:
    """What is tried, by name: what stands before the first colon is one choice."""
    many, some, few, least = GATED
    ways = {"as it is": Way(), "added": Way(added=True)}
    if rows > 1024:
        ways |= {"gated: 2x256": Way(many), "gated: 1x256": Way(few), "both": Way(many, True)}
        ways |= {"both, own qkv": Way(many, True, (("qkv", many),))}
        ways |= {"gated, own all": Way(many, False, (("qkv", many), ("o", many), ("down", many)))}
        return ways
    ways |= {f"gated: {c[0]}x{c[1]}": Way(c) for c in (some, few, least, *([many] if rows > 256 else []))}
    ways |= {f"qkv: {c[0]}x{c[1]}": Way(own=(("qkv", c),)) for c in (some, few, least, NARROW)}
    for name in ("o", "down"):
        ways |= {f"{name}: {c[0]}x{c[1]}": Way(own=((name, c),)) for c in (some, least)}
    return ways


def best_of(ways: dict[str, Way], found: dict[str, float]) -> Way:
    """Of each choice the best one, where it is better than what there is by a hundredth of a microsecond."""
    gated, own = None, dict[str, tuple[int, ...]]()
    for choice in ("gated", "qkv", "o", "down"):
        name = min((name for name in ways if name.startswith(choice)), key=lambda each: found[each])
        if found[name] < found["as it is"]:
            gated = ways[name].gated or gated
            own |= dict(ways[name].own)
    return Way(gated, False, tuple(own.items()))


def time_layers(rows_tried: Sequence[int] = ROWS) -> dict[str, Any]:
    """Microseconds of a layer by each way, of two shapes, from few rows to many."""
    report = dict[str, Any]()
    for name, widths, count in (("8b", WIDTHS, 4), ("0.6b", SMALL, 12)):
        for rows in rows_tried:
            layers, found = Layers(rows, widths, count), dict[str, float]()
            ways = ways_of(rows)
            for way, how in ways.items():
                found[way] = round(1000 * layers.ms(how) / count, 2)
            if rows <= 1024:
                found["best of each"] = round(1000 * layers.ms(best_of(ways, found)) / count, 2)
            report[f"{name} {rows}"] = found
            print(f"   {name} {rows}, us a layer: {found}", flush=True)
            del layers
            torch.cuda.empty_cache()
    return report


ATTENTION: Final[dict[str, list[tuple[int, int]]]] = {
    **{f"{n}x{length}": [(length, length)] * n for n, length in ((1, 512), (1, 1024), (1, 2048), (1, 4096), (1, 8192))},
    **{f"{n}x{length}": [(length, length)] * n for n, length in ((4, 512), (4, 2048), (16, 512))},
    "2048 after 2048": [(2048, 4096)],
    "ragged": [(n, n) for n in range(100, 1001, 64)],
    "long, ragged": [(n, n) for n in (2500, 900, 3100, 1700)],
}


WAYS_OF_CHUNKS: Final = [
    replace(config, heads_first=heads, backwards=back)
    for config in (CONFIGS[0], CONFIGS[-1])
    for heads in (False, True)
    for back in (False, True)
]


def time_attention() -> dict[str, Any]:
    """TFLOP/s of chunks by each of the ways to cut the work; right first, where float64 has the time."""
    report, failures = dict[str, Any](), []
    for name, requests in ATTENTION.items():
        cases = [Case(requests, poison=False, seed=seed) for seed in range(3)]
        operations = sum(32 * 128 * 4 * n * (context - n + (n + 1) / 2) for n, context in requests)
        found = {}
        for config in WAYS_OF_CHUNKS:
            key = f"{config.groups}x{config.keys} {'heads' if config.heads_first else 'tiles'}"
            key += " back" if config.backwards else ""
            if sum(n for n, _ in requests) <= 2048:
                truth = cases[0].expected()
                error = float((cases[0].run_hopper(config).double() - truth).norm() / truth.norm())
                failures += [f"{name} {key}: {error:.1e}"] if not error < 6e-3 else []
            calls = [lambda x=x, c=config: x.run_hopper(c) for x in cases]  # type: ignore[misc]
            us = common.tried(lambda c=calls: common.graph_us(c))  # type: ignore[misc]
            found[key] = round(operations / us / 1e6)
        report[name] = found
        print(f"   {name}, TFLOP/s: {found}", flush=True)
    return {**report, **({"failures": failures} if failures else {})}


def time_sustained(seconds: float = 0.4) -> dict[str, Any]:
    """Milliseconds of a layer, the median over the later half of each turn; two turns."""
    report = dict[str, Any]()
    for rows in (2048, 8192):
        layers = Layers(rows, WIDTHS)
        graphs = {name: layers.graph(way) for name, way in ways_of(rows).items()}
        found: dict[str, list[float]] = {name: [] for name in graphs}
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

    report, bench = dict[str, Any](), sections.engine("8b")

    def note(figures: list[Any]) -> None:
        for figure in figures:
            report[figure.name] = figure.value
            print(f"   {figure.name} {figure.value} {figure.unit} {dict(figure.details)}", flush=True)

    try:
        note(sections.time_prefill(bench, [(1, 8192), (32, 2048)], repeat=3))
        note(sections.time_first_token(bench, [128, 512, 1024, 2048, 4096], repeat=7))
        note(sections.time_decode(bench, (64, 256), 1024))
        report["B"] = throughput_by_steps(bench)
        note(sections.time_prefix(bench))
        report["kernels"] = profile_prefill(bench)
    finally:
        bench.close()
    return report


def time_small_engine() -> dict[str, Any]:
    import figure_sections as sections

    report, bench = dict[str, Any](), sections.engine("0.6b")
    try:
        for figures in (
            lambda: sections.time_throughput(bench, sections.WORKLOADS["a"]),
            lambda: sections.time_decode(bench, (64, 256), 1024),
            lambda: sections.time_first_token(bench, [128, 512, 2048], repeat=7),
        ):
            for figure in figures():
                report[figure.name] = figure.value
                print(f"   {figure.name} {figure.value} {figure.unit} {dict(figure.details)}", flush=True)
    finally:
        bench.close()
    return report


def profile_small_engine() -> dict[str, Any]:
    import figure_sections as sections

    bench = sections.engine("0.6b")
    try:
        return profile_decodes(bench)
    finally:
        bench.close()


def throughput_by_steps(bench: Any, workload: str = "b") -> dict[str, Any]:
    """A throughput, and where its seconds go: steps with prefill, full decodes, the end."""
    from octavo_server.bench.workloads import WORKLOADS

    asks = WORKLOADS[workload].asks(0, bench.vocab_size)
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
    print(f"   {workload}: {found}; steps, s, host s: {table}", flush=True)
    print(f"      first steps: {kinds[:12]} ... {kinds[30:36]}", flush=True)
    return {**found, "steps": table}


def asks_of(bench: Any, count: int, length: int, tokens: int) -> list[Any]:
    from octavo_server.bench.workloads import Ask, random_prompt

    draw_ids = random.Random(1)
    return [Ask(random_prompt(draw_ids, length, bench.vocab_size), tokens, 0.6) for _ in range(count)]


def profile_prefill(bench: Any) -> dict[str, Any]:
    """Of 16 prompts of 2048 tokens."""
    asks = asks_of(bench, 16, 2048, 1)
    with bench.fresh() as engine:
        engine.run(asks[:4])
        return profiled("16x2048", lambda: engine.run(asks))


def profile_decodes(bench: Any, steps: int = 16) -> dict[str, Any]:
    """Of steps in which 128 requests of some 800 tokens decode."""
    with bench.fresh() as engine:
        for ask in asks_of(bench, 128, 800, 40):
            engine.add(ask)
        scheduler = engine.core.scheduler
        while scheduler.waiting or scheduler.num_prefill_tokens or not scheduler.running:
            engine.step()
        for _ in range(3):
            engine.step()
        return profiled(f"{steps} steps of 128 decodes", lambda: [engine.step() for _ in range(steps)])


def profiled(name: str, run: Callable[[], object]) -> dict[str, Any]:
    """Kernels by their time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
    events = [event for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    spent, count = Counter[str](), Counter[str]()
    for event in events:
        spent[event.name[:70]] += event.time_range.elapsed_us() / 1000
        count[event.name[:70]] += 1
    span = (max(e.time_range.end for e in events) - min(e.time_range.start for e in events)) / 1000
    busy = sum(spent.values())
    print(f"   {name}: {seconds:.3f} s, span {span:.1f} ms, busy {busy:.1f} ms", flush=True)
    for kernel, ms in spent.most_common(16):
        print(f"      {ms:9.2f} ms {count[kernel]:6d} x {1000 * ms / count[kernel]:8.1f} us  {kernel}", flush=True)
    return {"busy, ms": busy, **{kernel: (round(ms, 2), count[kernel]) for kernel, ms in spent.most_common(40)}}


SECTIONS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "right": check_right,
    "attention": time_attention,
    "sustained": time_sustained,
    "layers": time_layers,
    "engine": time_engine,
    "small": time_small_engine,
    "small-profile": profile_small_engine,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), help="of `layers`")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--seconds", type=float, default=100.0, help="no section begins after so many (default: 100)")
    arguments = parser.parse_args()
    sections = {**SECTIONS, "layers": lambda: time_layers(arguments.rows)}
    start, report, failed = time.perf_counter(), dict[str, Any](), False
    if not {"engine", "small", "small-profile"}.issuperset(arguments.only):
        warm_all()
    for name in arguments.only:
        if time.perf_counter() - start > arguments.seconds:
            print(f"== {name}: LEFT OUT", flush=True)
            continue
        inference = name not in ("engine", "small", "small-profile")
        failed |= not run_section(report, name, sections[name], inference=inference, file=arguments.json)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
