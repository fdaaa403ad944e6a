"""The figures of the performance page, measured: parts of `gpu_session.py`. Each gives rows for `figures.update`.

The engine's are those of `octavo bench`, by the same functions; one start of an engine serves many of them.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import http_figures
import torch
from figures import TABLE, Measured

from octavo_server.bench.decode import time_decode
from octavo_server.bench.engine import BenchEngine
from octavo_server.bench.kernels import time_attention, time_model
from octavo_server.bench.prefill import time_first_token, time_prefill
from octavo_server.bench.random_model import has_weights, read_shape, write_model
from octavo_server.bench.report import Figure
from octavo_server.bench.startup import time_startup
from octavo_server.bench.swap import time_copies, time_steps_beside, time_swap
from octavo_server.bench.throughput import time_prefix, time_prefix_cost, time_throughput
from octavo_server.bench.workloads import WORKLOADS, Lengths, Workload
from octavo_server.config import EngineConfig

HERE: Final = Path(__file__).resolve().parent
SHAPES: Final = {"8b": HERE / "shapes/llama-8b.json", "0.6b": HERE / "shapes/qwen3-0.6b.json"}
SCRATCH: Final = Path(tempfile.gettempdir()) / "octavo-figures"  # model directories, made once a machine
BATCHES: Final = (1, 8, 64, 256)
DECISIONS: Final = ("preemptions", "by swap", "GB out", "GB in", "steps")  # what tells runs of `figures_swap` apart


def engine(model: str, **config: Any) -> BenchEngine:
    """With random weights in bf16, as `octavo bench --random-weights` starts it."""
    directory = SCRATCH / model
    write_model(SHAPES[model], directory)
    given: dict[str, Any] = {"swap_space": 0.0, "dtype": "bfloat16", **config}
    found = BenchEngine(EngineConfig(model=directory, load_format="random", device="cuda", **given))
    print(f"   start: {found.start_seconds}; {found.num_pages} pages", flush=True)
    return found


def rows_of(model: str, figures: Sequence[Figure], command: str, names: dict[str, str] | None = None) -> list[Measured]:
    """Rows of those figures that the table has; all are printed. names: the table's where it is not MODEL-NAME."""
    rows = []
    for figure in figures:
        print(f"   {model} {figure.name}: {figure.value} {figure.unit} {dict(figure.details)}", flush=True)
        name = (names or {}).get(figure.name, f"{model}-{figure.name}" if model else figure.name)
        if name in TABLE:
            shape = f" --random-weights benchmarks/shapes/{SHAPES[model].name}" if model else ""
            rows.append(Measured(name, figure.value, command.replace("MODEL", shape.strip()), more=figure.details))
    return rows


def figures_8b() -> list[Measured]:
    """Decode, prefill, first token, throughput B, prefix caching and its cost, host time: one engine."""
    bench = engine("8b")
    try:
        decode = time_decode(bench, BATCHES, 1024)
        rows = rows_of("8b", decode, "octavo bench decode MODEL")
        for figure in decode:
            name = figure.name.replace("decode", "host")
            if name in TABLE:
                rows.append(Measured(name, figure.details["host, ms"], rows[0].command))
        prefill = time_prefill(bench, [(1, 8192), (32, 2048)])
        rows += rows_of("8b", prefill, "octavo bench prefill MODEL", {"prefill-1x8192": "8b-prefill-8192"})
        rows += rows_of("8b", time_first_token(bench, [128, 512, 1024, 2048, 4096]), "octavo bench ttft MODEL")
        rows += rows_of("8b", time_prefix(bench), "octavo bench prefix MODEL")
        cost = time_prefix_cost(bench, WORKLOADS["b"])
        rows += rows_of("8b", cost, "octavo bench throughput MODEL --workload b --prefix-cost --repeat 2")
        return rows
    finally:
        bench.close()


def price_of_invariance() -> dict[str, Any]:
    """What `--batch-invariant` costs: the 8B shape with and without, one engine after the other; what is more, in %."""
    found: dict[bool, dict[str, float]] = {}
    for invariant in (True, False):
        bench = engine("8b", batch_invariant=invariant)
        try:
            found[invariant] = {figure.name: figure.value for figure in invariance_figures(bench)}
        finally:
            bench.close()
    with_it, without = found[True], found[False]
    price = {
        name: round(100 * ((value / with_it[name] if name.startswith("prefill") else with_it[name] / value) - 1), 1)
        for name, value in without.items()
    }
    return {"with": with_it, "without": without, "more time, %": price, "failures": []}


