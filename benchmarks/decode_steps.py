"""Decode steps as the engine runs them, with graphs and without: equal, launched without waiting, and how fast.

Parts of `gpu_session.py`. Each function returns what it found; "failures" in it names what is wrong.
"""

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
from kernel_checks import TOLERANCE, Case, poisoned
from kernel_models import MODELS, random_weights

from octavo_server.config import EngineConfig
from octavo_server.engine.core import EngineCore
from octavo_server.engine_start import start_engine
from octavo_server.ipc import AddRequest, SamplingParams, TokenLogprobs
from octavo_server.worker import memory
from octavo_server.worker.models import decoder as decoders

DEMO: Final = Path(__file__).resolve().parent.parent / "server/octavo_server/demo_model"
CONTEXT: Final = 1024
BOUND: Final = 16_384  # tokens, of the contexts that a graph of the shapes with random weights is made for
TIMED, SETTLING = 12, 4  # steps
SIZES: Final = {"demo": (64, 8, 1), "0.6b": (256, 64, 8, 1), "8b": (256, 64, 8, 1)}
# Written down before the second run on a GPU, ms of a whole engine step with graphs.
PREDICTIONS: Final = {
    "demo 1": 0.40, "demo 8": 0.48, "demo 64": 0.81,
    "0.6b 1": 1.16, "0.6b 8": 1.68, "0.6b 64": 3.96, "0.6b 256": 11.4,
    "8b 1": 5.67, "8b 8": 6.53, "8b 64": 9.42, "8b 256": 19.1,
}  # fmt: skip
Answers = dict[str, list[tuple[int, TokenLogprobs]]]


def engine_of(model: Path, **config: Any) -> EngineCore:
    """An engine with all of its graphs and host memory."""
    engine = start_engine(EngineConfig(model=model, **config), lambda _phase: None)
    while engine.idle():
        continue
    return engine


def count_replays(engine: EngineCore) -> list[int]:
    """Grows by the rows of each graph that is replayed from now on."""
    graphs, sizes = engine.runner.graphs, list[int]()  # type: ignore[attr-defined]
    if graphs is not None:
        run = graphs.run
        graphs.run = lambda inputs, **options: (sizes.append(inputs.shape.rows), run(inputs, **options))[1]
    return sizes


def answer(engine: EngineCore, prompts: list[list[int]], sampling: SamplingParams) -> Answers:
    """All prompts in one batch; tokens with log-probabilities."""
    for index, prompt in enumerate(prompts):
        engine.add(AddRequest(0, str(index), prompt, sampling, 0.0))
    found: Answers = {str(index): [] for index in range(len(prompts))}
    while engine.has_work:
        for output in engine.step():
            if output.error:
                raise RuntimeError(output.error)
            found[output.request_id] += zip(output.token_ids, output.logprobs or (), strict=True)
    return found


def ids(answers: Answers) -> list[list[int]]:
    return [[token for token, _ in answer] for answer in answers.values()]


def check_graphs(prompts: list[list[int]], device: str = "cuda") -> dict[str, Any]:
    """Greedy answers of the demo model in fp32: with graphs, without, and on the CPU."""
    sampling = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True, logprobs=1)
    common: dict[str, Any] = {"dtype": "float32", "kv_cache_memory_bytes": 2**28}
    many = [prompt[: len(prompt) - index % 3] for index, prompt in enumerate(prompts * 2)]
    found: dict[str, Answers] = {}
    report: dict[str, Any] = {"failures": []}
    for name, where, config in (
        ("cpu", "cpu", {"enforce_eager": True}),
        ("eager", device, {"enforce_eager": True}),
        ("graphs", device, {}),
        ("graphs, step by step", device, {"async_scheduling": False}),
    ):
        engine = engine_of(DEMO, device=where, **common, **config)
        replays = count_replays(engine)
        found[name] = answer(engine, many, sampling)
        report[f"steps, replays: {name}"] = (engine.meter.num_steps, len(replays))
        if ("graphs" in name) != bool(replays):
            report["failures"].append(f"{name}: {len(replays)} replays")
        engine.close(1.0)
    for name in ("eager", "graphs", "graphs, step by step"):
        differing = sum(a != b for a, b in zip(ids(found["cpu"]), ids(found[name]), strict=True))
        report[f"answers that differ from the CPU's: {name}"] = differing
        if differing:
            report["failures"].append(f"{name}: {differing} of {len(many)} answers differ from the CPU's")
    return report


