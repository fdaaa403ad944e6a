"""Where the seconds of throughput A go on a GPU, and what could take fewer: requests of many lengths, 0.6B.

    python benchmarks/gpu_throughput.py [--only SECTION …] [--json FILE]

- steps: throughput A by kinds of steps: with prefill, and of how many decodes.
- profile: the kernels of steps of 128 requests that decode.
- attention: of all layers at moments of A, by the order of the requests and ways to cut the work.
- products: whole decode steps, product after product by other kernels than the library's.
- step: whole decode steps at these moments, the requests in order of arrival or the longest first; and with keys and
  values of the next layer fetched into the L2 while a layer's products are computed.
"""

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import gpu_kernels as common
import kernel_models
import torch
import triton
import triton.language as tl
from guarded_sections import run_section

from octavo_common.model_config import parse_model_config
from octavo_kernels import product_choices
from octavo_kernels.few_rows import FewRowsConfig, few_rows_gated, few_rows_linear, few_rows_parts
from octavo_kernels.hopper_linear import hopper_linear
from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.paged_attention import AttentionConfig, chunk_config, paged_attention
from octavo_kernels.programmatic_launch import fetch, overlap
from octavo_kernels.rms_norm import norm_residual
from octavo_server.bench.workloads import WORKLOADS
from octavo_server.worker.graph_ladder import decode_ladder
from octavo_server.worker.models.interface import ForwardBatch

MOMENTS: Final = (200, 450, 700, 900)  # steps since the first request began
ROOM: Final = 16_384  # tokens that a context may have in a graph
TOKEN_BYTES: Final = 4096  # K and V of a layer
# Ways to cut attention: keys, warps, stages, programs, least keys of a split, keys fetched ahead.
WAYS: Final = {
    "64 keys, 3 stages": (64, 4, 3, 528, 256, 0),
    "128 keys, 2 stages": (128, 4, 2, 528, 256, 0),
    "128 keys, 3 stages": (128, 4, 3, 528, 256, 0),
    "128 keys, 2 stages, 8 warps": (128, 8, 2, 528, 256, 0),
    "heads first, 64 keys, 3 stages": (64, 4, 3, 528, 256, 0),
    "heads first, 128 keys, 2 stages": (128, 4, 2, 528, 256, 0),
    "in 2, 128 keys, 2 stages": (128, 4, 2, 0, 512, 0),
    "in 4, 64 keys, 2 stages": (64, 4, 2, 0, 256, 0),
}


def contexts_at(step: int) -> list[int]:
    """Of the requests of A that run then, in the order of arrival; 70 steps begin them all."""
    asks, found = WORKLOADS["a"].asks(0, 151_936), []
    for index, ask in enumerate(asks):
        made = step - 70 * index // len(asks)
        if 0 < made < ask.max_tokens:
            found.append(len(ask.prompt) + made)
    return found


