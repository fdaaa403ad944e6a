"""Attention of whole prompts, K and V straight from the step: checks and times candidates.

python benchmarks/chunk_experiments.py [--only SECTION ...] [--json FILE]
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "tests/support", "benchmarks")]

import hopper_persistent  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from gpu_kernels import event_ms, graph_us, tried  # noqa: E402
from kernel_checks import RAGGED, SHAPES, TOLERANCE, Case, poisoned, warm  # noqa: E402
from octavo_kernels.prompt_attention import prompt_attention  # noqa: E402

from octavo_kernels import gathered_attention as gathered  # noqa: E402
from octavo_kernels.hopper_attention import hopper_attention  # noqa: E402
from octavo_kernels.metadata import AttentionMetadata  # noqa: E402
from octavo_kernels.paged_attention import AttentionConfig  # noqa: E402

TRITON: Final = (
    *((64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 4, 4), (128, 64, 8, 3), (128, 64, 4, 3)),
    *((64, 128, 4, 2), (128, 128, 8, 2), (128, 128, 8, 3)),
)
GLUON: Final = (
    *(
        {"keys": 128, "stages": 2, "heads_first": heads, "sort": sort}
        for heads in (False, True)
        for sort in (False, True)
    ),
    *({"keys": 64, "stages": 4, "heads_first": heads, "sort": True} for heads in (False, True)),
    *({"groups": 1, "keys": 64, "stages": 3, "heads_first": heads, "sort": True} for heads in (False, True)),
    {"groups": 1, "keys": 64, "stages": 3, "heads_first": False, "sort": False},
    {"groups": 1, "keys": 64, "stages": 2, "heads_first": True, "sort": True},
)
PERSISTENT: Final = (
    *({"keys": 128, "stages": 2, "heads_first": heads, "sort": True, "programs": 132} for heads in (False, True)),
    {"keys": 128, "stages": 2, "heads_first": False, "sort": False, "programs": 132},
    *(
        {"groups": 1, "keys": 64, "stages": 3, "heads_first": heads, "sort": True, "programs": 264}
        for heads in (False, True)
    ),
)
IN_STEP: Final = (GLUON[0], GLUON[3], GLUON[7])


class Prompts:
    """Whole prompts of these lengths, q, k and v as a layer's first product leaves them."""

    def __init__(
        self, lengths: list[int], heads: tuple[int, int, int] = (32, 8, 128), dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
    ) -> None:  # fmt: skip
        draw = torch.Generator("cuda").manual_seed(seed)
        self.lengths = lengths
        q, kv, dim = heads
        qkv = torch.randn(sum(lengths), q + 2 * kv, dim, dtype=dtype, device="cuda", generator=draw)
        self.q, self.k, self.v = qkv[:, :q], qkv[:, q : q + kv], qkv[:, q + kv :]
        self.metadata = AttentionMetadata(
            torch.tensor([0, *lengths]).cumsum(0).int().cuda(),
            torch.tensor(lengths).int().cuda(),
            torch.zeros(len(lengths), 1).int().cuda(),
            max_query_len=max(lengths),
            max_context_len=max(lengths),
        )

    def triton(self, config: AttentionConfig, window: int | None = None) -> torch.Tensor:
        scale = self.q.shape[2] ** -0.5
        return prompt_attention(self.q, self.k, self.v, self.metadata, scale, window, config)

    def gluon(self, **options: Any) -> torch.Tensor:
        none = self.k[:1].unsqueeze(0)
        scale = self.q.shape[2] ** -0.5
        return hopper_attention(self.q, none, none, self.metadata, scale, step_kv=(self.k, self.v), **options)

    def expected(self, window: int | None = None) -> torch.Tensor:
        found = []
        group = self.q.shape[1] // self.k.shape[1]
        for q, k, v in zip(*(x.double().split(self.lengths) for x in (self.q, self.k, self.v)), strict=True):
            k, v = (x.repeat_interleave(group, 1) for x in (k, v))
            i = torch.arange(len(q), device="cuda")
            hidden = i[None, :] > i[:, None]
            if window is not None:
                hidden |= i[None, :] <= i[:, None] - window
            scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[2] ** -0.5
            found.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
        return torch.cat(found)


