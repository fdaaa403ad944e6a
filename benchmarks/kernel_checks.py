"""The gate of `gpu_kernels.py`: every kernel against float64 or its twin, and batch invariance to the bit."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import torch

from octavo_kernels import paged_attention as attention
from octavo_kernels import reference
from octavo_kernels.linear import linear_invariant
from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.paged_attention import AttentionConfig
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
# Shape, page size, window.
CASES: Final = [
    *(("8B", 16, None), ("8B", 16, 100), ("8B", 8, None), ("8B", 256, 100), ("0.6B", 16, None)),
    *(("3 a key head", 32, 100), ("7, one key head", 64, None), ("wide", 16, None), ("wide", 128, 300)),
]
DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


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
        self, window: int | None = None, configs: tuple[AttentionConfig, AttentionConfig] | None = None
    ) -> torch.Tensor:
        return attention.paged_attention(self.q, self.k, self.v, self.metadata, self.scale, window, configs=configs)

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


def warm(calls: Iterable[Callable[[], object]]) -> None:
    """Compiles what the calls need, many kernels at a time; what fails here fails again where it is looked at."""

    def run(call: Callable[[], object]) -> None:
        with suppress(Exception), torch.inference_mode():
            call()

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(run, calls))


def check_correct(device: str = "cuda", requests: list[tuple[int, int]] = RAGGED) -> dict[str, Any]:
    """Largest relative error of each kernel by type."""
    errors = Errors()
    for dtype in DTYPES:
        cases = {
            (name, page_size, window): Case(
                requests, heads=SHAPES[name], page_size=page_size, dtype=dtype, device=device
            )
            for name, page_size, window in CASES
        }
        if device == "cuda":
            warm(lambda c=case, w=window: c.run(w) for (_, _, window), case in cases.items())  # type: ignore[misc]
        for (name, page_size, window), case in cases.items():
            found = poisoned(lambda c=case, w=window: c.run(w))  # type: ignore[misc]
            where = f"pages of {page_size}, window {window}"
            errors.add(f"attention {name}", dtype, found, case.expected(window), where)
        for batch, context in ((256, 1024), (64, 8192)) if device == "cuda" else ((4, 100),):
            case = Case([(1, context - i) for i in range(batch)], dtype=dtype, device=device)
            errors.add(f"decode {batch}x{context}", dtype, poisoned(case.run), case.expected())
        check_rows(errors, dtype, device)
        check_rope(errors, dtype, device)
    return errors.report()


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
    for dtype in DTYPES:
        for name in ("8B", "3 a key head"):
            case = Case([(length, length)], heads=SHAPES[name], dtype=dtype, device=device)
            if device == "cuda":
                warm(lambda c=case, w=window: attention_differences(c, w) for window in (None, 300))  # type: ignore[misc]
            for window in (None, 300):
                differing[f"attention {name} {dtype}, window {window}"] = attention_differences(case, window)
        x = torch.randn(300, 1024, device=device).to(dtype)
        w, bias = torch.randn(500, 1024, device=device).to(dtype), torch.randn(500, device=device).to(dtype)
        whole = linear_invariant(x, w, bias)
        for rows in (1, 7, 64, 65, 257):
            differing[f"linear {dtype}, {rows}"] = int((linear_invariant(x[-rows:], w, bias) != whole[-rows:]).sum())
    failures = [f"{name}: {count} differ" for name, count in differing.items() if count]
    return {"checked": len(differing), **({"failures": failures} if failures else {})}


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