def check_invariant(prompts: list[list[int]], device: str = "cuda") -> dict[str, Any]:
    """Batch-invariant, bf16: tokens and log-probabilities, alone and among others, to the bit, with graphs or not."""
    sampling = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True, logprobs=1)
    common = {"device": device, "dtype": "bfloat16", "kv_cache_memory_bytes": 2**28, "batch_invariant": True}
    report: dict[str, Any] = {"failures": []}
    engine = engine_of(DEMO, **common, enforce_eager=True)
    want = [answer(engine, [prompt], sampling)["0"] for prompt in prompts]
    engine.close(1.0)
    engine = engine_of(DEMO, **common)
    replays = count_replays(engine)
    others = [prompt[: 7 + 3 * index] for index, prompt in enumerate(prompts * 3)]
    for company in (0, 2, 4, 13):
        for index, prompt in enumerate(prompts):
            got = answer(engine, [prompt, *others[:company]], sampling)["0"]
            if got != want[index]:
                report["failures"].append(f"prompt {index} beside {company} others differs from eager and alone")
    report["sizes replayed"] = sorted(set(replays))
    engine.close(1.0)
    return report


def check_synchronisation(prompts: list[list[int]], device: str = "cuda") -> dict[str, Any]:
    """Where launches of steps make the host wait, as torch sees it."""
    engine = engine_of(DEMO, device=device, dtype="bfloat16", kv_cache_memory_bytes=2**28)
    launch, found = engine.runner.launch, dict[str, int]()
    replays = count_replays(engine)

    def watched(*arguments: Any) -> Any:
        with watching(found):
            return launch(*arguments)

    engine.runner.launch = watched  # type: ignore[method-assign]
    for index in range(32):
        sampling = SamplingParams(
            temperature=0.8 if index % 2 else 0.0,
            top_p=0.9 if index % 3 else 1.0,
            top_k=40 if index % 4 == 0 else 0,
            max_tokens=40 + index,
            ignore_eos=True,
            seed=index,
            logprobs=3 if index % 5 == 0 else None,
        )
        engine.add(AddRequest(0, str(index), prompts[index % len(prompts)] * (1 + index % 4), sampling, 0.0))
    while engine.has_work:
        engine.step()
    report = {"steps": engine.meter.num_steps, "replays": len(replays), "places": found}
    engine.close(1.0)
    return {**report, "failures": [f"a launch waits: {place} ({count} times)" for place, count in found.items()]}


def compiled_kernels() -> dict[str, int]:
    """Variants of each Triton kernel of ours that there are in this process."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("octavo_")]
    kernels = {
        f"{module.__name__.rpartition('.')[2]}.{name}": kernel
        for module in modules
        for name, kernel in vars(module).items()
        if hasattr(kernel, "device_caches") and kernel.fn.__module__ == module.__name__
    }
    return {
        name: sum(len(caches[0]) for caches in kernel.device_caches.values())
        for name, kernel in sorted(kernels.items())
    }


def check_compiles(prompts: list[list[int]], device: str = "cuda") -> dict[str, Any]:
    """Kernels that are compiled once the engine is ready, for batches and prompts of many sizes: none should be."""
    report: dict[str, Any] = {"failures": []}
    for name, config in (("graphs", {}), ("eager", {"enforce_eager": True}), ("invariant", {"batch_invariant": True})):
        engine = start_engine(
            EngineConfig(model=DEMO, device=device, dtype="bfloat16", kv_cache_memory_bytes=2**28, **config),  # type: ignore[arg-type]
            lambda _phase: None,
        )
        before, longest = compiled_kernels(), min(900, engine.scheduler.limits.max_model_len - 8)
        for size in (1, 2, 3, 5, 8, 13, 31, 64, 100, 200):
            for index in range(size):
                text = (prompts[index % len(prompts)] * 40)[: 1 + 37 * index * size % longest]
                sampling = SamplingParams(temperature=0.5 * (index % 2), max_tokens=3 + index % 4, ignore_eos=True)
                engine.add(AddRequest(0, f"{size} {index}", text, sampling, 0.0))
            while engine.has_work:
                engine.step()
                engine.idle()
        after = compiled_kernels()
        new = {
            kernel: after[kernel] - before.get(kernel, 0) for kernel in after if after[kernel] > before.get(kernel, 0)
        }
        report[name] = {"variants": sum(after.values()), "compiled later": new}
        if new:
            report["failures"].append(f"{name}: compiled once the engine was ready: {new}")
        engine.close(1.0)
    return report


@contextmanager
def watching(found: dict[str, int]) -> Iterator[None]:
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
            for warning in caught:
                if "synchronizing CUDA operation" in str(warning.message):
                    place = f"{Path(warning.filename).name}:{warning.lineno}"
                    found[place] = found.get(place, 0) + 1


def check_bounds() -> dict[str, Any]:
    """Decode attention with room for contexts of 16,384 against room for those there are: the same bits, and the time.

    Shape of the 8B model, bf16; freed memory and what must not be read are NaN.
    """
    report: dict[str, Any] = {"failures": []}
    for contexts in ([1, 64, 1000, 65, 2000], [1024], [1024] * 8, [700 + 9 * index for index in range(64)]):
        name = f"{len(contexts)} x {max(contexts)}"
        case = Case([(1, context) for context in contexts])
        tight, truth = case.metadata, case.expected()
        tables = torch.full((len(contexts), BOUND // 16), 2**30, dtype=torch.int32, device="cuda")
        tables[:, : tight.block_tables.shape[1]] = tight.block_tables
        wide = replace(tight, block_tables=tables, max_context_len=BOUND)
        for invariant in (False, True):
            found = []
            for bound, metadata in (("tight", tight), ("wide", wide)):
                case.metadata = metadata
                found.append(poisoned(partial(case.run, invariant=invariant)))
                error = ((found[-1].double() - truth).norm() / truth.norm()).item()
                if not error <= TOLERANCE[torch.bfloat16]:
                    report["failures"].append(f"{name}, {bound}, invariant {invariant}: {error:.1e}")
                key = f"{name}{', invariant' if invariant else ''}, {bound}, us"
                report[key] = round(graph_ms(partial(case.run, invariant=invariant)) * 1000, 1)
            report[f"{name}, invariant {invariant}: elements that differ"] = int((found[0] != found[1]).sum())
            if invariant and not torch.equal(*found):
                report["failures"].append(f"{name}: bits depend on the bound")
    return report


def graph_ms(run: Callable[[], object], often: int = 20) -> float:
    """Of one of many runs in one graph."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(often):
            run()
    return event_ms(graph.replay) / often


