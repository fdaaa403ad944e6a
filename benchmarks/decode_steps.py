"""Decode steps as the engine runs them, with graphs and without: equal, and launched without waiting.

Parts of `gpu_session.py`. Each function returns what it found; "failures" in it names what is wrong.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from kernel_checks import TOLERANCE, Case, poisoned

from octavo_server.config import EngineConfig
from octavo_server.engine.core import EngineCore
from octavo_server.engine_start import start_engine
from octavo_server.ipc import AddRequest, SamplingParams, TokenLogprobs

DEMO: Final = Path(__file__).resolve().parent.parent / "server/octavo_server/demo_model"
BOUND: Final = 16_384  # tokens, of the contexts that a graph of the shapes with random weights is made for
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
            frequency_penalty=0.5 if index % 6 < 2 else 0.0,
            bad_words=((5, 6), (7,)) if index % 7 < 2 else (),
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
    given = config_of(folder, device, enable_prefix_caching).model_copy(update={"load_format": "random"})
    return start_engine(given, begin_phase)


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
