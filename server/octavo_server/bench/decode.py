"""Decode steps: a number of requests at a context, each one token a step."""

import random
import statistics
from collections.abc import Sequence
from typing import Final

from octavo_server.bench.engine import BenchEngine, Engine
from octavo_server.bench.report import Figure, rounded
from octavo_server.bench.workloads import Ask, random_prompt
from octavo_server.errors import ConfigError

SETTLING: Final = 8  # steps, before the timed ones


def time_decode(
    bench: BenchEngine, batches: Sequence[int], context: int, *, steps: int = 48, seed: int = 0
) -> list[Figure]:
    """Milliseconds of a step for each batch, the median of `steps`; their contexts' mean is `context`.

    Raises ConfigError for what does not fit into the engine.
    """
    return [_time_batch(bench, batch, context, steps, random.Random(seed)) for batch in batches]


def _time_batch(bench: BenchEngine, batch: int, context: int, steps: int, draw: random.Random) -> Figure:
    limits = bench.limits
    if batch > limits.max_num_seqs:
        raise ConfigError(f"--batch {batch}: a step takes --max-num-seqs ({limits.max_num_seqs}) requests at most")
    # While other prompts are read, the first ones decode already: on average for half of these steps.
    reading = -(-batch * context // limits.max_num_batched_tokens)
    length = context - reading // 2 - SETTLING - steps // 2
    if length < 1:
        raise ConfigError(
            f"--context {context}: {steps} timed steps leave no prompt; give {context - length + 1} or more"
        )
    # Of the tokens that a request may ask for, those that may come of it, with one step under way: no one ends early.
    ask = Ask([0] * length, reading + SETTLING + steps + 8)
    bench.check([ask], f"--context {context}")
    needed, there = bench.pages_of([ask]) * batch, bench.num_pages
    if needed > there:
        raise ConfigError(
            f"--batch {batch} --context {context}: that takes {needed} pages of KV cache; there are {there}"
        )
    with bench.fresh() as engine:
        waiting = {engine.add(Ask(random_prompt(draw, length, bench.vocab_size), ask.max_tokens)) for _ in range(batch)}
        while waiting:
            waiting -= {output.request_id for output in engine.step() if output.token_ids}
        for _ in range(SETTLING):
            engine.step()
        before, engine.steps = _mean_length(engine), []
        with bench.timed():
            for _ in range(steps):
                engine.step()
        after, timed = _mean_length(engine), engine.steps
        if any(step.tokens != batch for step in timed):
            raise ConfigError(f"--batch {batch}: not every request decoded in every step; the KV cache is too small")
    seconds = [step.seconds for step in timed]
    milliseconds = 1000 * statistics.median(seconds)
    details = {
        "context": round((before + after) / 2),
        "tok/s": round(batch / statistics.median(seconds)),
        "mean, ms": rounded(1000 * statistics.mean(seconds)),
        "worst, ms": rounded(1000 * max(seconds)),
        "host, ms": rounded(1000 * statistics.median(step.host for step in timed)),
        "steps": steps,
    }
    return Figure(f"decode-{batch}", rounded(milliseconds), "ms", True, details)


def _mean_length(engine: Engine) -> float:
    return statistics.mean(request.num_tokens for request in engine.core.scheduler.requests.values())
