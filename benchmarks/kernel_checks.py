"""The gate of `gpu_kernels.py`: every kernel against float64 or its twin, and batch invariance to the bit."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Final

import torch

from octavo_kernels import gathered_attention as gathered
from octavo_kernels import paged_attention as attention
from octavo_kernels import reference
from octavo_kernels.gathered_attention import gathered_attention, whole_prompt_attention
from octavo_kernels.gemv import gemv
from octavo_kernels.hopper_attention import CONFIGS, HopperConfig, hopper_attention, takes_chunks
from octavo_kernels.hopper_linear import CONFIGS as MANY_ROWS
from octavo_kernels.hopper_linear import hopper_gated, hopper_linear, takes
from octavo_kernels.invariant_linear import linear_of, norm_gated_linear
from octavo_kernels.linear import LinearConfig, is_hopper, linear_invariant, linear_tiles
from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.paged_attention import AttentionConfig
from octavo_kernels.residual import Residual
from octavo_kernels.rms_norm import add_rms_norm, rms_norm
from octavo_kernels.rope import rotate_and_store
from octavo_kernels.silu_and_mul import silu_and_mul

TOLERANCE: Final = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # ‖found − truth‖ / ‖truth‖
# (tokens in the step, tokens in the cache) of each request: prompts, chunks, decodes, one that rests.
RAGGED: Final = [
    *((1, 1), (5, 5), (1, 640), (0, 30), (1, 65), (700, 700)),
    *((3, 1310), (1, 2000), (2, 8), (1, 1029), (330, 970)),
]
# Query heads, key heads, head size.
SHAPES: Final = {
    "8B": (32, 8, 128),
    "0.6B": (16, 8, 128),
    "3 a key head": (6, 2, 80),
    "7, one key head": (7, 1, 64),
    "wide": (4, 4, 256),
}
# Shape, page size, window. Every one is a kernel of its own to compile, those of float32 the slowest by far.
CASES: Final[dict[torch.dtype, list[tuple[str, int, int | None]]]] = {
    torch.bfloat16: [
        *(("8B", 16, None), ("8B", 8, 100), ("8B", 256, None), ("0.6B", 16, None)),
        *(("3 a key head", 32, 100), ("7, one key head", 64, None), ("wide", 16, None), ("wide", 128, 300)),
    ],
    torch.float16: [("8B", 16, 100), ("3 a key head", 64, None)],
    torch.float32: [("8B", 16, None), ("3 a key head", 32, 100)],
}
DTYPES: Final = tuple(CASES)
# Shape and window of the checks to the bit.
INVARIANT: Final = (("8B", None), ("3 a key head", 300))
COMPILING: Final = 60.0  # seconds for all that the checks need; what is not ready by then is left out, and named
CHECKING: Final = 40.0


class Case:
    """Ragged requests in a paged cache whose other slots are NaN."""

    def __init__(
        self,
        requests: list[tuple[int, int]],
        *,
        heads: tuple[int, int, int] = SHAPES["8B"],
        page_size: int = 16,
        dtype: torch.dtype = torch.bfloat16,
        device: str = "cuda",
        seed: int = 0,
        poison: bool = True,
    ) -> None:
        draw = torch.Generator(device).manual_seed(seed)
        num_heads, kv_heads, dim = heads
        pages = [-(-context // page_size) for _, context in requests]
        cache = torch.randn((2, sum(pages) + 1, kv_heads, page_size, dim), dtype=dtype, device=device, generator=draw)
        self.k, self.v = cache[0].transpose(1, 2), cache[1].transpose(1, 2)
        order = torch.randperm(sum(pages) + 1, generator=draw, device=device).int()
        tables = torch.full((len(requests), max(pages)), 2**30, dtype=torch.int32, device=device)
        used = 0
        for row, count in enumerate(pages):
            tables[row, :count] = order[used : used + count]
            used += count
            if poison:
                cache[:, order[used - 1].long(), :, requests[row][1] - (count - 1) * page_size :] = torch.nan
        if poison:
            cache[:, order[-1].long()] = torch.nan
        self.counts = [count for count, _ in requests]
        self.contexts = [context for _, context in requests]
        self.q = torch.randn((sum(self.counts), num_heads, dim), dtype=dtype, device=device, generator=draw)
        self.scale = dim**-0.5
        self.metadata = AttentionMetadata(
            torch.tensor([0, *self.counts]).cumsum(0).int().to(device),
            torch.tensor(self.contexts).int().to(device),
            tables,
            max_query_len=max(self.counts),
            max_context_len=max(self.contexts),
        )

    def run(
        self,
        window: int | None = None,
        configs: tuple[AttentionConfig, AttentionConfig] | None = None,
        invariant: bool = False,
    ) -> torch.Tensor:
        return attention.paged_attention(
            *(self.q, self.k, self.v, self.metadata, self.scale, window), configs=configs, invariant=invariant
        )

    def run_gathered(self, window: int | None = None, config: AttentionConfig | None = None) -> torch.Tensor:
        return gathered_attention(self.q, self.k, self.v, self.metadata, self.scale, window, config)

    def run_hopper(self, config: HopperConfig) -> torch.Tensor:
        return hopper_attention(self.q, self.k, self.v, self.metadata, self.scale, config)

    def expected(self, window: int | None = None) -> torch.Tensor:
        """In float64, one request and key head at a time."""
        out = torch.zeros(self.q.shape, dtype=torch.float64, device=self.q.device)
        group, row = self.q.shape[1] // self.k.shape[2], 0
        for request, (count, context) in enumerate(zip(self.counts, self.contexts, strict=True)):
            table = self.metadata.block_tables[request, : -(-context // self.k.shape[1])].long()
            key = torch.arange(context, device=out.device)
            position = torch.arange(context - count, context, device=out.device).unsqueeze(1)
            hidden = key > position if window is None else (key > position) | (key <= position - window)
            for head in range(self.k.shape[2]):
                k = self.k[table, :, head].flatten(0, 1)[:context].double()
                v = self.v[table, :, head].flatten(0, 1)[:context].double()
                q = self.q[row : row + count, head * group : (head + 1) * group].double()
                scores = torch.einsum("tgd,kd->tgk", q, k) * self.scale
                weights = torch.softmax(scores.masked_fill(hidden.unsqueeze(1), -torch.inf), -1)
                out[row : row + count, head * group : (head + 1) * group] = torch.einsum("tgk,kd->tgd", weights, v)
            row += count
        return out


def poisoned(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The call's result, every fresh tensor in it having been full of NaN."""
    torch.use_deterministic_algorithms(True)  # that fills uninitialised memory
    try:
        return call()
    finally:
        torch.use_deterministic_algorithms(False)


