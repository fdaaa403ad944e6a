"""Attention of decode steps over a shared prefix, on a GPU: right first, then against reading every table by itself.

    python benchmarks/shared_prefix.py [--only check attention …] [--json FILE]

The shape of the 8B model (32 query heads, 8 key heads of 128, bf16, pages of 16) but for some checks. Microseconds of a
layer by CUDA-graph replay, in the caches of several layers, so that none finds its keys in the L2. `engine`: requests
of 4096 shared and 64 own tokens that come at once to an engine with random weights, 16 tokens out of each.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from decode_steps import random_engine
from kernel_checks import SHAPES, TOLERANCE, poisoned, warm
from kernel_models import MODELS

from octavo_kernels import shared_prefix_attention as module
from octavo_kernels.metadata import AttentionMetadata, SharedPrefixes
from octavo_kernels.paged_attention import paged_attention
from octavo_kernels.reference_shared_prefix import shared_prefix_attention as twin
from octavo_kernels.shared_prefix_attention import PartConfig, SharedConfig, shared_prefix_attention
from octavo_server import page_hash
from octavo_server.ipc import AddRequest, SamplingParams

OWN_TOKENS: Final = 72  # behind the prefix
# (requests, those of each group, shared tokens) and µs a layer: predicted for each table by itself, and shared.
STEPS: Final = {
    (64, 64, 4096): (240, 22), (64, 64, 1024): (75, 17), (64, 64, 512): (45, 15), (64, 64, 256): (28, 15),
    (64, 64, 128): (20, 15), (64, 16, 4096): (300, 40), (64, 8, 4096): (330, 60), (64, 4, 4096): (340, 105),
    (64, 4, 512): (52, 30), (8, 8, 4096): (45, 15), (8, 8, 1024): (14, 11), (16, 16, 1024): (25, 13),
    (16, 4, 1024): (25, 17), (32, 32, 1024): (42, 14),
    (256, 256, 4096): (900, 50), (256, 256, 512): (160, 40), (256, 8, 1024): (330, 90),
}  # fmt: skip
CHECKS: Final = [
    *(("8B", 16, torch.bfloat16), ("0.6B", 16, torch.bfloat16), ("3 a key head", 32, torch.bfloat16)),
    *(("7, one key head", 64, torch.bfloat16), ("wide", 8, torch.bfloat16), ("8B", 256, torch.float16)),
    *(("8B", 16, torch.float32), ("3 a key head", 8, torch.float16)),
]


@dataclass
class Step:
    """One token each of some requests over caches of several layers."""

    q: torch.Tensor
    caches: list[tuple[torch.Tensor, torch.Tensor]]
    metadata: AttentionMetadata

    def plain(self, layer: int = 0) -> torch.Tensor:
        without = replace(self.metadata, shared=None)
        return paged_attention(self.q, *self.caches[layer], without, self.q.shape[2] ** -0.5)

    def shared(self, layer: int = 0, config: SharedConfig | None = None) -> torch.Tensor:
        return shared_prefix_attention(self.q, *self.caches[layer], self.metadata, self.q.shape[2] ** -0.5, config)


def make_step(
    own: list[int],
    groups: list[tuple[list[int], int]],
    *,
    heads: tuple[int, int, int] = SHAPES["8B"],
    page_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    layers: int = 1,
    room: int = 8192,
) -> Step:
    """own: tokens of each request behind what it shares. groups: members, and pages that they share."""
    draw = torch.Generator("cuda").manual_seed(0)
    num_heads, kv_heads, dim = heads
    lens = torch.zeros(len(own), dtype=torch.int32)
    for members, pages in groups:
        lens[members] = pages * page_size
    contexts = [int(length) + count for length, count in zip(lens, own, strict=True)]
    prefixes = [range(pages) for _, pages in groups]
    counts = [-(-context // page_size) for context in contexts]
    order = torch.randperm(sum(counts) + sum(map(len, prefixes)) + 1, generator=draw, device="cuda").cpu().int()
    tables = torch.full((len(own), max(max(counts), -(-room // page_size))), 2**30, dtype=torch.int32)
    used = 0
    for members, pages in groups:
        tables[members, :pages] = order[used : used + pages]
        used += pages
    caches = []
    empty = torch.full((len(own),), -1, dtype=torch.int32)
    tails = []
    for row, count in enumerate(counts):
        first = int(lens[row]) // page_size
        tables[row, first:count] = order[used : used + count - first]
        used += count - first
        tails.append((int(tables[row, count - 1]), contexts[row] - (count - 1) * page_size))
    for _ in range(layers):
        cache = torch.randn((2, len(order), kv_heads, page_size, dim), dtype=dtype, device="cuda", generator=draw)
        cache[:, int(order[-1])] = torch.nan
        for page, end in tails:
            cache[:, page, :, end:] = torch.nan
        caches.append((cache[0].transpose(1, 2), cache[1].transpose(1, 2)))
    flat, tiles = list[int](), list[tuple[int, int]]()
    for members, _ in groups:
        tiles += [
            (len(flat) + at, min(module.TILE_MEMBERS, len(members) - at))
            for at in range(0, len(members), module.TILE_MEMBERS)
        ]
        flat += members
    empty[: len(flat)] = torch.tensor(flat, dtype=torch.int32)
    tiles += [(0, 0)] * (len(own) // 4 - len(tiles))
    shared = SharedPrefixes(lens.cuda(), empty.cuda(), torch.tensor(tiles, dtype=torch.int32).cuda())
    metadata = AttentionMetadata(
        torch.arange(len(own) + 1, dtype=torch.int32, device="cuda"),
        torch.tensor(contexts, dtype=torch.int32, device="cuda"),
        tables.cuda(),
        max_query_len=1,
        max_context_len=room,
        shared=shared,
    )
    q = torch.randn((len(own), num_heads, dim), dtype=dtype, device="cuda", generator=draw)
    return Step(q, caches, metadata)


def ragged(page_size: int, **shape: Any) -> Step:
    """Two groups, one of them larger than a tile, and requests without one."""
    own = [1 + 37 * index % 300 for index in range(40)] + [2000, 1]
    return make_step(
        own,
        [([7, 3, 1, 30], 512 // page_size), ([2, 0, *range(8, 29)], 1280 // page_size)],
        page_size=page_size,
        **shape,
    )


def check() -> list[str]:
    """Largest errors against float64."""
    failures, worst = [], 0.0
    steps = [ragged(page_size, heads=SHAPES[name], dtype=dtype) for name, page_size, dtype in CHECKS]
    warm([call for step in steps for call in (step.shared, step.plain)])
    for name, page_size, dtype in CHECKS:
        step = ragged(page_size, heads=SHAPES[name], dtype=dtype, room=4096)
        wide = [tuple(half.double() for half in cache) for cache in step.caches]
        truth = twin(step.q.double(), *wide[0], step.metadata, step.q.shape[2] ** -0.5)  # type: ignore[arg-type]
        for kind, call in (("shared", step.shared), ("plain", step.plain)):
            error = ((poisoned(call).double() - truth).norm() / truth.norm()).item()
            worst = max(worst, error / TOLERANCE[dtype])
            if not error <= TOLERANCE[dtype]:
                failures.append(f"{name}, pages of {page_size}, {dtype}, {kind}: {error:.1e}")
    print(f"largest error, of what is allowed: {worst:.2f}", flush=True)
    return failures


def graph_us(calls: list[Callable[[], object]], repeat: int = 7) -> float:
    """Of one call, those for several layers in one graph; the median."""
    often = max(1, 32 // len(calls))
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(often):
            for call in calls:
                call()
    times = []
    for _ in range(repeat + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / often / len(calls))
    return sorted(times[2:])[repeat // 2]


def step_of(requests: int, members: int, tokens: int) -> Step:
    groups = [(list(range(first, first + members)), tokens // 16) for first in range(0, requests, members)]
    pages = len(groups) * tokens // 16 + requests * 6
    layers = max(2, min(8, 2**28 // (pages * 2**16) + 1))
    return make_step([OWN_TOKENS] * requests, groups if tokens else [], layers=layers)


def time_steps() -> dict[str, Any]:
    """Each table by itself, and shared."""
    found: dict[str, Any] = {}
    for (requests, members, tokens), predicted in STEPS.items():
        step = step_of(requests, members, tokens)
        plain, shared = (
            graph_us([partial(call, layer) for layer in range(len(step.caches))]) for call in (step.plain, step.shared)
        )
        name = f"{requests} in groups of {members}, {tokens} shared"
        found[name] = (round(plain, 1), round(shared, 1))
        print(f"{name}: {plain:.1f} us plain, {shared:.1f} shared; predicted {predicted}", flush=True)
    for requests, context in ((64, 1024), (8, 1024), (256, 1024)):  # what it costs to be ready for groups
        step = make_step([context] * requests, [], layers=2)
        plain, shared = (graph_us([partial(call, layer) for layer in range(2)]) for call in (step.plain, step.shared))
        found[f"{requests} x {context}, nothing shared"] = (round(plain, 1), round(shared, 1))
        print(f"{requests} x {context}, nothing shared: {plain:.1f} us plain, {shared:.1f} shared", flush=True)
    return found


SWEPT: Final = ((64, 64, 4096), (64, 16, 1024), (256, 256, 1024), (16, 16, 4096), (64, 8, 4096))
# Rows, keys, warps, stages, programs; whether page numbers are loaded ahead.
PREFIX: Final = [
    *((64, 64, 4, 3, False), (64, 64, 4, 3, True), (64, 64, 4, 2, False), (64, 64, 4, 2, True), (64, 32, 4, 4, True)),
    *((64, 64, 4, 4, True), (64, 128, 4, 2, True), (64, 128, 8, 2, True), (64, 64, 8, 3, True), (64, 64, 4, 1, False)),
]
OWN: Final = [
    *((16, 64, 4, 3, False), (16, 64, 4, 2, False), (16, 64, 4, 2, True), (16, 64, 4, 1, False), (16, 32, 4, 3, True)),
    *((16, 128, 4, 1, False), (16, 128, 4, 2, True), (16, 32, 4, 2, False), (16, 64, 2, 2, True)),
]


def sweep() -> dict[str, Any]:
    """µs of the two kinds of work and of the merge, each alone, by how they are cut."""
    found: dict[str, Any] = {}
    usual = module.shared_config(torch.bfloat16, 128, 4)
    configs = [replace(usual, prefix=PartConfig(*cut[:4], ahead=cut[4])) for cut in PREFIX]
    configs += [replace(usual, own=PartConfig(*cut[:4], ahead=cut[4])) for cut in OWN]
    steps = {name: step_of(*name) for name in SWEPT[:2]}
    ready = warm([partial(steps[SWEPT[0]].shared, 0, config) for config in configs], 30.0)
    print("compiled:", sum(ready), "of", len(ready), flush=True)
    for name in SWEPT:
        step = steps.get(name) or step_of(*name)
        rows = []
        for kept, kind, cuts in ((0, "prefix", PREFIX), (1, "own", OWN)):
            for cut in cuts:
                for programs in (264, 528) if kept == 0 else (264,):
                    part = PartConfig(*cut[:4], programs=programs, ahead=cut[4])
                    taken = alone(step, replace(usual, **{kind: part}), kept)
                    rows.append(
                        (kind, round(taken, 1), f"{cut[0]}x{cut[1]} w{cut[2]} s{cut[3]}{'a' * cut[4]} p{programs}")
                    )
        rows.append(("merge", round(alone(step, usual, 2), 1), ""))
        found[str(name)] = rows
        for kind in ("prefix", "own", "merge"):
            best = sorted((taken, cut) for each, taken, cut in rows if each == kind)
            print(name, kind, "; ".join(f"{taken} {cut}" for taken, cut in best), flush=True)
    return found


def alone(step: Step, config: SharedConfig, kept: int) -> float:
    """µs of the first, second or third of the kernels, the others left out."""
    parts, merge, count = module._parts_kernel, module._merge_kernel, iter(range(10**9))

    class Kept:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            return self.kernel[grid] if next(count) % 3 == kept else lambda *_arguments, **_constants: None

    module._parts_kernel, module._merge_kernel = Kept(parts), Kept(merge)
    try:
        return graph_us([partial(step.shared, layer, config) for layer in range(len(step.caches))], 3)
    finally:
        module._parts_kernel, module._merge_kernel = parts, merge


# Seconds, predicted for each way to run 64 requests over a prefix that is new to the engine.
ENGINE: Final = {
    ("as it is", 8192): 0.35, ("tables by themselves", 8192): 0.43, ("those behind the first join later", 8192): 0.50,
    ("as it is", 2048): 0.37, ("those behind the first join later", 2048): 0.50,
}  # fmt: skip


def time_engine() -> dict[str, Any]:
    """Seconds from the first step to the last token; and each step of a run: its tokens and milliseconds."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        engine = random_engine(MODELS["8b"], Path(folder), "cuda", lambda _name: None, enable_prefix_caching=True)
        while engine.idle():
            pass
        round_number = 0
        for (way, budget), predicted in ENGINE.items():
            runs = []
            for _ in range(4):
                round_number += 1
                with changed(engine, way, budget):
                    runs.append(serve(engine, round_number))
            seconds = sorted(taken for taken, _ in runs[1:])  # the first one compiles
            key = f"{way}, {budget} tokens a step"
            found[key] = {"seconds": seconds, "steps": runs[-1][1]}
            print(
                f"{key}: {seconds[1]:.3f} s ({seconds[0]:.3f} to {seconds[-1]:.3f}); predicted {predicted}", flush=True
            )
            print("   ", " ".join(f"{tokens}:{ms:.1f}" for tokens, ms in runs[-1][1]), flush=True)
        engine.close(1.0)
    return found


