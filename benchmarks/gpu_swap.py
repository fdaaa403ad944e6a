"""Checks and times the copies of pages between a GPU and host memory, in half a minute.

    python benchmarks/gpu_swap.py [--json FILE]

Right: pages go out and in at random beside steps that read and write others, for three orders of the cache; each step
looks at what its pages hold before it writes them. Fast: GB/s of an 8B model's pages (32 layers, 8 heads of 128, bf16,
16 tokens: 2 MiB), beside what one plain copy from pinned memory reaches; how long the host is kept; and what steps of
matrix products take with and without copies beside them. Exit status 1 if a check fails.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server")]

import torch  # noqa: E402

from octavo_server.step import SchedulerOutput  # noqa: E402
from octavo_server.worker.models.interface import KVCacheSpec  # noqa: E402
from octavo_server.worker.swapper import Swapper  # noqa: E402

Views = list[tuple[torch.Tensor, torch.Tensor]]
Moves = list[tuple[int, int]]
CUDA: Final = torch.device("cuda")
REPEAT: Final = 7
MOVED: Final = 256  # pages moved at once where copies are timed


def layer_first(spec: KVCacheSpec) -> Views:
    """A tensor a layer, heads before tokens."""
    shape = (2, spec.num_blocks, spec.num_kv_heads, spec.block_size, spec.head_dim)
    layers = [torch.zeros(shape, dtype=spec.dtype, device=spec.device) for _ in range(spec.num_layers)]
    return [(layer[0].transpose(1, 2), layer[1].transpose(1, 2)) for layer in layers]


def page_first(spec: KVCacheSpec) -> Views:
    """As the server has it: one tensor in which a page is one stretch over all layers."""
    return spec.allocate()


def tokens_first(spec: KVCacheSpec) -> Views:
    """K and V of each layer apart, tokens before heads."""
    shape = (spec.num_blocks, spec.block_size, spec.num_kv_heads, spec.head_dim)

    def array() -> torch.Tensor:
        return torch.zeros(shape, dtype=spec.dtype, device=spec.device)

    return [(array(), array()) for _ in range(spec.num_layers)]


LAYOUTS: Final = (layer_first, page_first, tokens_first)


def all_slots(swapper: Swapper) -> Swapper:
    while swapper.grow():
        continue
    return swapper


class Steps:
    """Random moves and steps. A page's content is a fixed pattern plus its tag, so that its tag is all to remember."""

    def __init__(self, layout: Callable[[KVCacheSpec], Views], device: torch.device, seed: int) -> None:
        self.draw = random.Random(seed)
        spec = KVCacheSpec(8, 96, 16, 4, 64, torch.bfloat16, device)
        cache = layout(spec)
        self.arrays = [array.view(torch.int16) for layer in cache for array in layer]
        generator = torch.Generator(device).manual_seed(seed)
        shape = (len(self.arrays), spec.block_size, spec.num_kv_heads, spec.head_dim)
        self.pattern = torch.randint(-(2**15), 2**15, shape, device=device, generator=generator, dtype=torch.int16)
        self.swapper = all_slots(Swapper(cache, spec, num_slots=64, disk=None))
        self.device, self.num_pages, self.num_slots = device, spec.num_blocks, 64
        self.pages, self.slots = dict.fromkeys(range(spec.num_blocks), 0), dict[int, int]()
        for page in self.pages:
            self.write(page, 0)
        self.wrong = torch.zeros((), dtype=torch.int64, device=device)
        self.matrix = torch.randn(2048, 2048, device=device)
        self.in_flight: deque[tuple[Any, set[int]]] = deque()
        self.moved = 0

    def write(self, page: int, tag: int) -> None:
        for array, pattern in zip(self.arrays, self.pattern, strict=True):
            array[page] = pattern + tag

    def look(self, page: int, tag: int) -> None:
        for array, pattern in zip(self.arrays, self.pattern, strict=True):
            self.wrong += (array[page] != pattern + tag).sum()

    def moves(self) -> tuple[Moves, Moves]:
        outs, ins = [], []
        free = [slot for slot in range(self.num_slots) if slot not in self.slots]
        self.draw.shuffle(free)
        for page in self.draw.sample(range(self.num_pages), self.draw.randint(0, min(24, len(free)))):
            slot = free.pop()
            self.slots[slot] = self.pages[page]
            outs.append((page, slot))
        sources = self.draw.sample(sorted(self.slots), self.draw.randint(0, min(24, len(self.slots))))
        for slot, page in zip(sources, self.draw.sample(range(self.num_pages), len(sources)), strict=True):
            self.pages[page] = self.slots.pop(slot)
            ins.append((slot, page))
        self.moved += len(outs) + len(ins)
        return outs, ins

    def step(self, number: int) -> None:
        outs, ins = self.moves()
        busy = set[int]().union(*(pages for _, pages in self.in_flight))
        self.swapper.launch(SchedulerOutput(number, swap_out=outs, swap_in=ins), busy)
        used = self.draw.sample(range(self.num_pages), 12)
        for page in used:
            self.look(page, self.pages[page])
        for _ in range(self.draw.randint(0, 20)):
            self.matrix @ self.matrix
        for page in used:
            self.pages[page] = number % 1000
            self.write(page, self.pages[page])
        self.swapper.step_launched()
        self.in_flight.append(
            (torch.cuda.current_stream().record_event() if self.device.type == "cuda" else None, {*used})
        )
        while len(self.in_flight) > self.draw.choice([0, 1, 1, 2]):
            event, _ = self.in_flight.popleft()
            if event is not None:
                event.synchronize()

    def finish(self) -> dict[str, int]:
        for slot, tag in sorted(self.slots.items()):  # what is still out comes in once more, to be seen
            self.swapper.launch(SchedulerOutput(0, swap_in=[(slot, 0)]), set(range(self.num_pages)))
            self.look(0, tag)
            self.swapper.step_launched()
        for page in range(1, self.num_pages):
            self.look(page, self.pages[page])
        result = {"pages moved": self.moved, "wrong values": int(self.wrong.item())}
        self.swapper.close()
        return result


