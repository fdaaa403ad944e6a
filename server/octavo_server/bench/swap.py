"""Swapping: a workload on a KV cache that is too small for it; the copies alone; and steps beside copies."""

import random
import statistics
import time
from collections.abc import Sequence
from typing import Final, Literal

from octavo_server.bench.engine import BenchEngine, Engine
from octavo_server.bench.report import Figure, rounded
from octavo_server.bench.workloads import Ask, Workload, random_prompt
from octavo_server.errors import ConfigError
from octavo_server.step import SchedulerOutput

PreemptionMode = Literal["auto", "swap", "recompute"]
MODES: Final[tuple[PreemptionMode, ...]] = ("auto", "swap", "recompute")
MOVED: Final = 256  # pages moved at once where the copies are timed alone
BESIDE: Final = 32  # pages moved each way with every step, where steps are timed beside copies


def time_swap(
    bench: BenchEngine,
    workload: Workload,
    modes: Sequence[PreemptionMode] = MODES,
    *,
    share: float = 0.25,
    seed: int = 0,
) -> list[Figure]:
    """Output tokens a second with `share` of the pages that as many requests as fit into a step need at their ends.

    A run for each way to preempt. Raises ConfigError if not even one request fits.
    """
    asks = workload.asks(seed, bench.vocab_size)
    bench.check(asks, "--input-tokens, --output-tokens")
    needed = bench.pages_of(asks, bench.limits.max_num_seqs)
    pages = round(needed * share)
    if not max(bench.pages_of([ask]) for ask in asks) < pages <= bench.num_pages:
        raise ConfigError(
            f"--pool {share:g}: that are {pages} of the {needed} pages that the requests need; there must be room for "
            f"the longest one, and the engine has {bench.num_pages}"
        )
    bench.warm(asks)
    figures = []
    for mode in modes:
        if mode == "swap" and not bench.num_host_pages:
            raise ConfigError("--preemption-mode swap: pages are swapped to host memory: give --swap-space above 0")
        with bench.fresh(num_pages=pages, preemption_mode=mode) as engine, bench.timed():
            run = engine.run(asks)
        details = {
            "seconds": rounded(run.seconds),
            "pages": pages,
            "pages needed": needed,
            "host pages": bench.num_host_pages,
            "preemptions": run.preemptions,
            "by swap": run.preemptions_by_swap,
            "GB out": rounded(run.pages_out * bench.runner.bytes_per_page / 1e9),
            "GB in": rounded(run.pages_in * bench.runner.bytes_per_page / 1e9),
            "copies as the engine measured them, GB/s": rounded(bench.runner.copy_bytes_per_second / 1e9),
            "steps": len(run.steps),
        }
        figures.append(Figure(f"swap-{mode}", round(run.output_tokens / run.seconds), "out tok/s", False, details))
    return figures


def time_copies(bench: BenchEngine, *, repeat: int = 7) -> list[Figure]:
    """GB/s of pages to host memory and back, from the launch to the last byte."""
    swapper, device = bench.runner.swapper, bench.device
    count = min(MOVED, bench.num_host_pages, bench.num_pages)
    if swapper is None or not count:
        raise ConfigError("--swap-space 0: there is no host memory to copy pages to; give more")
    pairs = [(page, page) for page in range(count)]
    figures = []
    for name, output in (("out", SchedulerOutput(0, swap_out=pairs)), ("in", SchedulerOutput(0, swap_in=pairs))):
        seconds = []
        for _ in range(repeat + 1):
            _synchronize(device.type)
            begin = time.perf_counter()
            swapper.launch(output, ())
            swapper.step_launched()
            _synchronize(device.type)
            seconds.append(time.perf_counter() - begin)
        swapper.poll()
        median = statistics.median(seconds[1:])
        rate = count * bench.runner.bytes_per_page / median / 1e9
        details = {"pages": count, "bytes of a page": bench.runner.bytes_per_page}
        figures.append(Figure(f"swap-copies-{name}", rounded(rate), "GB/s", False, details))
    return figures


def time_steps_beside(
    bench: BenchEngine, *, batch: int = 64, context: int = 1024, steps: int = 24, seed: int = 0
) -> list[Figure]:
    """By how many per cent a decode step is slower while pages leave and come beside it, in turns with steps alone.

    The pages that move are nobody's: they lie behind those that the run may use.
    """
    ask = Ask([0] * (context - 2 * steps), 5 * steps + batch)
    bench.check([ask], f"--context {context}")
    used, moved = bench.pages_of([ask]) * batch, min(BESIDE, bench.num_host_pages // 2)
    if used + 2 * moved > bench.num_pages or not moved:
        raise ConfigError(f"--batch {batch}: {used + 2 * moved} pages are needed, the engine has {bench.num_pages}")
    outs = [(used + index, index) for index in range(moved)]
    ins = [(moved + index, used + moved + index) for index in range(moved)]

    def move(output: SchedulerOutput) -> None:
        output.swap_out.extend(outs)
        output.swap_in.extend(ins)

    draw, found = random.Random(seed), dict[str, list[float]](alone=[], beside=[])
    with bench.fresh(num_pages=used) as engine:
        _begin(
            engine, [Ask(random_prompt(draw, len(ask.prompt), bench.vocab_size), ask.max_tokens) for _ in range(batch)]
        )
        for turn in range(4):
            name = "beside" if turn % 2 else "alone"
            engine.runner.moves = move if turn % 2 else lambda _output: None
            for _ in range(4):
                engine.step()
            engine.steps = []
            for _ in range(steps):
                engine.step()
            found[name] += [step.seconds for step in engine.steps]
        engine.runner.moves = lambda _output: None
    alone, beside = (statistics.median(found[name]) for name in ("alone", "beside"))
    bytes_moved = 2 * moved * bench.runner.bytes_per_page
    details = {
        "alone, ms": rounded(1000 * alone),
        "beside, ms": rounded(1000 * beside),
        "batch": batch,
        "pages a step, each way": moved,
        "GB/s beside the steps, both ways": rounded(bytes_moved / beside / 1e9),
    }
    return [Figure("swap-step", round(100 * (beside / alone - 1), 2), "%", True, details)]


def _begin(engine: Engine, asks: Sequence[Ask]) -> None:
    waiting = {engine.add(ask) for ask in asks}
    while waiting:
        waiting -= {output.request_id for output in engine.step() if output.token_ids}


def _synchronize(kind: str) -> None:
    import torch

    if kind == "cuda":
        torch.cuda.synchronize()