def time_steps(
    model: str, device: str = "cuda", sizes: tuple[int, ...] | None = None, *, eager: bool = False
) -> dict[str, Any]:
    """Milliseconds of whole engine steps at a context of about 1024, all rows in decode, greedy, in bf16.

    The models other than "demo" are shapes with random weights. eager: in the same engine and on the same requests the
    graphs are taken away for as many steps.
    """
    sizes = sizes or SIZES[model]
    worst: list[float] = []
    with tempfile.TemporaryDirectory() as folder, measured_worst_steps(worst):
        phases: list[tuple[str, float]] = []
        if model == "demo":
            context = 200
            engine = start_engine(config_of(DEMO, device), lambda name: phases.append((name, time.perf_counter())))
        else:
            context = CONTEXT
            engine = random_engine(
                MODELS[model], Path(folder), device, lambda name: phases.append((name, time.perf_counter()))
            )
    phases.append(("ready", time.perf_counter()))
    seconds = {name: round(after - before, 2) for (name, before), (_, after) in pairwise(phases)}
    report: dict[str, Any] = {"start, s": seconds, "worst steps, s": worst, **capture_rest(engine)}
    if torch.cuda.is_available():
        report["worst steps without prompt log-probabilities, s"] = time_worst_steps(engine)
    print(f"{model}: {report}", flush=True)
    length = context - len(sizes) * (1 + eager) * (TIMED + SETTLING) // 2  # as many steps before as after
    sampling = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True)
    for index in range(sizes[0]):
        prompt = [(31 * index + 7 * position) % 1000 + 10 for position in range(length)]
        engine.add(AddRequest(0, str(index), prompt, sampling, 0.0))
    begun: set[str] = set()
    while len(begun) < sizes[0]:
        begun |= {output.request_id for output in engine.step() if output.token_ids}
    for size in sizes:
        # Those that came last stay: they have decoded least while others' prompts were read.
        gone = [name for name in engine.scheduler.requests if int(name) < sizes[0] - size]
        engine.abort(gone)
        report[str(size)] = time_size(engine, eager)
        predicted = PREDICTIONS.get(f"{model} {size}", "-")
        print(f"{model} {size}: {report[str(size)]}; predicted with graphs {predicted}", flush=True)
    engine.close(1.0)
    return report


