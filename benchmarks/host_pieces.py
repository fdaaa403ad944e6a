"""What a step of decodes takes of the host, piece by piece: medians in microseconds, with graphs.

    python benchmarks/host_pieces.py [--model 8b|0.6b|none] [--running N ...] [--profile]

`none`: on the CPU, a device that does nothing and a model of one layer; else random weights on a GPU. Pieces may lie
within each other (`pack` in `build`). The clock of each costs 0.1 µs. --profile: functions, by cProfile, instead.
"""

import argparse
import cProfile
import json
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "benchmarks")]

import torch  # noqa: E402

from octavo_common.model_config import parse_model_config  # noqa: E402
from octavo_server.bench.metered import MeteredRunner  # noqa: E402
from octavo_server.config import EngineConfig  # noqa: E402
from octavo_server.engine.block_pool import BlockPool  # noqa: E402
from octavo_server.engine.core import EngineCore  # noqa: E402
from octavo_server.engine.kv_cache_manager import KVCacheManager  # noqa: E402
from octavo_server.engine.scheduler import Scheduler, SchedulerLimits  # noqa: E402
from octavo_server.engine_start import start_engine  # noqa: E402
from octavo_server.ipc import AddRequest, SamplingParams  # noqa: E402
from octavo_server.page_hash import hash_pages  # noqa: E402
from octavo_server.worker import model_runner, step_handle  # noqa: E402
from octavo_server.worker.model_runner import ModelRunner  # noqa: E402

SHAPES = {"8b": ROOT / "benchmarks/shapes/llama-8b.json", "0.6b": ROOT / "benchmarks/shapes/qwen3-0.6b.json"}
PROMPT, SETTLING, STEPS, BLOCK = 40, 12, 150, 16


_clock: Callable[[], float] = time.perf_counter


class NoDevice:
    """A recorder whose graphs do nothing."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder`."""
        return lambda: None

    def forget(self) -> None:
        """See `Recorder`."""


def engine_without_device(most: int) -> EngineCore:
    shape = json.loads(SHAPES["8b"].read_text(encoding="utf-8"))
    small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    config = parse_model_config({**shape, **small, "num_attention_heads": 4, "num_key_value_heads": 1})
    runner = ModelRunner(
        config, torch.device("cpu"), torch.float32, block_size=BLOCK, max_num_seqs=most, recorder=NoDevice(),
        max_num_batched_tokens=2048,
    )  # fmt: skip
    runner.load(Path(), random_weights=True)
    pages = most * (2 + (PROMPT + SETTLING + STEPS + 64) // BLOCK)
    runner.allocate_cache(pages)
    runner.capture_first_graphs(4096)
    while runner.idle():
        continue
    runner._tokens.are_plain = lambda _rows: True  # type: ignore[method-assign]
    limits = SchedulerLimits(most, 2048, 4096, config.vocab_size)
    scheduler = Scheduler(limits, KVCacheManager(BlockPool(pages), BLOCK))
    return EngineCore(scheduler, runner, overlap=True)


def engine_on_gpu(model: str) -> EngineCore:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_bytes(SHAPES[model].read_bytes())
        config = EngineConfig(model=Path(folder), device="cuda", load_format="random", dtype="bfloat16", swap_space=0.0)
        engine = start_engine(config, lambda _phase: None)
    while engine.idle():
        continue
    return engine


def begin(engine: EngineCore, running: int) -> None:
    """So many requests that decode, in pages whose borders they cross at different steps."""
    sampling = SamplingParams(temperature=0.0, max_tokens=SETTLING + STEPS + 40, ignore_eos=True)
    for index in range(running):
        tokens = [(31 * index + 7 * position) % 1000 + 10 for position in range(PROMPT + index % BLOCK)]
        hashes = hash_pages(tokens, BLOCK, b"")
        engine.add(AddRequest(0, f"{running} {index}", tokens, sampling, 0.0, page_hashes=hashes))
    while engine.scheduler.num_prefill_tokens or engine.scheduler.waiting:
        engine.step()
    for _ in range(SETTLING):
        engine.step()


@contextmanager
def timed(owner: Any, name: str, seconds: list[float]) -> Iterator[None]:
    call, own = getattr(owner, name), name in vars(owner)

    def run(*arguments: Any, **options: Any) -> Any:
        start = _clock()
        try:
            return call(*arguments, **options)
        finally:
            seconds.append(_clock() - start)

    setattr(owner, name, run)
    try:
        yield
    finally:
        setattr(owner, name, call) if own else delattr(owner, name)


class Pieces:
    """Times of parts of a step, which stand where the engine calls them."""

    def __init__(self, engine: EngineCore, runner: ModelRunner) -> None:
        graphs: Any = runner.graphs
        self._places: list[tuple[str, Any, str]] = [
            ("schedule", engine.scheduler, "schedule"),
            ("launch", runner, "launch"),
            ("apply", runner.batch, "apply"),
            ("changes", runner._tokens, "changes"),
            ("advance", runner.batch, "advance"),
            ("build", graphs, "build"),
            ("pack", graphs._packer, "pack"),
            ("upload", graphs, "_upload"),
            ("run", graphs, "run"),
            ("compute", runner, "_compute"),
            ("to host", model_runner.SampledTensors, "to_host"),
            ("collect", step_handle.Launched, "collect"),
            ("update", engine.scheduler, "update"),
            ("ring", engine.ring, "write"),
        ]
        self._graphs = graphs
        self.found: dict[str, list[float]] = {}

    def watch(self, run: Callable[[], None]) -> None:
        """Times them while `run` runs, one piece after the other: none is in another's time."""
        for name, owner, attribute in self._places:
            with timed(owner, attribute, self.found.setdefault(name, [])):
                run()
        usual = dict(self._graphs._replays)
        seconds = self.found["replay"] = []

        def slow(call: Callable[[], None]) -> Callable[[], None]:
            def replay() -> None:
                start = _clock()
                call()
                seconds.append(_clock() - start)

            return replay

        self._graphs._replays.update({shape: slow(call) for shape, call in usual.items()})
        run()
        self._graphs._replays.update(usual)


def measure(engine: EngineCore, runner: ModelRunner, running: int, profile: bool) -> dict[str, float]:
    begin(engine, running)
    meter = MeteredRunner(runner)
    engine.runner = meter
    hosts: list[float] = []

    def steps(count: int) -> None:
        for _ in range(count):
            start, waited = _clock(), meter.waited
            engine.step()
            hosts.append(_clock() - start - (meter.waited - waited))

    if profile:
        profiler = cProfile.Profile()
        profiler.enable()
        steps(STEPS)
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(28)
    steps(45)
    pieces = Pieces(engine, runner)
    pieces.watch(lambda: steps(7))
    engine.abort(list(engine.scheduler.requests))
    while engine.has_work:
        engine.step()
    engine.runner = runner
    report = {"host": median_us(hosts[-45 - 7 * 15 : -7 * 15])}
    return report | {name: median_us(times) for name, times in pieces.found.items() if times}


def median_us(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("none", *SHAPES), default="none")
    parser.add_argument("--running", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    given = arguments.model
    if given == "none":  # on a machine that others use, too
        globals()["_clock"] = time.thread_time
    engine = engine_without_device(max(arguments.running)) if given == "none" else engine_on_gpu(given)
    for running in arguments.running:
        found = measure(engine, engine.runner, running, arguments.profile)  # type: ignore[arg-type]
        print(f"{given} {running}: {found}", flush=True)
    engine.close(1.0)


if __name__ == "__main__":
    main()