class Errors:
    """The largest relative error of each name, and which are too large."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}
        self.failures: list[str] = []

    def add(self, name: str, dtype: torch.dtype, found: torch.Tensor, truth: torch.Tensor, where: str = "") -> None:
        error = ((found.double() - truth.double()).norm() / truth.double().norm()).item()
        key = f"{name} {str(dtype).removeprefix('torch.')}"
        self.largest[key] = max(self.largest.get(key, 0.0), error)
        if not error <= TOLERANCE[dtype]:
            self.failures.append(f"{key} {where}: {error:.1e}")

    def report(self) -> dict[str, Any]:
        return {**self.largest, **({"failures": self.failures} if self.failures else {})}


def warm(calls: Iterable[Callable[[], object]], seconds: float = 120.0) -> list[bool]:
    """Compiles what the calls need, many at a time: which are ready. What fails here fails again when it is called."""

    def run(call: Callable[[], object]) -> None:
        with suppress(Exception), torch.inference_mode():
            call()

    pool = ThreadPoolExecutor(16)
    futures = [pool.submit(run, call) for call in calls]
    ready, _ = wait(futures, seconds)
    pool.shutdown(wait=False, cancel_futures=True)
    return [future in ready for future in futures]


def warm_checks() -> set[str]:
    """Compiles for `check_correct` and `check_invariant` together; the names of those cases that are not ready."""
    calls: dict[str, Callable[[], object]] = {}
    short = [(1, 40), (5, 40)]
    for dtype in reversed(DTYPES):
        for name, page_size, window in CASES[dtype]:
            case = Case(short, heads=SHAPES[name], page_size=page_size, dtype=dtype)
            # One call for decode and chunks each: they compile side by side.
            for part in (Case(short[:1], heads=SHAPES[name], page_size=page_size, dtype=dtype), case):
                calls[f"{case_name(name, page_size, window)} {dtype} {len(part.counts)}"] = lambda c=part, w=window: (
                    c.run(w)
                )  # type: ignore[misc]
            calls[f"{case_name(name, page_size, window)} {dtype} gathered"] = lambda c=case, w=window: c.run_gathered(w)  # type: ignore[misc]
            for index in range(len(hopper_configs(case, window))):
                key = f"{case_name(name, page_size, window)} {dtype} hopper {index}"
                calls[key] = lambda c=case, i=index: c.run_hopper(CONFIGS[i])  # type: ignore[misc]
        calls |= invariant_calls(dtype)
        calls[f"rows {dtype}"] = lambda t=dtype: check_rows(Errors(), t, "cuda")  # type: ignore[misc]
        calls[f"rope {dtype}"] = lambda t=dtype: check_rope(Errors(), t, "cuda")  # type: ignore[misc]
    ready = warm(calls.values(), COMPILING)
    _warmed.append(True)
    return {name for name, is_ready in zip(calls, ready, strict=True) if not is_ready}


def invariant_calls(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """What `check_invariant` compiles for: attention, and products of so many rows that all tiles are met."""
    calls: dict[str, Callable[[], object]] = {}
    for name, window in INVARIANT:
        case = Case([(1, 40), (5, 40)], heads=SHAPES[name], dtype=dtype)
        calls[f"invariant {name} {dtype}"] = lambda c=case, w=window: c.run(w, invariant=True)  # type: ignore[misc]
    w = torch.zeros(512, 1024, device="cuda", dtype=dtype)
    norm = (torch.zeros(1024, device="cuda", dtype=dtype), 1e-5)
    for rows in (1, 65, 128, 257, 1300):
        x = torch.zeros(rows, 1024, device="cuda", dtype=dtype)
        calls[f"product of {rows} {dtype}"] = lambda x=x, w=w: linear_of(x, w, w[0, :512])  # type: ignore[misc]
        calls[f"gated product of {rows} {dtype}"] = lambda x=x, w=w, n=norm: norm_gated_linear(  # type: ignore[misc]
            Residual(x), n, (w, None)
        )
    return calls


def hopper_configs(case: Case, window: int | None) -> tuple[HopperConfig, ...]:
    """Those that are worth a check: none where Hopper's kernel does not take the case."""
    return CONFIGS if takes_chunks(case.q, case.k, case.v, case.metadata, window) else ()


