"""What the engine's decisions cost: scheduler and block manager alone, without a model, in microseconds of Python.

    python benchmarks/engine_cpu.py [--json FILE] [--steps N]

A step is `schedule` and `update` of decodes, in steady state, with what they do at page borders; the rows that the
worker would send back are made beforehand. Once with all seats taken, so that the queue is not looked at, and once with
free seats, but no pages for those that wait. Beside it, in the same run, the simplest loop over plain lists that could
do the same bookkeeping: append a token, count, take a page when one is full. The rest: what 10,000 waiting requests
add, a match of 32,768 tokens in the prefix cache, and what prefix caching costs where nothing is ever hit.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from octavo_server import page_hash
from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.request import Request
from octavo_server.engine.scheduler import Scheduler, SchedulerLimits
from octavo_server.engine_process import GC_THRESHOLDS
from octavo_server.ipc import SamplingParams
from octavo_server.step import SampledRow

BLOCK = 16
VOCAB = 128_000
PROMPT = 64
RUNNING = (1, 64, 256, 1024)
WAITING = 10_000
AIMS_MS = {1: 0.15, 64: 0.4, 256: 1.0}


def prompt(length: int, salt: int) -> list[int]:
    """Token ids that no other salt has in the same places."""
    return [(salt * 7919 + index * 31) % VOCAB for index in range(length)]


def request(name: str, tokens: list[int], max_tokens: int, hashes: bool) -> Request:
    """As the core makes it of a message."""
    names = page_hash.hash_pages(tokens, BLOCK, b"") if hashes else b""
    pages = [names[start : start + page_hash.HASH_BYTES] for start in range(0, len(names), page_hash.HASH_BYTES)]
    return Request(name, tokens, SamplingParams(max_tokens=max_tokens), 65_536, page_hashes=pages)


def engine(running: int, waiting: int, prefix_caching: bool, steps: int) -> Scheduler:
    """A scheduler in mid-decode, all seats taken."""
    pages = running * (-(-(PROMPT + steps + 64) // BLOCK) + 2) + 4200
    limits = SchedulerLimits(running, max(running, 2048), 65_536, VOCAB)
    scheduler = Scheduler(limits, KVCacheManager(BlockPool(pages), BLOCK, prefix_caching=prefix_caching))
    for index in range(running + waiting):
        length = PROMPT + index % BLOCK  # so that page borders are crossed by some in every step
        scheduler.add(request(f"request {index}", prompt(length, index), 60_000, prefix_caching))
    while len(scheduler.running) < running or scheduler.num_prefill_tokens:
        one_step(scheduler)
    return scheduler


def rows_of(scheduler: Scheduler, output: Any) -> list[SampledRow]:
    """What the worker would say."""
    sampling = scheduler.requests
    return [
        SampledRow(name, 17 + output.step % 1000)
        for name in output.num_scheduled_tokens
        if sampling[name].num_pending_tokens
    ]


def one_step(scheduler: Scheduler) -> float:
    """Seconds of processor time that deciding and taking in took: others on the machine do not count."""
    started = time.thread_time()
    output = scheduler.schedule()
    middle = time.thread_time()
    rows = rows_of(scheduler, output)
    resumed = time.thread_time()
    scheduler.update(output, rows)
    return middle - started + time.thread_time() - resumed


def crowded(running: int, waiting: int, matched: bool, steps: int) -> Scheduler:
    """A scheduler in mid-decode with free seats, but without pages for any of those that wait.

    matched: all of them begin with the same cached pages.
    """
    pages = running * (-(-(PROMPT + steps + 64) // BLOCK) + 2) + 64
    long = prompt(pages * BLOCK // 2, 1)
    limits = SchedulerLimits(2 * running + 32, 2048, pages * BLOCK, VOCAB)
    scheduler = Scheduler(limits, KVCacheManager(BlockPool(pages), BLOCK))
    if matched:  # cached, and free: the pages that decodes take are others
        scheduler.add(request("before", long[: 32 * BLOCK + 1], 1, True))
        while scheduler.requests:
            one_step(scheduler)
    for index in range(running):
        scheduler.add(request(f"request {index}", prompt(PROMPT + index % BLOCK, index + 2), steps + 64, True))
    while len(scheduler.running) < running or scheduler.num_prefill_tokens:
        one_step(scheduler)
    # One list of tokens for all: ten thousand of them would not fit into memory.
    length = min(scheduler.kv_cache.pool.num_free + 32, pages - 4) * BLOCK
    tail = prompt(length, 10_000)
    tokens = [*long[: 32 * BLOCK], *tail][:length] if matched else tail
    names = request("", tokens, 8, True).page_hashes
    for index in range(waiting):
        sampling = SamplingParams(max_tokens=8)
        scheduler.add(Request(f"waiting {index}", tokens, sampling, 65_536, page_hashes=names))
    return scheduler


def measure_crowded(running: int, waiting: int, matched: bool, steps: int) -> dict[str, float]:
    """A step's cost where the queue is looked at in each, in vain."""
    scheduler = crowded(running, waiting, matched, steps)
    gc.collect()
    gc.freeze()
    found = summary([one_step(scheduler) for _ in range(steps)])
    gc.unfreeze()
    if (len(scheduler.running), len(scheduler.waiting)) != (running, waiting):
        raise RuntimeError("a request has joined or ended: this measures something else")
    return found