@contextmanager
def changed(engine: Any, way: str, budget: int) -> Iterator[None]:
    """The engine with steps of so many tokens, and without what makes the difference."""
    scheduler, graphs, limits = engine.scheduler, engine.runner.graphs, engine.scheduler.limits
    scheduler.limits = replace(limits, max_num_batched_tokens=budget)
    if way == "tables by themselves":
        graphs._prefixes.find = lambda _rows: []
    elif way == "those behind the first join later":
        once = scheduler._schedule_prefills
        scheduler._schedule_prefills = lambda batch: bool(once(batch) and False)
    try:
        yield
    finally:
        scheduler.limits = limits
        graphs._prefixes.__dict__.pop("find", None)
        scheduler.__dict__.pop("_schedule_prefills", None)


def serve(engine: Any, seed: int) -> tuple[float, list[tuple[int, float]]]:
    """Seconds for all, and tokens and ms of each step as it was waited for."""
    draw, steps = random.Random(seed), list[tuple[int, float]]()
    shared = [draw.randrange(100_000) for _ in range(4096)]
    sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    for index in range(64):
        prompt = shared + [draw.randrange(100_000) for _ in range(64)]
        hashes = page_hash.hash_pages(prompt, engine.scheduler.kv_cache.block_size, b"")
        engine.add(AddRequest(0, f"{seed} {index}", prompt, sampling, 0.0, page_hashes=hashes))
    schedule, tokens = engine.scheduler.schedule, list[int]()

    def counted() -> Any:
        output = schedule()
        if not output.is_empty:
            tokens.append(output.total_tokens)
        return output

    engine.scheduler.schedule = counted
    begin = last = time.perf_counter()
    while engine.has_work:
        engine.step()
        now = time.perf_counter()
        steps.append((tokens[len(steps)] if len(steps) < len(tokens) else 0, (now - last) * 1000))
        last = now
    del engine.scheduler.schedule
    return last - begin, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=SECTIONS)
    arguments = parser.parse_args()
    begin = time.monotonic()
    report: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    for name in arguments.only:
        report[name] = SECTIONS[name]()
        print(f"{name}: after {time.monotonic() - begin:.0f} s", flush=True)
        if name == "check" and report[name]:
            print("failures:", report[name], flush=True)
            break
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


SECTIONS: Final[dict[str, Callable[[], Any]]] = {
    "check": check,
    "attention": time_steps,
    "sweep": sweep,
    "engine": time_engine,
}

if __name__ == "__main__":
    with torch.inference_mode():
        main()
