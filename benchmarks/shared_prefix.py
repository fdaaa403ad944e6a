"""Attention of decode steps over a shared prefix, on a GPU: right first, then against reading every table by itself.

    python benchmarks/shared_prefix.py [--sweep] [--json FILE]

The shape of the 8B model (32 query heads, 8 key heads of 128, bf16, pages of 16) but for some checks. Microseconds of a
layer by CUDA-graph replay, in the caches of several layers, so that none finds its keys in the L2.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from kernel_checks import SHAPES, TOLERANCE, poisoned, warm

from octavo_kernels import shared_prefix_attention as module
from octavo_kernels.metadata import AttentionMetadata, SharedPrefixes
from octavo_kernels.paged_attention import paged_attention
from octavo_kernels.reference_shared_prefix import shared_prefix_attention as twin
from octavo_kernels.shared_prefix_attention import SharedConfig, shared_prefix_attention

OWN: Final = 72  # tokens behind the prefix
# (requests, those of each group, shared tokens) and µs a layer: predicted for each table by itself, and shared.
STEPS: Final = {
    (64, 64, 4096): (240, 22), (64, 64, 1024): (75, 17), (64, 64, 512): (45, 15), (64, 64, 256): (28, 15),
    (64, 64, 128): (20, 15), (64, 16, 4096): (300, 40), (64, 8, 4096): (330, 60), (64, 4, 4096): (340, 105),
    (64, 4, 512): (52, 30), (8, 8, 4096): (45, 15), (8, 8, 1024): (14, 11), (16, 16, 1024): (25, 13),
    (16, 4, 1024): (25, 17), (32, 32, 1024): (42, 14),
    (256, 256, 4096): (900, 50), (256, 256, 512): (160, 40), (256, 8, 1024): (330, 90),
}  # fmt: skip
LARGE: Final = [(keys, stages, programs) for keys, stages in ((64, 3), (128, 2)) for programs in (132, 264)]
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
    failures = []
    steps = [ragged(page_size, heads=SHAPES[name], dtype=dtype) for name, page_size, dtype in CHECKS]
    warm([call for step in steps for call in (step.shared, step.plain)])
    for name, page_size, dtype in CHECKS:
        step = ragged(page_size, heads=SHAPES[name], dtype=dtype, room=4096)
        wide = [tuple(half.double() for half in cache) for cache in step.caches]
        truth = twin(step.q.double(), *wide[0], step.metadata, step.q.shape[2] ** -0.5)  # type: ignore[arg-type]
        for kind, call in (("shared", step.shared), ("plain", step.plain)):
            error = ((poisoned(call).double() - truth).norm() / truth.norm()).item()
            print(f"{name}, pages of {page_size}, {dtype}, {kind}: {error:.1e}", flush=True)
            if not error <= TOLERANCE[dtype]:
                failures.append(f"{name}, pages of {page_size}, {dtype}, {kind}: {error:.1e}")
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
    return make_step([OWN] * requests, groups if tokens else [], layers=layers)


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


def sweep() -> dict[str, float]:
    """Other ways to cut the work of 64 and 256 requests over 4096 tokens."""
    found: dict[str, float] = {}
    configs = [
        SharedConfig(rows, keys, warps, stages, 256, programs)
        for rows, keys, warps, stages in (
            *(
                (64, 64, 4, 2),
                (64, 64, 4, 3),
                (64, 64, 4, 4),
                (64, 32, 4, 4),
                (64, 128, 4, 2),
                (64, 128, 4, 3),
                (64, 128, 8, 3),
            ),
            *((16, 64, 4, 3), (32, 64, 4, 3)),
        )
        for programs in (132, 264, 528)
    ]
    shapes = ((64, 64, 4096), (64, 16, 1024), (256, 256, 1024))
    first = step_of(*shapes[0])
    large = [SharedConfig(128, keys, 8, stages, 256, programs) for keys, stages, programs in LARGE]
    warm([partial(first.shared, 0, config) for config in configs + large], 40.0)
    for name in shapes:
        step = step_of(*name)
        module.TILE_MEMBERS = 32  # of which 4 query heads each fill 128 rows
        of_32 = step_of(*name)
        for config in large:
            took = graph_us([partial(of_32.shared, layer, config) for layer in range(len(of_32.caches))], 3)
            found[f"{name} {config}"] = round(took, 1)
        module.TILE_MEMBERS = 16
        for config in configs:
            took = graph_us([partial(step.shared, layer, config) for layer in range(len(step.caches))], 3)
            found[f"{name} {config}"] = round(took, 1)
        best = sorted((took, key) for key, took in found.items() if key.startswith(str(name)))
        for took, key in best:
            print(f"{took:6.1f} {key}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sweep", action="store_true", help="other ways to cut the work, too")
    arguments = parser.parse_args()
    begin = time.monotonic()
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "failures": check()}
    print("failures:", report["failures"], f"after {time.monotonic() - begin:.0f} s", flush=True)
    if not report["failures"]:
        report["steps"] = time_steps()
        print(f"after {time.monotonic() - begin:.0f} s", flush=True)
        if arguments.sweep:
            report["sweep"] = sweep()
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
