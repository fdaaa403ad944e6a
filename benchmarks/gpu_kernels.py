"""Checks the Triton kernels on a GPU, then times them, in one call of a few minutes.

    python benchmarks/gpu_kernels.py [--json FILE] [--only SECTION ...] [--seconds SECONDS]

Each section is guarded: what breaks in one is printed and hides no other's results. Sections that would begin after the
given time are left out, and named. Exit status 1 if a check failed or
a section broke; timings are taken all the same. Needs torch with CUDA; `parity` and `demo` also need transformers and
the packages of the `server` extra.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "tests/support", "benchmarks")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from guarded_sections import run_section  # noqa: E402
from kernel_checks import Case, check_correct, check_invariant, warm  # noqa: E402

from octavo_kernels import gathered_attention as gathered  # noqa: E402
from octavo_kernels import paged_attention as attention  # noqa: E402
from octavo_kernels.gemv import GemvConfig, gemv  # noqa: E402
from octavo_kernels.hopper_attention import HopperConfig  # noqa: E402
from octavo_kernels.invariant_linear import linear_of  # noqa: E402
from octavo_kernels.linear import LinearConfig, linear_tiles  # noqa: E402
from octavo_kernels.ops import triton_ops  # noqa: E402
from octavo_kernels.paged_attention import AttentionConfig  # noqa: E402
from octavo_kernels.rms_norm import add_rms_norm  # noqa: E402
from octavo_kernels.rope import rotate_and_store  # noqa: E402
from octavo_kernels.silu_and_mul import silu_and_mul  # noqa: E402

BANDWIDTH: Final = 3.08e12  # bytes/s that the card was seen to read
RATE: Final = 739e12  # bf16 operations/s that it was seen to do

# Written down before the third run: what each figure should come to by the choices made from the second.
PREDICTIONS: Final = {
    "decode 1x1024": "6.7 us: 128 keys, three stages, 8 splits",
    "decode 8x1024": "12.5 us",
    "decode 64x1024": "94.4 us",
    "decode 64x8192": "713 us: three stages",
    "decode 256x1024": "365 us",
    "decode 256x8192": "2840 us",
    "prefill 1x8192": "630 TFLOP/s by Hopper's kernel, whose programs stay",
    "prefill 4x2048": "520 TFLOP/s",
    "prefill 16x512": "300 TFLOP/s",
    "prefill 8192 after 8192": "630 TFLOP/s",
    "prefill 64x64 after 4096, shared": "580 TFLOP/s",
    "linear invariant, 8B layer, 1": "0.173 ms, +5 %: the tile goes by the number of rows",
    "linear invariant, 8B layer, 64": "0.177 ms, +3 %",
    "linear invariant, 8B layer, 256": "0.215 ms, +5 %: by the kernel for many rows",
    "linear invariant, 8B layer, 8192": "4.6 ms, +2 %",
    "8b step 1": "5.68 ms, was 5.93: GEMV 1024 wide 0.22 ms, attention 0.07",
    "8b step 8": "6.58 ms, was 6.69: tiles of 16 rows instead of cuBLAS",
    "8b step 64": "9.28 ms, nothing changed",
    "8b step 256": "19.28 ms, nothing changed",
    "0.6b step 1": "1.12 ms, was 1.31: GEMV of 3072 inputs 0.085, the head 0.01, attention 0.07",
    "0.6b step 8": "1.63 ms, was 1.66",
    "8b invariant step 1": "7.1 ms, was 8.4",
    "8b invariant step 64": "9.6 ms, was 11.1",
    "demo-decode-step-1": "3.2 ms, nothing changed",
}


def check_parity() -> dict[str, Any]:
    """Through the decoder: against transformers as in gpu_session, and a batch-invariant decoder against itself."""
    import gpu_session

    report: dict[str, Any] = {}
    failures = []
    for architecture in gpu_session.MODEL_TYPES:
        with tempfile.TemporaryDirectory() as directory:
            with torch.inference_mode(False):
                errors = gpu_session.check_parity(architecture, Path(directory))
            differing = {
                str(dtype): rows_that_differ(Path(directory), dtype) for dtype in (torch.float32, torch.bfloat16)
            }
        report[architecture] = {**errors, "rows that are not batch-invariant": differing}
        print(architecture, report[architecture], flush=True)
        if not errors["fp32"] <= gpu_session.FP32_TOLERANCE:
            failures.append(f"{architecture} fp32: {errors['fp32']:.1e}")
        if not errors["bf16"] <= gpu_session.BF16_RATIO * errors["bf16 of transformers"]:
            failures.append(f"{architecture} bf16: {errors['bf16']:.1e}")
        if any(differing.values()):
            failures.append(f"{architecture} is not batch-invariant: {differing}")
    return {**report, **({"failures": failures} if failures else {})}


def rows_that_differ(directory: Path, dtype: torch.dtype) -> int:
    """Rows of logits of a batch-invariant decoder whose bits depend on chunks and neighbours."""
    from octavo_common.model_config import read_model_config
    from octavo_server.worker.models.decoder import load_decoder
    from paged_loop import PagedLoop, Sequence

    ops = triton_ops(batch_invariant=True)
    decoder = load_decoder(directory, read_model_config(directory), dtype, torch.device("cuda"), ops)
    tokens = torch.randint(0, 32_000, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    loop = PagedLoop(decoder, num_blocks=256, block_size=16)
    whole = loop.step([(Sequence(), tokens)])[0]
    ours, others = Sequence(), [Sequence() for _ in range(64)]
    loop.step([(other, tokens[index : index + 9]) for index, other in enumerate(others)])
    rows = [loop.step([(ours, tokens[:150])])[0]]
    for token in tokens[150:200]:
        rows.append(loop.step([*((other, [token]) for other in others[:32]), (ours, [token])])[-1])
    rows.append(loop.step([(others[40], tokens[:33]), (ours, tokens[200:])])[-1])
    return int((torch.cat(rows) != whole).any(1).sum())


def graph_us(calls: list[Callable[[], object]], replays: int = 10) -> float:
    """Microseconds of a call: all calls in one CUDA graph, the median over its replays."""
    # A stream of its own does not wait for the inputs, which may still be in the making on this one.
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls[:4]:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return event_ms(graph.replay, replays) * 1000 / len(calls)


def event_ms(run: Callable[[], object], repeat: int = 5) -> float:
    """Milliseconds between device events around a run, the median."""
    times = []
    for _ in range(repeat + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[2:])


def tried(measure: Callable[[], float]) -> float:
    """What was measured; infinite where a configuration does not compile or fit."""
    try:
        return measure()
    except Exception as error:
        print("   ", type(error).__name__, str(error).strip().splitlines()[:1], flush=True)
        torch.cuda.synchronize()
        return float("inf")


def ranked(name: str, found: dict[str, float], floor: float, unit: str) -> dict[str, Any]:
    """Prints and returns what was measured, the fastest first."""
    found = dict(sorted(found.items(), key=lambda item: item[1]))
    shown = ", ".join(f"{config}: {value:.4g}" for config, value in list(found.items())[:6])
    fixed = {config: round(value, 3) for config, value in found.items() if config[0].isalpha()}
    print(f"{name}: floor {floor:.4g} {unit}; {shown}; {fixed}; predicted {PREDICTIONS.get(name, '-')}", flush=True)
    return {"floor": round(floor, 3), unit: {config: round(value, 3) for config, value in found.items()}}


DECODE: Final = ((32, 4, 5), (64, 4, 2), (64, 4, 3), (128, 4, 2), (128, 4, 3))  # keys, warps, stages
PROGRAMS: Final = (64, 528, 1056, 2112)
# Rows, keys, warps, stages.
GATHERED: Final = ((64, 64, 4, 3), (128, 128, 8, 3))
# Groups, keys, stages, programs a processor.
HOPPER: Final = ((2, 128, 2, 0), (2, 128, 2, 1), (1, 64, 3, 0), (1, 64, 3, 2))
# (tokens in the step, tokens in the cache) of each request: prompts, and chunks behind a prefix.
STEPS: Final[dict[str, list[tuple[int, int]]]] = {
    **{f"{n}x{length}": [(length, length)] * n for n, length in ((1, 8192), (4, 2048), (16, 512), (64, 128))},
    **{f"1x{length}": [(length, length)] for length in (4096, 2048, 1024, 512)},
    "15x100 to 1000": [(n, n) for n in range(100, 1001, 64)],
    "8192 after 8192": [(8192, 16384)],
    "2048 after 8192": [(2048, 10240)],
    "4x512 after 4096": [(512, 4608)] * 4,
    "64x64 after 4096, shared": [(64, 4160)] * 64,
}


def time_decode() -> dict[str, Any]:
    """Microseconds of attention, one token a request: every configuration and number of splits."""
    report: dict[str, Any] = {}
    invariant = attention.invariant_config(torch.bfloat16, 128, 4)
    small = Case([(1, 1024)] * 2, poison=False)
    configs = [AttentionConfig(16, keys, warps, stages, 64, 64) for keys, warps, stages in DECODE]
    configs += [AttentionConfig(16, keys, warps, stages, 1) for keys, warps, stages in DECODE]  # in one split
    warm(lambda c=config: small.run(configs=(c, c)) for config in [*configs, invariant])  # type: ignore[misc]
    for batch, context in ((1, 1024), (8, 1024), (64, 1024), (64, 8192), (256, 1024), (256, 8192)):
        case = Case([(1, context)] * batch, poison=False)
        floor = batch * context * 8 * 128 * 2 * 2 / BANDWIDTH * 1e6
        often = max(1, min(20, int(2000 / floor)))

        def measure(config: AttentionConfig, case: Case = case, often: int = often) -> float:
            return tried(lambda: graph_us([lambda: case.run(configs=(config, config))] * often))

        found: dict[str, float] = {}
        for keys, warps, stages in DECODE:
            for programs in PROGRAMS:
                config = AttentionConfig(16, keys, warps, stages, programs, 64)
                name = f"{keys} keys w{warps} s{stages} /{attention.num_splits(config, batch * 8, context)}"
                if name not in found:
                    found[name] = measure(config)
        found["as chosen"] = measure(attention.decode_config(torch.bfloat16, 128, 4, batch * 8))
        found["invariant"] = measure(invariant)
        report[f"decode {batch}x{context}"] = ranked(f"decode {batch}x{context}", found, floor, "us")
    return report


def time_prefill() -> dict[str, Any]:
    """TFLOP/s of attention over chunks: what is chosen, and what is to be chosen from; torch's on contiguous K and V.

    The list of tiles of Hopper's kernel is not in it, being made once a step.
    """
    report: dict[str, Any] = {}
    configs = [HopperConfig(*shape, heads_first=order) for shape in HOPPER for order in (False, True)]
    warm(lambda c=config: Case([(64, 64)], poison=False).run_hopper(c) for config in configs)  # type: ignore[misc]
    for name, requests in STEPS.items():
        cases = [Case(requests, poison=False, seed=seed) for seed in range(1 if len(requests) == 64 else 3)]
        if "shared" in name:
            cases[0].metadata.block_tables[:, :256] = cases[0].metadata.block_tables[0, :256].clone()
        operations = sum(32 * 128 * 4 * n * (context - n + (n + 1) / 2) for n, context in requests)

        def rate(run: Callable[[Case], object], cases: list[Case] = cases, operations: float = operations) -> float:
            us = tried(lambda: graph_us([lambda case=case: run(case) for case in cases]))  # type: ignore[misc]
            return operations / us / 1e6

        found = {"as chosen": rate(lambda c: gathered.attention(c.q, c.k, c.v, c.metadata, c.scale))}
        for config in configs:
            key = f"{config.groups}x64 x{config.keys} /{config.programs} {'heads' if config.heads_first else 'tiles'}"
            found[key] = rate(lambda c, x=config: c.run_hopper(x))  # type: ignore[misc]
        for shape in GATHERED:
            key = "gathered {}x{}".format(*shape)
            found[key] = rate(lambda c, x=shape: c.run_gathered(config=AttentionConfig(*x)))  # type: ignore[misc]
        found["pages"] = rate(lambda c: c.run())
        lengths = {n for n, context in requests if n == context}
        if len(lengths) == 1:
            length = lengths.pop()
            shape = [torch.randn(len(requests), n, length, 128, device="cuda").bfloat16() for n in (32, 8, 8)]
            sdpa = [lambda x=shape: F.scaled_dot_product_attention(*x, is_causal=True, enable_gqa=True)]  # type: ignore[misc]
            found["SDPA, contiguous"] = operations / tried(lambda calls=sdpa: graph_us(calls)) / 1e6  # type: ignore[misc]
        report[f"prefill {name}"] = {key: round(value) for key, value in found.items()}
        print(
            f"prefill {name}, TFLOP/s: {report[f'prefill {name}']}; predicted", PREDICTIONS.get(f"prefill {name}", "-")
        )
        sys.stdout.flush()
    return report


def time_small() -> dict[str, Any]:
    """Microseconds of the kernels between the products, at both models' widths; inputs rotate past the L2."""
    report: dict[str, Any] = {}

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    def measure(name: str, make: Callable[[], Callable[[], object]], moved: float) -> None:
        calls = [make() for _ in range(max(2, min(40, int(1.5e8 / moved))))]
        report[name] = round(tried(lambda: graph_us(calls)), 2)
        floor = moved / BANDWIDTH * 1e6
        print(f"{name}: {report[name]} us, floor {floor:.2f}; predicted {PREDICTIONS.get(name, '-')}", flush=True)

    def norm(rows: int, hidden: int) -> Callable[[], object]:
        x, residual, weight = draw(rows, hidden), draw(rows, hidden), draw(hidden)
        return lambda: add_rms_norm(x, residual, weight, 1e-5)

    def silu(rows: int, inner: int) -> Callable[[], object]:
        x = draw(rows, 2 * inner)
        return lambda: silu_and_mul(x)

    def rope(rows: int, heads: int, qk_norm: bool) -> Callable[[], object]:
        qkv, cos, weight = draw(rows, heads + 16, 128), torch.randn(rows, 64, device="cuda"), draw(128)
        k, v = (draw(rows // 16 + 1, 8, 16, 128).transpose(1, 2) for _ in range(2))
        slots = torch.randperm(rows, device="cuda")
        norms = (weight, weight, 1e-6) if qk_norm else None
        return lambda: rotate_and_store(qkv, (cos, cos), norms, (k, v), slots)

    for hidden, heads, inner, qk_norm in ((4096, 32, 14336, False), (1024, 16, 3072, True)):
        for rows in (1, 64, 256, 8192):
            measure(f"add_rms_norm {rows}x{hidden}", lambda r=rows, h=hidden: norm(r, h), rows * hidden * 8)  # type: ignore[misc]
            measure(f"silu_and_mul {rows}x{2 * inner}", lambda r=rows, i=inner: silu(r, i), rows * inner * 6)  # type: ignore[misc]
            name = f"rotate_and_store {rows}" + (" with QK-norm" if qk_norm else "")
            measure(name, lambda r=rows, h=heads, n=qk_norm: rope(r, h, n), rows * (heads + 16) * 512)  # type: ignore[misc]
    return report


LINEAR: Final = [
    *((64, 128, 64, 4, 4), (64, 64, 128, 4, 3), (16, 32, 64, 4, 6), (16, 64, 64, 4, 6), (64, 64, 64, 4, 5)),
    *((128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (64, 32, 128, 4, 4)),
]  # rows, outputs, inputs, warps, stages


def time_linear() -> dict[str, Any]:
    """Milliseconds of the four products of an 8B layer (436 MB of weights): cuBLAS, and the invariant ones."""
    shapes = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
    weights = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]
    size = sum(weight.numel() for weight in weights)
    report: dict[str, Any] = {}
    row = torch.randn(1, 4096, device="cuda", dtype=torch.bfloat16)
    warm(lambda c=shape: linear_tiles(row, weights[0], None, LinearConfig(*c)) for shape in LINEAR)  # type: ignore[misc]
    for rows in (1, 64, 256, 8192):
        inputs = {width: torch.randn(rows, width, device="cuda", dtype=torch.bfloat16) for width in (4096, 14336)}

        def measure(
            product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
            inputs: dict[int, torch.Tensor] = inputs,
            often: int = 8 if rows < 8192 else 1,
        ) -> float:
            layer = [lambda w=w: product(inputs[w.shape[1]], w) for w in weights]  # type: ignore[misc]
            return tried(lambda: graph_us(layer * often) * len(layer) / 1000)

        found = {"cuBLAS": measure(F.linear), "as chosen": measure(lambda x, w: linear_of(x, w, None))}
        for m, n, k, w, s in LINEAR:
            if rows < 8192 or m >= 64:
                config = LinearConfig(m, n, k, w, s)
                found[f"{m}x{n}x{k} w{w} s{s}"] = measure(lambda x, y, c=config: linear_tiles(x, y, None, c))  # type: ignore[misc]
        floor = max(size * 2 / BANDWIDTH, size * 2 * rows / RATE) * 1e3
        report[str(rows)] = ranked(f"linear invariant, 8B layer, {rows}", found, floor, "ms")
        print(f"    price of batch invariance: {found['as chosen'] / found['cuBLAS'] - 1:+.0%}", flush=True)
    return report


# Outputs, inputs, how often in a step.
PRODUCTS: Final = {
    "0.6b": ((4096, 1024, 28), (1024, 2048, 28), (6144, 1024, 28), (1024, 3072, 28), (151936, 1024, 1)),
    "8b": ((6144, 4096, 32), (4096, 4096, 32), (28672, 4096, 32), (4096, 14336, 32), (128256, 4096, 1)),
}
GEMV: Final = ((1, 1024, 4), (1, 1024, 8), (1, 2048, 8), (1, 512, 2), (2, 2048, 8))  # outputs, inputs, warps
# Rows, outputs, inputs, warps, stages.
FEW_ROWS: Final = (
    (16, 16, 256, 4, 5),
    (16, 16, 512, 4, 3),
    (16, 32, 128, 4, 6),
    (16, 32, 256, 4, 4),
    (16, 64, 128, 4, 5),
)


def time_small_linear() -> dict[str, Any]:
    """Microseconds of each product of a decode step at 1 and 8 rows; weights rotate past the L2."""
    report: dict[str, Any] = {}
    x, w = (torch.randn(n, 1024, device="cuda", dtype=torch.bfloat16) for n in (1, 64))
    warm(
        [
            *(lambda c=c: gemv(x, w, None, GemvConfig(*c)) for c in GEMV),  # type: ignore[misc]
            *(lambda c=c: linear_tiles(x, w, None, LinearConfig(*c)) for c in FEW_ROWS),  # type: ignore[misc]
        ]
    )
    for rows in (1, 8):
        for model, products in PRODUCTS.items():
            total = {"cuBLAS": 0.0, "best": 0.0}
            for outputs, inputs, times in products:
                found = time_product(rows, outputs, inputs)
                name = f"{rows} x {inputs} to {outputs}"
                report[name] = ranked(name, found, outputs * inputs * 2 / BANDWIDTH * 1e6, "us")
                total["cuBLAS"] += found["cuBLAS"] * times / 1000
                total["best"] += min(found.values()) * times / 1000
            name = f"small linear, {model}, {rows}"
            report[name] = {key: round(value, 3) for key, value in total.items()}
            print(f"{name}: {report[name]} ms; predicted {PREDICTIONS.get(name, '-')}", flush=True)
    return report


def time_product(rows: int, outputs: int, inputs: int) -> dict[str, float]:
    copies = max(2, min(24, int(1.5e8 / (outputs * inputs * 2))))
    weights = [torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)

    def measure(product: Callable[[torch.Tensor, torch.Tensor], object]) -> float:
        return tried(lambda: graph_us([lambda w=w: product(x, w) for w in weights]))  # type: ignore[misc]

    found = {"cuBLAS": measure(F.linear)}
    if rows == 1:
        for c in GEMV:
            found[f"gemv {c[0]}x{c[1]} w{c[2]}"] = measure(lambda x, w, c=c: gemv(x, w, None, GemvConfig(*c)))  # type: ignore[misc]
    for m, n, k, warps, s in FEW_ROWS:
        config = LinearConfig(m, n, k, warps, s)
        found[f"tiles {m}x{n}x{k} w{warps} s{s}"] = measure(lambda x, w, c=config: linear_tiles(x, w, None, c))  # type: ignore[misc]
    return found


def time_models() -> dict[str, Any]:
    """See `kernel_models`."""
    import kernel_models

    return kernel_models.time_models(graph_us, event_ms, tried, PREDICTIONS)


def time_demo() -> dict[str, Any]:
    """The demo model through the whole engine."""
    import gpu_session

    from octavo_server.bench.decode import time_decode
    from octavo_server.bench.engine import BenchEngine
    from octavo_server.config import EngineConfig

    with torch.inference_mode(False):
        report: dict[str, Any] = {"CPU against GPU": gpu_session.check_demo()}
        bench = BenchEngine(EngineConfig(model=gpu_session.DEMO, dtype="bfloat16", swap_space=0.0))
        report |= {figure.name: figure.value for figure in time_decode(bench, (1, 8, 64), 200)}
        bench.close()
    if report["CPU against GPU"]["answers that differ"]:
        report["failures"] = ["the demo model answers otherwise on the GPU"]
    print(report, "predicted", PREDICTIONS["demo-decode-step-1"], flush=True)
    return report


SECTIONS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "correct": check_correct,
    "invariant": check_invariant,
    "models": time_models,
    "prefill": time_prefill,
    "small_linear": time_small_linear,
    "decode": time_decode,
    "demo": time_demo,
    "parity": check_parity,
    "linear": time_linear,
    "small": time_small,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--seconds", type=float, default=270.0, help="no section begins after so many (default: 270)")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    failed, start = [], time.perf_counter()
    for name in arguments.only:
        if (passed := time.perf_counter() - start) > arguments.seconds:
            print(f"== {name}: LEFT OUT, {passed:.0f} s have passed", flush=True)
            report.setdefault("left out", []).append(name)
            continue
        if not run_section(report, name, SECTIONS[name], file=arguments.json):
            failed.append(name)
    print("FAILED: " + ", ".join(failed) if failed else "all checks passed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