def check_swap(device: torch.device = CUDA, steps: int = 300) -> dict[str, dict[str, int]]:
    """Of each order of the cache: pages moved, and values that were not what they had to be."""
    found = {}
    for seed, layout in enumerate(LAYOUTS):
        run = Steps(layout, device, seed)
        for number in range(1, steps):
            run.step(number)
        found[layout.__name__] = run.finish()
    return found


def median_seconds(run: Callable[[], None], wait: Callable[[], None]) -> float:
    times = []
    for _ in range(REPEAT):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def time_plain_copy(num_bytes: int) -> dict[str, float]:
    """GB/s of one copy between a contiguous tensor and torch's own pinned memory: what there is to be reached."""
    host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
    out = median_seconds(lambda: void(host.copy_(device, non_blocking=True)), torch.cuda.synchronize)
    back = median_seconds(lambda: void(device.copy_(host, non_blocking=True)), torch.cuda.synchronize)
    return {"out GB/s": num_bytes / out / 1e9, "in GB/s": num_bytes / back / 1e9}


def void(_value: object) -> None:
    return


def time_swap() -> dict[str, Any]:
    """The figures, for both orders of an 8B model's cache."""
    spec = KVCacheSpec(32, 1024, 16, 8, 128, torch.bfloat16, CUDA)
    report: dict[str, Any] = {"plain copy": time_plain_copy(MOVED * spec.bytes_per_block)}
    for layout in (layer_first, page_first):
        begin = time.perf_counter()
        swapper = all_slots(Swapper(layout(spec), spec, num_slots=512, disk=None))
        torch.cuda.synchronize()
        figures: dict[str, float] = {"pinning, GB/s": swapper.host_bytes / (time.perf_counter() - begin) / 1e9}
        figures |= time_copies(swapper)
        swapper.poll()
        figures["GB/s as the swapper measures"] = swapper.copy_bytes_per_second / 1e9
        figures |= time_overlap(swapper)
        report[layout.__name__] = figures
        swapper.close()
        del swapper
        torch.cuda.empty_cache()
    return report


def time_copies(swapper: Swapper) -> dict[str, float]:
    """GB/s from the launch to the last byte, and milliseconds that the launch itself takes."""
    draw, figures = random.Random(1), {}

    def launch(output: SchedulerOutput) -> Callable[[], None]:
        return lambda: swapper.launch(output, set())

    for name, slots in (("", list(range(MOVED))), (" scattered slots", draw.sample(range(512), MOVED))):
        pages = draw.sample(range(1024), MOVED)
        out = launch(SchedulerOutput(0, swap_out=list(zip(pages, slots, strict=True))))
        back = launch(SchedulerOutput(0, swap_in=list(zip(slots, pages, strict=True))))
        for direction, move in (("out", out), ("in", back)):
            move()
            seconds = median_seconds(move, torch.cuda.synchronize)
            figures[f"{direction} GB/s{name}"] = MOVED * swapper.bytes_per_page / seconds / 1e9
            figures[f"{direction} ms of the host{name}"] = 1000 * median_seconds(move, lambda: None)
    return figures


def time_overlap(swapper: Swapper) -> dict[str, float]:
    """Milliseconds of two steps of matrix products, of the copies between them, and of both together."""
    matrix = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    half = MOVED // 2
    outs, ins = [(page, page) for page in range(half)], [(half + slot, half + slot) for slot in range(half)]
    output = SchedulerOutput(0, swap_out=outs, swap_in=ins)

    def step() -> None:
        for _ in range(20):
            matrix @ matrix
        swapper.step_launched()

    def both(in_flight: set[int]) -> None:
        step()
        swapper.launch(output, in_flight)
        step()

    def two_steps() -> None:
        step()
        step()

    two_steps()
    waiting = set(range(MOVED))
    return {
        "two steps, ms": 1000 * median_seconds(two_steps, torch.cuda.synchronize),
        "copies, ms": 1000 * median_seconds(lambda: swapper.launch(output, set()), torch.cuda.synchronize),
        "both, pages at rest, ms": 1000 * median_seconds(lambda: both(set()), torch.cuda.synchronize),
        "both, pages in flight, ms": 1000 * median_seconds(lambda: both(waiting), torch.cuda.synchronize),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "check": check_swap()}
    failed = any(result["wrong values"] for result in report["check"].values())
    print("pages out and in beside steps:", report["check"], flush=True)
    if not failed:
        report["figures"] = time_swap()
        for name, figures in report["figures"].items():
            print(name, {key: round(value, 2) for key, value in figures.items()})
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("a check FAILED" if failed else "all checks passed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