def time_size(engine: EngineCore, eager: bool) -> dict[str, Any]:
    """ms of a step with graphs and without; of its launch on the host; and of the graph alone, by device events."""
    graphs, runner = engine.runner.graphs, engine.runner  # type: ignore[attr-defined]
    lengths = [request.num_tokens for request in engine.scheduler.requests.values()]
    found: dict[str, Any] = {"context": round(sum(lengths) / len(lengths)) + SETTLING + TIMED // 2}
    for name, used in (("graphs", graphs), ("eager", None))[: 1 + eager]:
        runner.graphs = used  # type: ignore[attr-defined]
        launch, seconds = runner.launch, list[float]()
        runner.launch = timed(launch, seconds)  # type: ignore[method-assign]
        for _ in range(SETTLING):
            engine.step()
        seconds.clear()
        begin = time.perf_counter()
        for _ in range(TIMED):
            engine.step()
        found[name] = round((time.perf_counter() - begin) / TIMED * 1000, 3)
        found[f"{name}, launch"] = round(sorted(seconds)[len(seconds) // 2] * 1000, 3)
        found[f"{name}, scheduling"] = round(engine.meter.schedule_seconds * 1000, 3)
        del runner.launch
    runner.graphs = graphs  # type: ignore[attr-defined]
    if graphs is not None and torch.cuda.is_available():
        running = len(engine.scheduler.requests)
        shape = next(shape for shape in graphs._shapes if shape.is_decode and shape.rows >= running)
        found["replay alone"] = round(event_ms(graphs._replays[shape]), 3)
    return found


def timed(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        begin = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            seconds.append(time.perf_counter() - begin)

    return run


def capture_rest(engine: EngineCore) -> dict[str, Any]:
    """What idle work takes: graphs and host memory; and the memory that is taken in the end, against the plan."""
    pieces = []
    more = True
    while more:
        begin = time.perf_counter()
        more = engine.idle()
        pieces.append(round((time.perf_counter() - begin) * 1000))
    found: dict[str, Any] = {"idle pieces, ms": {"count": len(pieces), "sum": sum(pieces), "worst": max(pieces)}}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found["GPU memory, MiB"] = {
            "taken by all": (total - free) >> 20,
            "planned": engine.runner.planned_bytes >> 20,  # type: ignore[attr-defined]
        }
    graphs = engine.runner.graphs  # type: ignore[attr-defined]
    found["graphs"] = 0 if graphs is None else len(graphs._shapes)
    return found


def time_worst_steps(engine: EngineCore) -> float:
    """Nobody's request may be there: the first page is written to."""
    runner, limits = engine.runner, engine.scheduler.limits
    bounds = memory.StepBounds(limits.max_num_seqs, limits.max_num_batched_tokens, limits.max_model_len)
    begin = time.perf_counter()
    for rows in memory.worst_steps(runner, bounds):  # type: ignore[arg-type]
        runner.rehearse([replace(row, wants_prompt_logprobs=False) for row in rows])  # type: ignore[attr-defined]
    return round(time.perf_counter() - begin, 2)


@contextmanager
def measured_worst_steps(seconds: list[float]) -> Iterator[None]:
    """How long the largest steps take which a start runs: to measure memory (kernels compile), and to reserve it."""
    run = memory._run

    def timed_run(runner: Any, steps: Any) -> None:
        begin = time.perf_counter()
        run(runner, steps)
        seconds.append(round(time.perf_counter() - begin, 2))

    memory._run = timed_run
    try:
        yield
    finally:
        memory._run = run


def config_of(model: Path, device: str, enable_prefix_caching: bool = False) -> EngineConfig:
    """As by default, but with long steps of prefill, so that contexts are alike when all prompts are read."""
    return EngineConfig(
        model=model,
        device=device,  # type: ignore[arg-type]
        dtype="bfloat16",
        swap_space=0.0,
        enable_prefix_caching=enable_prefix_caching,
        max_num_batched_tokens=8192,
    )


def random_engine(
    config: dict[str, Any],
    folder: Path,
    device: str,
    begin_phase: Callable[[str], None],
    *,
    enable_prefix_caching: bool = False,
) -> EngineCore:
    """An engine whose model has random weights instead of a checkpoint."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    real = decoders.load_decoder

    def load(_path: Path, model: Any, dtype: torch.dtype, where: torch.device, ops: Any, meanwhile: Any = None) -> Any:
        decoder = random_weights(decoders.Decoder(model, dtype, where, ops))
        if meanwhile is not None:
            meanwhile(decoder)
        return decoder

    decoders.load_decoder = load  # type: ignore[assignment]
    try:
        return start_engine(config_of(folder, device, enable_prefix_caching), begin_phase)
    finally:
        decoders.load_decoder = real


def event_ms(run: Callable[[], object], repeat: int = 7) -> float:
    """Milliseconds between device events around a run, the median."""
    times = []
    for _ in range(repeat + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times[2:])[repeat // 2]