def plain_steps(running: int) -> Iterator[float]:
    """Seconds of each step of the simplest loop with the same effect: lists of tokens and of pages, nothing else."""
    tokens = [prompt(PROMPT + index % BLOCK, index) for index in range(running)]
    tables = [list(range(-(-len(each) // BLOCK))) for each in tokens]
    free = list(range(1_000_000))
    while True:
        started = time.thread_time()
        outputs = []
        for each, table in zip(tokens, tables, strict=True):
            if len(each) % BLOCK == 0:
                table.append(free.pop())
            each.append(17)
            outputs.append(each[-1])
        yield time.thread_time() - started


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in microseconds."""
    ordered = sorted(seconds)
    return {
        "median_us": round(statistics.median(ordered) * 1e6, 1),
        "p99_us": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1e6, 1),
    }


def measure_steps(running: int, waiting: int, steps: int, *, prefix_caching: bool = True) -> dict[str, float]:
    """A step's cost with so many decodes and so many behind them."""
    scheduler = engine(running, waiting, prefix_caching, steps)
    gc.collect()
    gc.freeze()  # as the engine process does after its start
    found = summary([one_step(scheduler) for _ in range(steps)])
    gc.unfreeze()
    return found


def measure_caching(running: int, steps: int) -> dict[str, float]:
    """The same steps with prefix caching and without, in turns, where nothing is ever hit."""
    both = {on: engine(running, 0, on, steps) for on in (False, True)}
    taken: dict[bool, list[float]] = {False: [], True: []}
    gc.collect()
    gc.freeze()
    for _ in range(steps):
        for on, scheduler in both.items():
            taken[on].append(one_step(scheduler))
    gc.unfreeze()
    off, on = (statistics.fmean(sorted(taken[each])[: steps * 98 // 100]) * 1e6 for each in (False, True))
    return {"off_us": round(off, 1), "on_us": round(on, 1), "added_us": round(on - off, 1)}


def measure_match(length: int, times: int) -> dict[str, float]:
    """A lookup of a prompt that is cached, but for its last token, from the names up; and of one that is not at all."""
    kv_cache = KVCacheManager(BlockPool(2 * length // BLOCK + 64), BLOCK)
    first = request("first", prompt(length, 1), 8, True)
    kv_cache.admit(first, kv_cache.lookup(first), length)
    kv_cache.free(first)
    cached = [request(f"cached {index}", prompt(length, 1), 8, True) for index in range(times)]
    fresh = [request(f"fresh {index}", prompt(length, 5 + index), 8, True) for index in range(times)]
    assert kv_cache.lookup(cached[0]).num_tokens == (length - 1) // BLOCK * BLOCK  # noqa: S101
    hit = summary([timed(lambda each=each: kv_cache.lookup(each)) for each in cached[1:]])
    miss = summary([timed(lambda each=each: kv_cache.lookup(each)) for each in fresh])
    hashing = summary([timed(lambda: page_hash.hash_pages(first.token_ids[:length], BLOCK, b"")) for _ in range(times)])
    return {"hit_us": hit["median_us"], "miss_us": miss["median_us"], "hashing_us": hashing["median_us"]}


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.thread_time()
    call()
    return time.thread_time() - started


def main() -> None:
    """Measures all of it and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--steps", type=int, default=1000, help="steps of each measurement")
    arguments = parser.parse_args()
    gc.set_threshold(*GC_THRESHOLDS)  # as the engine process does
    figures: dict[str, Any] = {"python": sys.version.split()[0], "steps": arguments.steps, "step": {}}
    print(f"{'running':>8} {'waiting':>8} {'median µs':>10} {'p99 µs':>8} {'a row':>7} {'plain lists':>12} {'aim':>7}")
    for running in RUNNING:
        plain = plain_steps(running)
        lists = summary([next(plain) for _ in range(arguments.steps)])["median_us"]
        for waiting in (0, WAITING):
            found = measure_steps(running, waiting, arguments.steps)
            figures["step"][f"{running} running, {waiting} waiting"] = {**found, "plain_lists_us": lists}
            aim = f"{AIMS_MS[running] * 1000:.0f}" if running in AIMS_MS else ""
            print(
                f"{running:>8} {waiting:>8} {found['median_us']:>10} {found['p99_us']:>8} "
                f"{found['median_us'] / running:>7.2f} {lists:>12} {aim:>7}"
            )
    print("free seats, no pages:")
    for running in (1, 64):
        for matched in (False, True):
            for waiting in (0, 32, 1000, WAITING):
                found = measure_crowded(running, waiting, matched, min(arguments.steps, 300))
                figures["step"][f"{running} running, {waiting} blocked, matched: {matched}"] = found
                print(f"{running:>8} {waiting:>8} {found['median_us']:>10} {found['p99_us']:>8}  matched: {matched}")
    figures["prefix_match_32k"] = measure_match(32_768, 50)
    figures["prefix_caching_without_hits"] = {str(n): measure_caching(n, arguments.steps) for n in (64, 256)}
    print("prefix match of 32,768 tokens, µs:", figures["prefix_match_32k"])
    print("prefix caching where nothing is hit, mean µs a step:", figures["prefix_caching_without_hits"])
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