def check(gluon: bool = False) -> dict[str, Any]:
    """Relative errors over ragged prompts, one of which is NaN."""
    report: dict[str, Any] = {}
    lengths = [5, 640, 1, 200, 128, 77, 1025, 64, 33, 2]
    shapes = ((32, 8, 128), (16, 8, 128), (7, 1, 64), (6, 2, 128), (8, 8, 64))
    calls: list[tuple[str, Prompts, int | None, Callable[[Prompts], torch.Tensor]]] = []
    for shape in shapes:
        case = Prompts(lengths, shape, torch.float16 if shape[0] == 7 else torch.bfloat16)
        start = sum(lengths[:5])
        for x in (case.q, case.k, case.v):
            x[start : start + lengths[5]] = torch.nan
        for window in () if gluon else (None, 100):
            for config in ((64, 64, 4, 3), (128, 128, 8, 3)):
                name = f"triton {shape} window {window} {config}"
                calls.append((name, case, window, lambda c, w=window, x=config: c.triton(AttentionConfig(*x), w)))  # type: ignore[misc]
        for options in (GLUON if shape == shapes[0] else GLUON[1::4]) if gluon else ():
            calls.append((f"gluon {shape} {options}", case, None, lambda c, o=options: c.gluon(**o)))  # type: ignore[misc]
    begin = time.perf_counter()
    warm([lambda call=call: call[3](call[1]) for call in calls])  # type: ignore[misc]
    print(f"compiled in {time.perf_counter() - begin:.0f} s")
    sound = torch.cat([torch.full((n,), n > 1 and n != 77) for n in lengths]).cuda()
    for name, case, window, run in calls:
        truth, found = case.expected(window)[sound], run(case)[sound].double()
        error = ((found - truth).norm() / truth.norm()).item()
        report[name] = error
        if not error <= TOLERANCE[case.q.dtype]:
            print(f"WRONG {name}: {error:.2e}", flush=True)
            report.setdefault("failures", []).append(name)
    print(f"{len(calls)} checked, largest {max(v for v in report.values() if isinstance(v, float)):.1e}", flush=True)
    torch.cuda.synchronize()
    return report


