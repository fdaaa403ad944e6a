"""Prefill: whole prompts of which one token is wanted each; and the time to the first token of one alone."""

import random
import statistics
from collections.abc import Sequence

from octavo_server.bench.engine import BenchEngine
from octavo_server.bench.report import Figure, rounded
from octavo_server.bench.workloads import Ask, random_prompt


def time_prefill(
    bench: BenchEngine, prompts: Sequence[tuple[int, int]], *, repeat: int = 3, seed: int = 0
) -> list[Figure]:
    """Prompt tokens a second for each (count, tokens), the median of `repeat` runs after one that is not counted."""
    figures, draw = [], random.Random(seed)
    for count, length in prompts:
        bench.check([Ask([0] * length, 1)], f"--prompts {count}x{length}")
        seconds, hosts, steps = [], [], 0
        for turn in range(-1, repeat):
            asks = [Ask(random_prompt(draw, length, bench.vocab_size), 1) for _ in range(count)]
            with bench.fresh() as engine:
                if turn < 0:
                    engine.run(asks)
                    continue
                with bench.timed():
                    run = engine.run(asks)
            seconds.append(run.seconds)
            hosts.append(run.host_seconds)
            steps = len(run.steps)
        median = statistics.median(seconds)
        details = {
            "seconds": rounded(median),
            "fastest, s": rounded(min(seconds)),
            "host, s": rounded(statistics.median(hosts)),
            "steps": steps,
            "repeat": repeat,
        }
        figures.append(Figure(f"prefill-{count}x{length}", rounded(count * length / median), "tok/s", False, details))
    return figures


def time_first_token(
    bench: BenchEngine, lengths: Sequence[int], *, output_tokens: int = 4, repeat: int = 9, seed: int = 0
) -> list[Figure]:
    """Milliseconds to the first token on an idle engine, the median of `repeat` requests after two not counted.

    From handing the token ids over to having the token, in one process: without HTTP and text. Every prompt is new. The
    request goes on to decode, as requests do.
    """
    figures, draw = [], random.Random(seed)
    for length in lengths:
        bench.check([Ask([0] * length, output_tokens)], f"--input-tokens {length}")
        seconds = []
        with bench.fresh() as engine:
            for turn in range(-2, repeat):
                ask = Ask(random_prompt(draw, length, bench.vocab_size), output_tokens)
                if turn < 0:
                    engine.run([ask])
                    continue
                with bench.timed():
                    seconds.append(engine.run([ask]).first_tokens[0])
        details = {
            "fastest, ms": rounded(1000 * min(seconds)),
            "slowest, ms": rounded(1000 * max(seconds)),
            "repeat": repeat,
        }
        figures.append(Figure(f"ttft-{length}", rounded(1000 * statistics.median(seconds)), "ms", True, details))
    return figures