def batch_of(contexts: list[int], cache: Any) -> ForwardBatch:
    """A decode step in a graph's bounds: rows are filled up to the ladder's next rung."""
    rung = min(rung for rung in decode_ladder(512) if rung >= len(contexts))
    contexts = [*contexts, *[1] * (rung - len(contexts))]
    pages = torch.randperm(len(cache[0][0]), device="cuda").tolist()
    tables, at = torch.zeros(rung, ROOM // 16, dtype=torch.int32), 0
    for row, context in enumerate(contexts):
        count = -(-context // 16)
        tables[row, :count] = torch.tensor(pages[at : at + count])
        at += count
    tables = tables.cuda()
    positions = torch.tensor(contexts, device="cuda") - 1
    slots = tables[torch.arange(rung, device="cuda"), positions // 16].long() * 16 + positions % 16
    return ForwardBatch(
        token_ids=torch.randint(0, 100_000, (rung,), device="cuda"),
        positions=positions,
        slot_mapping=slots,
        query_start=torch.arange(rung + 1, dtype=torch.int32, device="cuda"),
        context_lens=(positions + 1).int(),
        block_tables=tables,
        max_query_len=1,
        max_context_len=ROOM,
    )


class Model:
    """0.6B with random weights, and a cache for the largest of the moments."""

    def __init__(self) -> None:
        self.config = parse_model_config(kernel_models.MODELS["0.6b"])
        self.decoder = kernel_models.random_decoder(self.config, False)
        pages = 200 * 64 + max(sum(-(-c // 16) for c in contexts_at(step)) for step in MOMENTS) + 512
        self.cache = kernel_models.random_cache(self.config, pages)

    def attend(self, batch: ForwardBatch, config: AttentionConfig | None, heads: int) -> None:
        kv_heads, d = self.config.num_kv_heads, self.config.head_dim
        metadata = AttentionMetadata(
            batch.query_start, batch.context_lens, batch.block_tables, max_query_len=1, max_context_len=ROOM
        )
        q = torch.ones(len(batch.token_ids), heads, d, device="cuda", dtype=torch.bfloat16)
        configs = None
        if config is not None:
            configs = config, chunk_config(torch.bfloat16, d, heads // kv_heads, 1)
        for k, v in self.cache:
            paged_attention(q, k, v, metadata, d**-0.5, configs=configs)


def way(name: str, rows: int, kv_heads: int = 8) -> AttentionConfig:
    keys, warps, stages, programs, least, ahead = WAYS[name]
    if name.startswith("in "):
        programs = int(name[3]) * rows * kv_heads
    first = name.startswith("heads")
    return AttentionConfig(16, keys, warps, stages, programs, least, ahead=ahead, heads_first=first)


def graph_us(run: Callable[[], object], replays: int = 12) -> float:
    return common.tried(lambda: common.graph_us([run], replays))


def time_attention() -> dict[str, Any]:
    model, report = Model(), dict[str, Any]()
    moments = {f"step {step}": contexts_at(step) for step in (200, 450, 600, 700, 800, 850, 900)}
    even = {"64 x 1024": [1024] * 64, "200 x 1024": [1024] * 200, "96 x 2048": [2048] * 96}
    for step, contexts in {**moments, **even, **{f"8b, {name}": lengths for name, lengths in even.items()}}.items():
        heads = 32 if step.startswith("8b") else 16
        floor = sum(contexts) * TOKEN_BYTES / common.BANDWIDTH * 1e6
        orders = {"arrival": contexts, "longest": sorted(contexts, reverse=True), "shortest": sorted(contexts)}
        found: dict[str, float] = {}
        for order, lengths in orders.items():
            batch = batch_of(lengths, model.cache)
            found[order] = graph_us(lambda b=batch, h=heads: model.attend(b, None, h)) / 28  # type: ignore[misc]
            for name in WAYS if order == "longest" else ():
                config = way(name, len(batch.token_ids))
                us = graph_us(lambda b=batch, c=config, h=heads: model.attend(b, c, h))  # type: ignore[misc]
                found[f"longest, {name}"] = us / 28
        found = {name: round(us, 1) for name, us in found.items()}
        report[step] = {"rows": len(contexts), "floor": round(floor, 1), **found}
        print(f"   {step}: {report[step]}", flush=True)
    return report


@triton.jit
def fetch_kernel(
    k_ptr, v_ptr, context_lens_ptr, tables_ptr, stride_table, stride_kp, stride_kh, stride_vp, stride_vh,
    HEAD: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr, PAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: (requests, heads). The first PAGES pages of a request's K and V, of one key head."""
    request, head = tl.program_id(0), tl.program_id(1) + HEAD
    if OVERLAP > 0:
        tl.extra.cuda.gdc_launch_dependents()
    last = (tl.load(context_lens_ptr + request) - 1) // PAGE_SIZE
    page = tl.minimum(tl.arange(0, PAGES), last)
    page = tl.load(tables_ptr + request.to(tl.int64) * stride_table + page).to(tl.int64)
    fetch(k_ptr + page * stride_kp + head.to(tl.int64) * stride_kh, PAGE_SIZE * HEAD_DIM)
    fetch(v_ptr + page * stride_vp + head.to(tl.int64) * stride_vh, PAGE_SIZE * HEAD_DIM)
    if OVERLAP > 0:
        tl.extra.cuda.gdc_wait()


def fetch_ahead(cache: Any, batch: ForwardBatch, heads: int, pages: int) -> None:
    k, v = cache
    fetch_kernel[(len(batch.token_ids), heads)](
        k, v, batch.context_lens, batch.block_tables, batch.block_tables.stride(0),
        k.stride(0), k.stride(2), v.stride(0), v.stride(2),
        HEAD=0, HEAD_DIM=k.shape[3], PAGE_SIZE=k.shape[1], PAGES=pages, num_warps=1, **overlap(k.device),
    )  # fmt: skip


# Where the next layer's keys are asked for, how many key heads, how many pages of 16 tokens of each request.
FETCHES: Final = (
    *(("output", 2, 8), ("gates", 1, 8), ("gates", 2, 4), ("gates", 2, 8), ("gates", 1, 16)),
    *(("down", 2, 8), ("qkv", 2, 4), ("qkv", 2, 8)),
)


def with_fetches(model: Model, batch: ForwardBatch, where: str, heads: int, pages: int) -> Any:
    """The decoder's operations, with a layer's keys asked for during the layer before."""
    usual, at = model.decoder.ops, [0]

    def ask(layer: int) -> None:
        if layer < len(model.cache):
            fetch_ahead(model.cache[layer], batch, heads, pages)

    def linear_add(x: torch.Tensor, linear: Any, residual: Any) -> None:
        is_output = linear[0].shape[1] != model.config.intermediate_size
        if where == ("output" if is_output else "down"):
            ask(at[0] + 1)
        usual.linear_add(x, linear, residual)
        if not is_output:
            at[0] = (at[0] + 1) % len(model.cache)

    def gated(*arguments: Any) -> torch.Tensor:
        if where == "gates":
            ask(at[0] + 1)
        return usual.norm_gated_linear(*arguments)

    def qkv(*arguments: Any) -> torch.Tensor:
        if where == "qkv":
            ask(at[0])
        return usual.norm_linear(*arguments)

    return replace(usual, linear_add=linear_add, norm_gated_linear=gated, norm_linear=qkv)


def time_step() -> dict[str, Any]:
    model, report, failures = Model(), dict[str, Any](), list[str]()
    usual = model.decoder.ops
    for step in MOMENTS:
        found: dict[str, float] = {}
        for order, contexts in (
            ("arrival", contexts_at(step)),
            ("longest", sorted(contexts_at(step), reverse=True)),
        ):
            batch = batch_of(contexts, model.cache)
            out = torch.empty(len(batch.token_ids), model.config.vocab_size, device="cuda")

            def run(batch: ForwardBatch = batch, out: torch.Tensor = out) -> None:
                model.decoder.logits(model.decoder.forward(batch, model.cache), out)

            found[order] = graph_us(run)
            if order == "arrival":
                continue
            torch.cuda.synchronize()
            expected = out.clone()
            for where in FETCHES:
                model.decoder.ops = with_fetches(model, batch, *where)
                found["fetched at {}, {} heads, {} pages".format(*where)] = graph_us(run)
                if not torch.equal(out, expected):
                    failures.append(f"step {step}, {where}: the logits differ")
                model.decoder.ops = usual
            found["longest again"] = graph_us(run)
        report[str(step)] = {name: round(us / 1000, 3) for name, us in found.items()}
        print(f"   step {step}, {len(batch.token_ids)} rows: {report[str(step)]}", flush=True)
    return {**report, "failures": failures}


# Of the products of 0.6B: outputs, inputs at a time, warps, stages, splits, ahead, rows of a tile; 0: Hopper's kernel.
PRODUCTS: Final[dict[str, tuple[tuple[int, ...], ...]]] = {
    "qkv": (
        *((64, 128, 4, 4, 1, 0, 32), (64, 128, 4, 4, 1, 0, 64), (32, 128, 4, 5, 1, 0, 32), (32, 256, 4, 3, 1, 0, 32)),
        *((64, 256, 4, 2, 1, 0, 64), (32, 128, 4, 4, 1, 0, 64)),
    ),
    "output": (
        *((64, 128, 4, 4, 4, 0, 32), (64, 128, 4, 4, 4, 0, 64), (64, 128, 4, 4, 8, 0, 64), (64, 256, 4, 2, 4, 0, 64)),
        *((32, 128, 4, 4, 4, 0, 32), (64, 128, 4, 4, 2, 0, 64), (128, 128, 8, 3, 8, 0, 64)),
    ),
    "down": (
        *((64, 128, 4, 4, 4, 0, 32), (64, 128, 4, 4, 4, 0, 64), (64, 128, 4, 4, 4, 256, 64), (64, 128, 4, 4, 8, 0, 64)),
        *((64, 256, 4, 2, 4, 0, 64), (32, 128, 4, 4, 4, 256, 32), (64, 128, 4, 4, 2, 0, 64)),
    ),
    "gates": (
        *((32, 128, 4, 4, 1, 0, 32), (32, 128, 4, 4, 1, 0, 64), (64, 128, 4, 3, 1, 0, 64), (64, 64, 4, 5, 1, 0, 64)),
        *((64, 128, 4, 3, 1, 0, 32),),
    ),
}


def product(kind: str, choice: tuple[int, ...]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Of x and a weight; parts of the sum where the inputs are split."""
    if choice == (0,):
        return hopper_linear
    config = FewRowsConfig(*choice[:6], block_rows=choice[6])
    if kind == "gates":
        return lambda x, weight: few_rows_gated(x, weight, None, config)
    if kind == "qkv":
        return lambda x, weight: few_rows_linear(x, weight, None, config)
    return lambda x, weight: few_rows_parts(x, weight, config)


def with_products(model: Model, usual: Any, chosen: dict[str, tuple[int, ...]]) -> Any:
    """The decoder's operations with these instead of the library's products."""
    products = {kind: product(kind, choice) for kind, choice in chosen.items()}

    def linear_add(x: torch.Tensor, linear: Any, residual: Any) -> None:
        kind = "down" if linear[0].shape[1] == model.config.intermediate_size else "output"
        if kind in products:
            residual.pending = products[kind](x, linear[0])
        else:
            usual.linear_add(x, linear, residual)

    def gated(residual: Any, norm: Any, linear: Any) -> torch.Tensor:
        if "gates" in products:
            return products["gates"](norm_residual(residual, norm), linear[0])
        return usual.norm_gated_linear(residual, norm, linear)

    def qkv(residual: Any, norm: Any, linear: Any) -> torch.Tensor:
        if "qkv" in products:
            return products["qkv"](norm_residual(residual, norm), linear[0])
        return usual.norm_linear(residual, norm, linear)

    return replace(usual, linear_add=linear_add, norm_gated_linear=gated, norm_linear=qkv)


def time_products() -> dict[str, Any]:
    """Choice after choice, each on top of the best of those before."""
    model, report, failures = Model(), dict[str, Any](), list[str]()
    usual = model.decoder.ops
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda each: common.tried(lambda: try_product(*each)), all_products()))
    for step in (600, 780, 860, 940):
        batch = batch_of(contexts_at(step), model.cache)
        out = torch.empty(len(batch.token_ids), model.config.vocab_size, device="cuda")

        def run(batch: ForwardBatch = batch, out: torch.Tensor = out) -> None:
            model.decoder.logits(model.decoder.forward(batch, model.cache), out)

        model.decoder.ops = usual
        table = product_choices.tuned(torch.device("cuda", torch.cuda.current_device())).more_rows
        chosen_ms, choices_of = graph_us(run) / 1000, table.copy()
        table.clear()
        best = first = graph_us(run)
        torch.cuda.synchronize()
        expected, chosen, found = out.double(), dict[str, tuple[int, ...]](), {"first": round(first / 1000, 3)}
        for kind, choices in PRODUCTS.items():
            for choice in choices:
                model.decoder.ops = with_products(model, usual, {**chosen, kind: choice})
                us = graph_us(run)
                error = ((out.double() - expected).norm() / expected.norm()).item()
                if us < float("inf") and not error < 0.05:
                    failures.append(f"step {step}, {kind} {choice}: {error:.1e}")
                found[f"{kind} {choice}"] = round(us / 1000, 3)
                if us < best:
                    best, chosen = us, {**chosen, kind: choice}
        table.update(choices_of)
        report[str(step)] = {
            "as chosen": round(chosen_ms, 3),
            **found,
            "best": round(best / 1000, 3),
            "chosen": str(chosen),
        }
        print(f"   step {step}, {len(batch.token_ids)} rows: {report[str(step)]}", flush=True)
    model.decoder.ops = usual
    return {**report, "failures": failures}


def all_products() -> list[tuple[str, tuple[int, ...]]]:
    return [(kind, choice) for kind, choices in PRODUCTS.items() for choice in choices if choice != (0,)]


@torch.inference_mode()
def try_product(kind: str, choice: tuple[int, ...]) -> float:
    """Compiles it."""
    inputs, outputs = {"qkv": (1024, 4096), "output": (2048, 1024), "down": (3072, 1024), "gates": (1024, 6144)}[kind]
    x, weight = (torch.zeros(n, inputs, device="cuda", dtype=torch.bfloat16) for n in (64, outputs))
    product(kind, choice)(x, weight)
    return 0.0


def time_steps() -> dict[str, Any]:
    import figure_sections as sections
    import gpu_prefill

    bench = sections.engine("0.6b")
    try:
        found = gpu_prefill.throughput_by_steps(bench, "a")
        again = sections.time_throughput(bench, WORKLOADS["a"])
        print(f"   again: {again[0].value} {dict(again[0].details)}", flush=True)
        return {**found, "again": again[0].value}
    finally:
        bench.close()


def profile() -> dict[str, Any]:
    """Under the profiler, which slows all that comes after it in the process."""
    import gpu_prefill

    model = Model()
    contexts = contexts_at(600)
    batch = batch_of(contexts, model.cache)
    out = torch.empty(len(batch.token_ids), model.config.vocab_size, device="cuda")
    run = partial(lambda: model.decoder.logits(model.decoder.forward(batch, model.cache), out))
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return gpu_prefill.profiled(f"a step of {len(contexts)} rows", graph.replay)


SECTIONS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "attention": time_attention,
    "step": time_step,
    "products": time_products,
    "steps": time_steps,
    "profile": profile,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    report, failed = dict[str, Any](), False
    for name in arguments.only:
        failed |= not run_section(report, name, SECTIONS[name], inference=name != "steps", file=arguments.json)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
