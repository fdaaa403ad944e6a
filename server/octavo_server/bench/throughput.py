"""Throughput: requests that are all there at once, served to their ends; and what the prefix cache adds and saves."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from octavo_server.bench.engine import BenchEngine, Run
from octavo_server.bench.report import Figure, rounded
from octavo_server.bench.workloads import Ask, SharedPrefix, Workload


def time_throughput(
    bench: BenchEngine, workload: Workload, *, prefix_caching: bool = False, repeat: int = 1, seed: int = 0
) -> list[Figure]:
    """Output tokens a second, the median of `repeat` runs."""
    asks = _asks(bench, workload, seed)
    runs = [_serve(bench, asks, prefix_caching) for _ in range(repeat)]
    return [_figure(workload, runs, prefix_caching)]


def time_prefix_cost(bench: BenchEngine, workload: Workload, *, repeat: int = 2, seed: int = 0) -> list[Figure]:
    """The same without and with prefix caching in turns, `repeat` times each; no prompt begins like another.

    The cost is that of the fastest runs: what disturbs a run only ever makes it slower.
    """
    asks = _asks(bench, workload, seed)
    plain, cached = list[Run](), list[Run]()
    for _ in range(repeat):
        plain.append(_serve(bench, asks, False))
        cached.append(_serve(bench, asks, True))
    least = [min(run.seconds for run in runs) for runs in (plain, cached)]
    details = {
        "without, s": [rounded(run.seconds) for run in plain],
        "with, s": [rounded(run.seconds) for run in cached],
        "host time of a step without, ms": _host(plain),
        "host time of a step with, ms": _host(cached),
    }
    cost = Figure("prefix-cost", round(100 * (least[1] / least[0] - 1), 2), "%", True, details)
    return [_figure(workload, plain, False), cost]


def time_prefix(
    bench: BenchEngine, prompts: SharedPrefix | None = None, *, compare: bool = False, repeat: int = 3, seed: int = 0
) -> list[Figure]:
    """Seconds for requests with a common beginning, each run from an empty cache; with `compare` also without it."""
    prompts = prompts or SharedPrefix()
    draw = random.Random(seed)
    bench.check(prompts.asks(draw, bench.vocab_size)[:1], "--shared-tokens, --own-tokens")
    _serve(bench, prompts.asks(draw, bench.vocab_size), True, timed=False)
    runs = [_serve(bench, prompts.asks(draw, bench.vocab_size), True) for _ in range(repeat)]
    seconds = [run.seconds for run in runs]
    details: dict[str, Any] = {
        **{field.replace("_", " "): value for field, value in asdict(prompts).items()},
        "fastest, s": rounded(min(seconds)),
        "steps": len(runs[0].steps),
        "host, s": rounded(statistics.median(run.host_seconds for run in runs)),
    }
    if compare:
        plain = _serve(bench, prompts.asks(draw, bench.vocab_size), False)
        details["without prefix caching, s"] = rounded(plain.seconds)
    return [Figure("prefix", rounded(statistics.median(seconds)), "s", True, details)]


def _asks(bench: BenchEngine, workload: Workload, seed: int) -> list[Ask]:
    """The workload, begun once."""
    asks = workload.asks(seed, bench.vocab_size)
    bench.check(asks, "--input-tokens, --output-tokens")
    bench.warm(asks)
    return asks


def _serve(bench: BenchEngine, asks: Sequence[Ask], prefix_caching: bool, *, timed: bool = True) -> Run:
    with bench.fresh(prefix_caching=prefix_caching) as engine:
        if not timed:
            return engine.run(asks)
        with bench.timed():
            return engine.run(asks)


def _figure(workload: Workload, runs: Sequence[Run], prefix_caching: bool) -> Figure:
    seconds, run = statistics.median(run.seconds for run in runs), runs[0]
    details = {
        "seconds": rounded(seconds),
        "requests": workload.requests,
        "input tokens": run.input_tokens,
        "output tokens": run.output_tokens,
        "all tok/s": round((run.input_tokens + run.output_tokens) / seconds),
        "temperature": workload.temperature,
        "prefix caching": prefix_caching,
        "steps": len(run.steps),
        "host time of a step, ms": _host(runs),
        "waited for the device, share": rounded(1 - run.host_seconds / run.seconds),
        "preemptions": run.preemptions,
        "repeat": len(runs),
    }
    return Figure(f"throughput-{workload.name}", round(run.output_tokens / seconds), "out tok/s", False, details)


def _host(runs: Sequence[Run]) -> float:
    return rounded(1000 * statistics.median(step.host for run in runs for step in run.steps))