def case_name(name: str, page_size: int, window: int | None) -> str:
    return f"{name}, pages of {page_size}, window {window}"


class Clock:
    """Which checks are left out: those not compiled, and all once the time is up."""

    def __init__(self, missing: set[str]) -> None:
        self.missing = missing
        self.end = time.monotonic() + CHECKING
        self.left_out: list[str] = []

    def leaves_out(self, name: str) -> bool:
        late = time.monotonic() > self.end or any(entry.startswith(name) for entry in self.missing)
        if late:
            self.left_out.append(name)
        return late

    def report(self) -> dict[str, Any]:
        return {"left out": self.left_out} if self.left_out else {}


_missing: set[str] = set()
_warmed: list[bool] = []


def check_correct(device: str = "cuda", requests: list[tuple[int, int]] = RAGGED) -> dict[str, Any]:
    """Largest relative error of each kernel by type."""
    if device == "cuda":
        begin = time.monotonic()
        _missing.update(warm_checks())
        print(f"    compiled in {time.monotonic() - begin:.0f} s; not ready: {sorted(_missing)}", flush=True)
    errors, clock = Errors(), Clock(_missing)
    for dtype in DTYPES:
        for name, page_size, window in CASES[dtype]:
            where = case_name(name, page_size, window)
            if clock.leaves_out(f"{where} {dtype}"):
                continue
            case = Case(requests, heads=SHAPES[name], page_size=page_size, dtype=dtype, device=device)
            truth = case.expected(window)
            errors.add(f"attention {name}", dtype, poisoned(lambda c=case, w=window: c.run(w)), truth, where)  # type: ignore[misc]
            chunks = torch.cat([torch.full((count,), count > 1) for count in case.counts]).to(device)
            found = poisoned(lambda c=case, w=window: c.run_gathered(w))  # type: ignore[misc]
            errors.add(f"gathered {name}", dtype, found[chunks], truth[chunks], where)
            for config in hopper_configs(case, window):
                found = poisoned(lambda c=case, x=config: c.run_hopper(x))  # type: ignore[misc]
                errors.add(f"hopper {name}", dtype, found[chunks], truth[chunks], f"{where}, {config}")
        if not clock.leaves_out(f"rows {dtype}"):
            check_rows(errors, dtype, device)
        if not clock.leaves_out(f"rope {dtype}"):
            check_rope(errors, dtype, device)
    for batch, context in ((256, 1024), (16, 8192)) if device == "cuda" else ((4, 100),):
        if not clock.leaves_out(case_name("8B", 16, None) + f" {torch.bfloat16}"):
            case = Case([(1, context - i) for i in range(batch)], device=device)
            errors.add(f"decode {batch}x{context}", torch.bfloat16, poisoned(case.run), case.expected())
            case = Case([(context // 4,) * 2] * 2, device=device)
            found = poisoned(lambda c=case: whole_prompt_attention(c.q, c.k, c.v, c.metadata, c.scale))  # type: ignore[misc]
            errors.add(f"whole prompts {context // 4}", torch.bfloat16, found, case.expected())
            # As a model calls it: long chunks beside a decode, through gathered keys.
            case = Case(
                [(1, context - 1), (context // 2, context // 2), (context // 4, context // 2 - 5)], device=device
            )
            found = poisoned(lambda c=case: gathered.attention(c.q, c.k, c.v, c.metadata, c.scale))  # type: ignore[misc]
            errors.add(f"mixed step {context}", torch.bfloat16, found, case.expected())
    return {**errors.report(), **clock.report()}


def check_rows(errors: Errors, dtype: torch.dtype, device: str) -> None:
    """Norms, SwiGLU and the linear map."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    for rows, width in ((1, 1024), (37, 4096), (3, 112)):
        x, residual, weight, gate_up = draw(rows, width), draw(rows, width), draw(width), draw(rows, 2 * width)
        errors.add("rms_norm", dtype, rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
        theirs = reference.add_rms_norm(x, residual.clone(), weight, 1e-5)
        ours = add_rms_norm(x, residual, weight, 1e-5)
        errors.add("add_rms_norm", dtype, torch.cat(ours), torch.cat(theirs))
        errors.add("silu_and_mul", dtype, silu_and_mul(gate_up), reference.silu_and_mul(gate_up))
        w, bias = draw(333, width), draw(333)
        truth = x.double() @ w.double().t() + bias.double()
        errors.add("linear", dtype, linear_invariant(x, w, bias), truth)
        errors.add("linear, 16 rows", dtype, linear_tiles(x, w, bias, LinearConfig(16, 16, 256, 4, 2)), truth)
        errors.add("gemv", dtype, gemv(x[:1], w, bias), truth[:1])
    if dtype != torch.float32 and is_hopper(torch.device(device)):
        check_many_rows(errors, dtype)


def check_many_rows(errors: Errors, dtype: torch.dtype) -> None:
    """Products of Hopper's own kernel, of each tile: ragged rows, inputs and outputs."""
    for rows, inputs, pairs in ((300, 4096, 512), (77, 200, 104), (1100, 1024, 768)):
        x, weight = torch.randn(rows, inputs, device="cuda").to(dtype), torch.randn(2 * pairs, inputs, device="cuda")
        weight = (weight / inputs**0.5).to(dtype)
        if not takes(x, weight, None):
            raise ValueError(
                f"{rows} rows, {inputs} inputs, {pairs} pairs are not for this kernel, or the device is not"
            )
        truth = x.double() @ weight.double().t()
        for config in MANY_ROWS:
            errors.add("product of many rows", dtype, hopper_linear(x, weight, config), truth)
            gated = torch.nn.functional.silu(truth[:, :pairs]) * truth[:, pairs:]
            errors.add("gated product of many rows", dtype, hopper_gated(x, weight, config), gated)


def check_rope(errors: Errors, dtype: torch.dtype, device: str) -> None:
    """QK-norm, RoPE and the store."""
    for heads, kv_heads, dim in SHAPES.values():
        weight = torch.randn(2, dim, device=device).to(dtype)
        for norms in (None, (weight[0], weight[1], 1e-6)):
            qkv = torch.randn(50, heads + 2 * kv_heads, dim, device=device).to(dtype)
            angles = 100 * torch.randn(50, dim // 2, device=device)
            wide = torch.cat((angles, angles), 1)
            slots = torch.randperm(9 * 16, device=device)[:50]
            ours, theirs = (torch.zeros(2, 9, kv_heads, 16, dim, dtype=dtype, device=device) for _ in range(2))
            views = [(cache[0].transpose(1, 2), cache[1].transpose(1, 2)) for cache in (ours, theirs)]
            q = rotate_and_store(qkv, (angles.cos(), angles.sin()), norms, views[0], slots)
            truth = reference.rotate_and_store(qkv, (wide.cos(), wide.sin()), norms, views[1], slots)
            errors.add("rotated q", dtype, q, truth)
            errors.add("stored k and v", dtype, ours, theirs)


def check_invariant(device: str = "cuda", length: int = 2500) -> dict[str, Any]:
    """Elements whose bits differ between one prefill and other ways to get there; 0 everywhere if all is well."""
    differing: dict[str, int] = {}
    if device == "cuda" and not _warmed:
        warm([call for dtype in DTYPES for call in invariant_calls(dtype).values()], COMPILING)
    clock = Clock(_missing)
    for dtype in DTYPES:
        for name, window in INVARIANT:
            if clock.leaves_out(f"invariant {name} {dtype}"):
                continue
            case = Case([(length, length)], heads=SHAPES[name], dtype=dtype, device=device)
            differing[f"attention {name} {dtype}, window {window}"] = attention_differences(case, window)
        for inputs in (1024, 14336) if device == "cuda" else (1024,):
            # More rows than any tile is chosen for, and fewer, on both sides of where another one is.
            x, w = (torch.randn(n, inputs, device=device).to(dtype) for n in (1300, 512))
            bias = torch.randn(512, device=device).to(dtype)
            one = (torch.ones(inputs, device=device, dtype=dtype), 1e-5)
            whole = linear_of(x, w, bias), norm_gated_linear(Residual(x), one, (w, None))
            for rows in (1, 7, 64, 65, 127, 128, 257, 1023, 1024):
                found = linear_of(x[-rows:], w, bias), norm_gated_linear(Residual(x[-rows:]), one, (w, None))
                for kind, few, many in zip(("linear", "gated"), found, whole, strict=True):
                    differing[f"{kind} {dtype}, {rows} of {inputs}"] = int((few != many[-rows:]).sum())
    failures = [f"{name}: {count} differ" for name, count in differing.items() if count]
    report = {"checked": len(differing), **clock.report(), **({"failures": failures} if failures else {})}
    if device == "cuda":
        report["tile shapes against the chosen one"] = linear_differences()
        print("    elements that differ:", report["tile shapes against the chosen one"], flush=True)
    return report


# Rows, outputs, inputs, warps, stages.
TILES: Final = [
    *((16, 32, 64, 4, 4), (16, 32, 128, 4, 4), (32, 64, 64, 4, 4), (64, 32, 128, 4, 4), (64, 64, 64, 4, 4)),
    *((64, 256, 64, 4, 3), (128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (128, 256, 128, 8, 2)),
]


def linear_differences() -> dict[str, int]:
    """Elements of a product by other tile shapes that differ from the chosen one's: where none does, shapes may mix.

    Only the order of summation over the inputs shows in the bits, and the matrix unit's own is the same for every shape
    that takes the same instruction.
    """
    x, w = (torch.randn(n, 4096, device="cuda", dtype=torch.bfloat16) for n in (300, 500))
    chosen = linear_tiles(x, w, None, LinearConfig(64, 128, 64, 4, 4))
    warm(lambda c=shape: linear_tiles(x, w, None, LinearConfig(*c)) for shape in TILES)  # type: ignore[misc]
    return {
        f"{m}x{n}x{k} w{warps}": int((linear_tiles(x, w, None, LinearConfig(m, n, k, warps, s)) != chosen).sum())
        for m, n, k, warps, s in TILES
    }


def attention_differences(case: Case, window: int | None) -> int:
    """Elements that differ between one chunk and decode or other chunks, alone and among others."""
    device, length = case.q.device, len(case.q)
    heads = (case.q.shape[1], case.k.shape[2], case.k.shape[3])
    other = Case([(200, 300), (1, 900)], heads=heads, dtype=case.q.dtype, device=str(device), seed=1)
    run = attention.paged_attention_invariant
    whole = run(case.q, case.k, case.v, case.metadata, case.scale, window)
    k, v = (torch.cat((a, b)) for a, b in ((case.k, other.k), (case.v, other.v)))
    table, others = case.metadata.block_tables[0], other.metadata.block_tables.clamp(max=len(other.k) - 1)
    tables = torch.zeros(3, max(len(table), others.shape[1]), dtype=torch.int32, device=device)
    tables[1, : len(table)] = table
    tables[[0, 2], : others.shape[1]] = others + len(case.k)
    differing = 0
    for first, last in ((length - 1, length), (length // 2, length // 2 + 1), (7, 8), (7, 77), (length - 333, length)):
        count = last - first
        q = case.q[first:last]

        def ints(*values: int) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        alone = AttentionMetadata(ints(0, count), ints(last), table[None], max_query_len=count)
        found = run(q, case.k, case.v, alone, case.scale, window)
        differing += int((found != whole[first:last]).sum())
        among = AttentionMetadata(ints(0, 200, 200 + count, 201 + count), ints(300, last, 900), tables)
        found = run(torch.cat((other.q[:200], q, other.q[200:])), k, v, among, case.scale, window)
        differing += int((found[200 : 200 + count] != whole[first:last]).sum())
    return differing