def invariance_figures(bench: BenchEngine) -> list[Figure]:
    """Milliseconds of decode steps and to the first token, prompt tokens a second."""
    figures = time_decode(bench, BATCHES, 1024)
    figures += time_first_token(bench, [128, 1024])
    figures += time_prefill(bench, [(1, 8192), (8, 2048)])
    for figure in figures:
        told = f"{figure.name}: {figure.value} {figure.unit} {dict(figure.details)}"
        print(f"   invariant {bench.config.batch_invariant}, {told}", flush=True)
    return figures


def figures_06b() -> list[Measured]:
    """Decode and throughput A."""
    bench = engine("0.6b")
    try:
        rows = rows_of("0.6b", time_decode(bench, BATCHES, 1024), "octavo bench decode MODEL")
        throughput = time_throughput(bench, WORKLOADS["a"])
        return rows + rows_of("0.6b", throughput, "octavo bench throughput MODEL --workload a")
    finally:
        bench.close()


def figures_swap() -> list[Measured]:
    """Half of B on a quarter of the pages that 256 requests need, by each way to preempt; the copies.

    Where `auto` preempts as the better way does, both runs took the same steps, and the faster one counts for it.
    """
    bench = engine("8b", swap_space=8.0, kv_cache_memory_bytes=30 * 2**30, max_num_seqs=256)
    half = Workload("b", 256, Lengths(512, 512), Lengths(256, 256), 0.0)
    command = "octavo bench swap MODEL --requests 256 --max-num-seqs 256"
    try:
        runs = {figure.name: figure for figure in time_swap(bench, half)}
        other = max((runs["swap-swap"], runs["swap-recompute"]), key=lambda figure: figure.value)
        decided = [[run.details[key] for key in DECISIONS] for run in (runs["swap-auto"], other)]
        if decided[0] == decided[1] and other.value > runs["swap-auto"].value:
            runs["swap-auto"] = replace(other, name="swap-auto")
        better = other.value
        auto = rows_of("8b", list(runs.values()), command, {"swap-auto": "8b-swap"})
        rows = [Measured(each.name, each.value, each.command, goal=better, more=each.more) for each in auto]
        return rows + rows_of("8b", time_copies(bench) + time_steps_beside(bench), command)
    finally:
        bench.close()


def figures_start() -> list[Measured]:
    """The 8B shape, its weights written to a directory first: `octavo serve`, to the first token over HTTP."""
    directory, begin = SCRATCH / "8b-weights", time.perf_counter()
    if not has_weights(directory, read_shape(SHAPES["8b"])):
        write_model(SHAPES["8b"], directory, weights=True)
        print(f"   weights written in {time.perf_counter() - begin:.1f} s", flush=True)
    command = [sys.executable, "-m", "octavo_cli", "serve", str(directory), "--port", "0"]
    return rows_of("8b", time_startup(directory, command), "octavo bench startup MODEL")


def figures_kernels() -> list[Measured]:
    """Attention alone in the 8B shape, and both models at next to no context."""
    device, rows = torch.device("cuda"), list[Measured]()
    command = "octavo bench kernels MODEL".replace("MODEL", f"--random-weights benchmarks/shapes/{SHAPES['8b'].name}")
    decodes, prefills = [(64, 1024), (64, 8192), (256, 1024), (256, 8192)], [(1, 8192), (4, 2048), (16, 512)]
    with torch.inference_mode():
        found = time_attention(read_shape(SHAPES["8b"]), device, torch.bfloat16, decodes=decodes, prefills=prefills)
        rows += rows_of("", found, command)
        for model, path in SHAPES.items():
            rows_of(model, time_model(read_shape(path), device, torch.bfloat16, BATCHES), command)
            torch.cuda.empty_cache()
    return rows


def figures_http(model: str) -> list[Measured]:
    """TTFT and TPOT at rates of arrival, and throughput with all at once: see `http_figures`."""
    with tempfile.TemporaryDirectory() as folder:
        found = http_figures.measure(model, http_figures.LEVELS[model], [], Path(folder))
    failed = [error for level in found["levels"] for error in level["errors"]]
    if failed:
        raise RuntimeError(f"requests failed: {failed}")
    print(f"   {found['start']}, CPU seconds {found['cpu_seconds']}", flush=True)
    command = f"python benchmarks/http_figures.py --models {model}"
    rows = http_figures.rows_of(model, found, command)
    return [Measured(row["name"], row["value"], command, more=row["details"]) for row in rows]
