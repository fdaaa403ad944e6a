"""Checks the sampling kernels on a GPU against their twin in torch, then times them: about half a minute.

    python benchmarks/gpu_sampling.py [--json FILE]

Rows of 151,936 logits in float32. Times are of CUDA-graph replays, medians, of random logits; host times are of the
launches alone, with nothing waited for. Exit status 1 if a check failed.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "tests/support", "benchmarks")]

import torch  # noqa: E402

from octavo_server.ipc import SamplingParams  # noqa: E402
from octavo_server.worker.logits_processors import SamplingRow  # noqa: E402
from octavo_server.worker.sampler import Sampler  # noqa: E402
from sampling_pair import SamplingPair  # noqa: E402

DEVICE: Final = torch.device("cuda")
VOCAB: Final = 151_936
SIZES: Final = (1, 8, 64, 256)
KINDS: Final[dict[str, dict[str, Any]]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.6},
    "top-k 20, top-p 0.95": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "top-k 64": {"temperature": 0.6, "top_k": 64},
    "top-p 0.95": {"temperature": 0.6, "top_p": 0.95},
    "top-k 1000, top-p 0.95": {"temperature": 0.6, "top_k": 1000, "top_p": 0.95},
    "min-p 0.05": {"temperature": 0.6, "min_p": 0.05},
    "penalties, 2000 tokens": {"temperature": 0.6, "repetition_penalty": 1.1, "frequency_penalty": 0.1},
    "logprobs 0": {"temperature": 0.6, "logprobs": 0},
    "logprobs 20": {"temperature": 0.6, "logprobs": 20},
    "penalties, logprobs 20": {"temperature": 0.6, "presence_penalty": 0.5, "logprobs": 20},
}


def logits_of(rows: int, spread: float, seed: int) -> torch.Tensor:
    """Normal logits: of a spread of 3 a few tokens are likely, of 0.2 all are about equally likely."""
    return torch.randn(rows, VOCAB, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(seed)) * spread


def pair_of(setting: dict[str, Any], rows: int, context: int = 2000) -> SamplingPair:
    """Requests that all ask for the same."""
    params = [SamplingParams(seed=31 * row + 7, **setting) for row in range(rows)]
    known = torch.randint(0, VOCAB, (rows, context), generator=torch.Generator().manual_seed(rows)).tolist()
    return SamplingPair(params, known, context // 2, VOCAB, DEVICE)


def warm() -> None:
    """Compiles all kernels side by side."""

    def draw(setting: dict[str, Any]) -> None:
        pair = pair_of(setting, 2, 20)
        pair.sampler.launch(logits_of(2, 1.0, 0), torch.tensor([0, 1], device=DEVICE), pair.rows([0, 1]), pair.last)

    with ThreadPoolExecutor(len(KINDS)) as pool:
        list(pool.map(draw, [*KINDS.values(), {"bad_words": ((1, 2), (3,)), "logprobs": 2}]))
    torch.cuda.synchronize()


def check() -> int:
    """Draws by the kernels and by the twin on the CPU, steps of changing logits; how many rows differ.

    Single ones may: where two tokens' scores differ by less than their rounding, and at the very edge of a top-p.
    """
    differing = total = 0
    words = tuple((first, last) for first in range(9) for last in (1, 3))
    settings = [*KINDS.values(), {"top_k": 5000}, {"top_p": 0.3}, {"bad_words": words}]
    for spread, rounding in ((3.0, 0), (0.2, 0), (3.0, 4)):
        params = [SamplingParams(seed=row, **setting) for row, setting in enumerate(settings)]
        pair = SamplingPair(params, [list(range(40))] * len(params), 20, VOCAB, DEVICE, eos=(5,))
        for step in range(3):
            logits = logits_of(len(params), spread, step)
            logits = (logits * rounding).round() / rounding if rounding else logits
            got, want = pair.step(logits)
            for one, other, setting in zip(got, want, settings, strict=True):
                same = one.token_id == other.token_id and (one.logprobs is None) == (other.logprobs is None)
                if same and one.logprobs is not None and other.logprobs is not None:
                    ours, theirs = one.logprobs, other.logprobs
                    same = (ours.token_ids, ours.rank) == (theirs.token_ids, theirs.rank)
                    same &= max(abs(a - b) for a, b in zip(ours.logprobs, theirs.logprobs, strict=True)) < 2e-5
                differing, total = differing + (not same), total + 1
                if not same:
                    print(f"differs: spread {spread}, rounding {rounding}, step {step}, {setting}: {one} for {other}")
    print(f"check: {differing} of {total} rows differ")
    return differing


def invariant() -> bool:
    """A row's token is the same alone and among 256."""
    logits = logits_of(256, 1.0, 5)
    for setting in ({"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 30}):
        together, alone = pair_of(setting, 256, 4), pair_of(setting, 256, 4)
        slot = torch.tensor([state.slot for state in together.states], device=DEVICE)
        whole = together.sampler.launch(logits.clone(), slot, together.rows(range(256)), together.last).token_ids()
        for row in range(0, 256, 37):
            one = alone.sampler.launch(logits[row : row + 1], slot[row : row + 1], alone.rows([row]), alone.last)
            if one.token_ids() != whole[row : row + 1]:
                return False
    return True


def median_us(run: Callable[[], object], repeat: int = 9) -> float:
    times = []
    for _ in range(repeat + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1000)
    return statistics.median(times[2:])


def times_of(setting: dict[str, Any], rows: int, spread: float) -> tuple[float, float]:
    """(device, host) microseconds of a draw."""
    pair = pair_of(setting, rows)
    inputs = [logits_of(rows, spread, seed) for seed in range(1 if rows >= 64 else 4)]
    slot = torch.tensor([state.slot for state in pair.states], device=DEVICE)
    scheduled = pair.rows(range(rows))

    def draw(logits: torch.Tensor) -> None:
        pair.sampler.launch(logits, slot, scheduled, pair.last)

    host = []
    for _ in range(25):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        draw(inputs[0])
        host.append(time.perf_counter() - begin)
    torch.cuda.synchronize()
    if "logprobs" in setting:  # uploads its rows
        device = median_us(lambda: [draw(logits) for logits in inputs]) / len(inputs)
        return device, statistics.median(host) * 1e6
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(side), torch.cuda.graph(graph, stream=side):
        for logits in inputs:
            draw(logits)
    return median_us(graph.replay) / len(inputs), statistics.median(host) * 1e6


def before() -> dict[str, float]:
    """The twin on the device, as the engine ran before: milliseconds at 256 rows."""
    logits, found = logits_of(256, 3.0, 0), {}
    for name in ("temperature", "top-k 20, top-p 0.95"):
        rows = [SamplingRow(SamplingParams(seed=row, **KINDS[name]), 50, 10) for row in range(256)]
        sampler = Sampler()
        found[name] = median_us(lambda rows=rows, sampler=sampler: sampler.launch(logits, rows), 3) / 1000  # type: ignore[misc]
        print(f"torch, 256 rows, {name}: {found[name]:.2f} ms")
    return found


def host_pieces() -> None:
    """What a plain step's launch is made of."""
    from octavo_kernels.sampling import draw_blocks, finish_draw

    pair, logits = pair_of(KINDS["temperature"], 256, 20), logits_of(256, 1.0, 0)
    slot = torch.tensor([state.slot for state in pair.states], device=DEVICE)
    rows, table, work = pair.rows(range(256)), pair.slots.table, pair.sampler._workspace
    tokens = torch.empty(256, dtype=torch.int32, device=DEVICE)
    tensors = pair.sampler.launch(logits, slot, rows, pair.last)
    for name, call in (
        ("draw_blocks", lambda: draw_blocks(logits, slot, table, work)),
        ("finish_draw", lambda: finish_draw(slot, table, work, pair.last, tokens)),
        ("flags", lambda: pair.slots.flags(rows)),
        ("to_host", lambda: tensors.to_host()),
        ("token_ids", lambda: tensors.to_host().token_ids()),
    ):
        times = []
        for _ in range(30):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        print(f"host of {name}: {statistics.median(times) * 1e6:.1f} us")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    warm()
    print(f"compiled in {time.perf_counter() - started:.1f} s")
    differing, fine = check(), invariant()
    print("the same alone and among others:", fine)
    found: dict[str, Any] = {"differing": differing, "invariant": fine}
    host_pieces()
    for spread in (3.0, 0.2):
        print(f"device / host us of a draw, logits of spread {spread}: {', '.join(map(str, SIZES))} rows")
        for name, setting in KINDS.items():
            if spread == 0.2 and not ("top" in name or name == "temperature"):
                continue
            pairs = [times_of(setting, rows, spread) for rows in SIZES]
            found[f"{name}, spread {spread}"] = pairs
            print(f"{name:24s} " + "  ".join(f"{device:7.1f} / {host:6.1f}" for device, host in pairs), flush=True)
    found["before"] = before()
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0 if differing <= 2 and fine else 1


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