def ragged(total: int = 8192) -> list[int]:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(100, 1025, (total // 400,), generator=draw).tolist()
    while sum(lengths) > total:
        lengths.pop()
    return lengths


def check_gluon(chosen: tuple[dict[str, Any], ...] = GLUON) -> dict[str, Any]:
    """Relative errors of chunks over pages, in a cache that is NaN wherever nothing may be read."""
    report: dict[str, Any] = {}
    calls = []
    shapes = {**{name: SHAPES[name] for name in ("8B", "0.6B", "7, one key head")}, "3": (6, 2, 128), "1": (4, 4, 64)}
    for name, shape in shapes.items():
        for page_size in (16, 8, 256) if name == "8B" else (64, 128):
            case = Case(
                RAGGED, heads=shape, page_size=page_size, dtype=torch.float16 if name == "3" else torch.bfloat16
            )
            for options in chosen if page_size == 16 else chosen[::3]:
                calls.append((f"{name} {page_size} {options}", case, paged_call(options)))
    begin = time.perf_counter()
    warm([lambda call=call: call[2](call[1]) for call in calls])  # type: ignore[misc]
    print(f"compiled in {time.perf_counter() - begin:.0f} s", flush=True)
    for name, case, run in calls:
        chunks = torch.cat([torch.full((count,), count > 1) for count in case.counts]).cuda()
        truth, found = case.expected()[chunks], poisoned(lambda r=run, c=case: r(c))[chunks].double()  # type: ignore[misc]
        error = ((found - truth).norm() / truth.norm()).item()
        report[name] = error
        if not error <= TOLERANCE[case.q.dtype]:
            print(f"WRONG {name}: {error:.2e}", flush=True)
    print(f"{len(calls)} checked, largest {max(report.values()):.1e}", flush=True)
    again = [torch.equal(calls[0][2](calls[0][1])[:700], calls[0][2](calls[0][1])[:700]) for _ in range(3)]
    print("the same bits again:", again, flush=True)
    return report


def paged_call(options: dict[str, Any]) -> Callable[[Case], torch.Tensor]:
    attend = hopper_persistent.hopper_attention if "programs" in options else hopper_attention
    return lambda c: attend(c.q, c.k, c.v, c.metadata, c.scale, **options)


CHUNKS: Final = {
    **{f"{n}x{length}": [(length, length)] * n for n, length in ((1, 8192), (4, 2048), (16, 512), (1, 4096))},
    **{f"{n}x{length}": [(length, length)] * n for n, length in ((1, 2048), (1, 1024), (1, 512), (64, 128))},
    "ragged": [],
    "8192 after 8192": [(8192, 16384)],
    "2048 after 8192": [(2048, 10240)],
    "4x512 after 4096": [(512, 4608)] * 4,
    "64x64 after 4096, shared": [(64, 4160)] * 64,
}


def times(chosen: tuple[dict[str, Any], ...] = GLUON) -> dict[str, Any]:
    """TFLOP/s of every candidate."""
    report: dict[str, Any] = {}
    for name, requests in CHUNKS.items():
        requests = requests or [(n, n) for n in ragged()]
        cases = [Case(requests, poison=False, seed=seed) for seed in range(1 if len(requests) == 64 else 3)]
        if "shared" in name:
            cases[0].metadata.block_tables[:, :256] = cases[0].metadata.block_tables[0, :256].clone()
        whole = all(n == context for n, context in requests)
        steps = [Prompts([n for n, _ in requests], seed=seed) for seed in range(3)] if whole else []
        operations = sum(32 * 128 * 4 * n * (context - n + (n + 1) / 2) for n, context in requests)

        def rate(run: Callable[[Any], object], cases: list[Any] = cases, operations: float = operations) -> float:
            us = tried(lambda: graph_us([lambda case=case: run(case) for case in cases]))  # type: ignore[misc]
            return round(operations / us / 1e6)

        # The plan of the tiles is made once a step: it is left out, as it is in all layers but the first.
        found = {
            "now": rate(lambda c: gathered.attention(c.q, c.k, c.v, c.metadata, 0.088)),
            "pages": rate(lambda c: c.run()),
        }
        for options in chosen:
            found["gluon " + key_of(options)] = rate(paged_call(options))
        for options in IN_STEP if whole else ():
            found["step " + key_of(options)] = rate(lambda c, o=options: c.gluon(**o), steps)  # type: ignore[misc]
        report[name] = found
        print(name, found, flush=True)
        del cases, steps
    return report


def key_of(options: dict[str, Any]) -> str:
    return " ".join(f"{name[0]}{int(value)}" for name, value in options.items())


def plans() -> dict[str, Any]:
    """Milliseconds that SDPA takes on the host for lengths it has not met, and has."""
    report: dict[str, Any] = {}
    for length in (1000, 1001, 1500, 3000, 7777, 1000, 7777):
        case = Prompts([length])
        torch.cuda.synchronize()
        begin = time.perf_counter()
        q, k, v = (x.unsqueeze(0).transpose(1, 2) for x in (case.q, case.k, case.v))
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        report[f"{length} ({len(report)})"] = round(1000 * (time.perf_counter() - begin), 2)
    case = Prompts([2048, 100, 1024])
    try:
        from torch.nn.attention.varlen import varlen_attn

        starts = case.metadata.query_start
        q, k, v = case.q, *(x.repeat_interleave(4, 1) for x in (case.k, case.v))
        run = lambda: varlen_attn(q, k, v, starts, starts, 2048, 2048, is_causal=True)  # noqa: E731
        report["varlen_attn, us"] = round(graph_us([run]))
    except Exception as error:
        report["varlen_attn"] = repr(error)[:200]
    print(report, flush=True)
    return report


def profile() -> dict[str, Any]:
    """Where the time of a prefill of the 8B shape goes, milliseconds by kernel."""
    import kernel_models
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from octavo_common.model_config import parse_model_config

    config = parse_model_config(kernel_models.MODELS["8b"])
    decoder = kernel_models.random_decoder(config, False)
    cache = kernel_models.random_cache(config, 1024)
    report: dict[str, Any] = {}
    for requests, tokens in ((1, 8192), (4, 2048), (1, 4096), (1, 2048)):
        batch = kernel_models.batch_of(requests, tokens, tokens, cache)

        def run(batch: Any = batch) -> torch.Tensor:
            return decoder.logits(decoder.forward(batch, cache)[-1:])

        ms = event_ms(run, 5)
        with profiler(activities=[ProfilerActivity.CUDA]) as found:
            run()
            torch.cuda.synchronize()
        kernels = {e.key[:70]: (round(e.device_time_total / 1000, 2), e.count) for e in found.key_averages()}
        top = dict(sorted(kernels.items(), key=lambda item: -item[1][0])[:9])
        busy = sum(value[0] for value in kernels.values())
        report[f"{requests}x{tokens}"] = {"ms": ms, "kernels": top, "sum": busy}
        rate = requests * tokens / ms * 1000
        print(f"{requests}x{tokens}: {ms:.2f} ms, {rate:.0f} tok/s, kernels {busy:.1f} ms", flush=True)
        for name, (value, count) in top.items():
            print(f"   {value:8.2f} ms x{count} {name}")
    x = torch.randn(8192, 4096, device="cuda", dtype=torch.bfloat16)
    for layers in (1, 8, 32):
        chosen = decoder.layers[:layers]
        products = [p.weight for layer in chosen for p in (layer.qkv, layer.output, layer.gate_up)]
        ms = event_ms(lambda p=products: [F.linear(x, w) for w in p], 3)  # type: ignore[misc]
        rate = sum(2 * 8192 * w.numel() for w in products) / ms / 1e9
        report[f"products of {layers} layers"] = rate
        print(f"products of {layers} layers in succession: {rate:.0f} TFLOP/s", flush=True)
    return report


SECTIONS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "check": check,
    "times": times,
    "plans": plans,
    "profile": profile,
    "check-gluon": check_gluon,
    "check-persistent": lambda: check_gluon(PERSISTENT),
    "times-persistent": lambda: times(PERSISTENT),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    for name in arguments.only:
        begin = time.perf_counter()
        try:
            with torch.inference_mode():
                report[name] = SECTIONS[name]()
        except Exception:
            traceback.print_exc(file=sys.stdout)
        torch.cuda.empty_cache()
        print(f"== {name}: {time.perf_counter() - begin:.1f} s", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
