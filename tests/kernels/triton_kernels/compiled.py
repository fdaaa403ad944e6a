"""The kernels compiled for Hopper (sm_90) without a GPU: the interpreter takes programs that the compiler refuses."""

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from octavo_kernels import few_tokens, logit_entries, product_choices, sampling, shared_memory, truncation
from octavo_kernels import hopper_linear as products
from octavo_kernels.few_rows import FewRowsConfig, few_rows_gated, few_rows_linear, few_rows_parts
from octavo_kernels.gathered_attention import attention, gathered_attention
from octavo_kernels.gemv import gated_gemv, gemv
from octavo_kernels.hopper_attention import CONFIGS, hopper_attention
from octavo_kernels.linear import linear_config, linear_invariant, linear_tiles
from octavo_kernels.logprobs import logprobs
from octavo_kernels.paged_attention import paged_attention, paged_attention_invariant
from octavo_kernels.residual import Residual
from octavo_kernels.rms_norm import add_rms_norm, norm_residual
from octavo_kernels.rope import rotate_and_store
from octavo_kernels.sampling_table import COLUMNS
from octavo_kernels.shared_prefix_attention import shared_prefix_attention
from octavo_kernels.silu_and_mul import silu_and_mul
from octavo_kernels.step_inputs import ExpandedStep, SlotState
from octavo_kernels.step_inputs_kernel import expand_step
from octavo_kernels.step_start import begin_step
from octavo_kernels.table_rows import write_rows
from paged_case import make_case
from shared_case import make_shared_case

SHARED_MEMORY = 227 * 1024  # bytes that a program may have on Hopper


class Hopper:
    """What Triton asks a driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What launches compile, in order; nothing is run. The process is this file's own and keeps the driver."""
    found: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append(run(self, *args, grid=grid, warmup=True, **options))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    set_overlap(monkeypatch, lambda _, late=False: {"OVERLAP": 1 + late, "launch_pdl": True})
    driver.set_active(Hopper())
    return found


def set_overlap(monkeypatch: pytest.MonkeyPatch, overlap: Callable[..., dict[str, Any]]) -> None:
    for module in [module for name, module in sys.modules.items() if name.startswith("octavo_kernels.")]:
        if hasattr(module, "overlap"):
            monkeypatch.setattr(module, "overlap", overlap)


def check(compiled: list[Any], count: int) -> None:
    assert len(compiled) == count
    for kernel in compiled:
        assert kernel.asm["cubin"]
        # A program that does not wait lets the kernel after the next one read what is not there yet.
        assert kernel.metadata.launch_pdl == ("griddepcontrol.wait" in kernel.asm["ptx"])
        assert kernel.metadata.shared <= SHARED_MEMORY


@pytest.mark.parametrize(
    ("page_size", "window", "head_dim", "dtype"),
    [(16, None, 128, torch.bfloat16), (256, 100, 80, torch.float16), (8, None, 256, torch.bfloat16)],
)
def test_attention(compiled: list[Any], page_size: int, window: int | None, head_dim: int, dtype: torch.dtype) -> None:
    case = make_case([(5, 600), (1, 600)], heads=8, head_dim=head_dim, page_size=page_size, dtype=dtype)
    case.run(window, paged_attention)
    check(compiled, 3)  # decode in splits, their merge, chunks
    case.run(window, gathered_attention)
    check(compiled, 5)


@pytest.mark.parametrize(
    ("page_size", "heads", "head_dim", "dtype"),
    [(16, 8, 128, torch.bfloat16), (256, 8, 64, torch.float16), (8, 14, 128, torch.bfloat16)],
)
def test_chunks_on_hopper(
    compiled: list[Any], page_size: int, heads: int, head_dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_kernels.hopper_attention._is_hopper", lambda _: True)
    case = make_case([(90, 600), (40, 600)], heads=heads, head_dim=head_dim, page_size=page_size, dtype=dtype)
    case.run(None, attention)
    check(compiled, 4)  # single tokens in splits, their merge, tiles, chunks
    case.metadata = replace(case.metadata, all_chunks=True)
    case.run(None, attention)
    check(compiled, 5)  # the tiles were made once for the step; no kernel for single tokens
    for config in CONFIGS:
        hopper_attention(case.q, case.k_cache, case.v_cache, case.metadata, 0.25, config)
    assert all(kernel.metadata.shared <= SHARED_MEMORY for kernel in compiled)


@pytest.mark.parametrize(
    ("rows", "outputs", "tile"),
    [
        *((64, 28672, (1, 256)), (128, 28672, (2, 128)), (256, 28672, (2, 256)), (512, 28672, (2, 128))),
        *((2048, 28672, (2, 256)), (8192, 28672, (2, 256)), (64, 6144, (1, 128)), (256, 6144, (2, 128))),
        *((512, 6144, (1, 128)), (1024, 6144, (2, 128)), (2048, 6144, (2, 256))),
    ],
)
def test_tiles_are_those_that_were_fastest(rows: int, outputs: int, tile: tuple[int, int]) -> None:
    config = products.hopper_linear_config(rows, outputs, 132)
    assert (config.groups, config.outputs) == tile


@pytest.mark.parametrize("invariant", [False, True])
def test_the_norm_sums_few_rows_and_many_alike_where_bits_must_not_change(compiled: list[Any], invariant: bool) -> None:
    for rows in (1, 100):
        norm_residual(Residual(torch.zeros(rows, 4096)), (torch.zeros(4096), 1e-5), invariant=invariant)
    assert (compiled[0].metadata.num_warps == compiled[1].metadata.num_warps) == invariant


@pytest.mark.parametrize(
    ("product", "config", "dtype"),
    [
        (products.hopper_gated, products.CONFIGS[0], torch.bfloat16),
        (products.hopper_linear, products.CONFIGS[1], torch.bfloat16),
        (products.hopper_linear, products.CONFIGS[2], torch.float16),
    ],
)
def test_products_of_many_rows_on_hopper(
    compiled: list[Any], product: Any, config: products.HopperLinearConfig, dtype: torch.dtype
) -> None:
    product(torch.zeros(300, 192, dtype=dtype), torch.zeros(512, 192, dtype=dtype), config)
    check(compiled, 1)
    assert "wgmma" in compiled[0].asm["ptx"]
    # What the copy engine reads no sanitizer follows: that it is written when all warps know that the last copy is
    # through with it, and copied when all have written, and for the copy engine to see.
    around = re.findall(
        r"(wait_group\.read|bar\.sync|stmatrix|fence\.proxy\.async|bulk\.tensor\.2d\.global)", compiled[0].asm["ptx"]
    )
    runs = " ".join(each for each, before in zip(around, ["", *around], strict=False) if each != before)
    stores = runs.count("stmatrix")
    assert stores == config.groups * (1 if product is products.hopper_gated else 2)
    in_order = "wait_group.read bar.sync stmatrix fence.proxy.async bar.sync bulk.tensor.2d.global"
    assert runs.count(in_order) == stores == runs.count("bulk.tensor.2d.global")


def test_invariant_attention_in_float32(compiled: list[Any]) -> None:
    case = make_case([(5, 2000), (1, 600)], heads=8, head_dim=64)
    paged_attention(case.q, case.k_cache, case.v_cache, case.metadata, 0.25, invariant=True)
    check(compiled, 3)


@pytest.mark.parametrize(
    ("head_dim", "dtype"), [(128, torch.bfloat16), (80, torch.float16), (256, torch.bfloat16), (128, torch.float32)]
)
def test_attention_over_shared_prefixes(compiled: list[Any], head_dim: int, dtype: torch.dtype) -> None:
    case = make_shared_case([600] * 20, [(list(range(20)), 30)], heads=8, head_dim=head_dim, dtype=dtype)
    shared_prefix_attention(case.q, case.k_cache, case.v_cache, case.metadata, 0.25)
    check(compiled, 3)  # prefixes, own keys, their merge


def test_what_lies_between(compiled: list[Any]) -> None:
    x, w = (torch.zeros(rows, 1024, dtype=torch.bfloat16) for rows in (1, 64))
    add_rms_norm(x, x.clone(), w[0], 1e-5)
    silu_and_mul(x)
    begin_step(w, torch.zeros(9, 32), torch.zeros(9, 32), *torch.zeros(2, 3, dtype=torch.int64))
    linear_invariant(x, w, w[0, :64])
    linear_invariant(x.float(), w.float())
    for rows in (1, 1024):
        linear_tiles(x, w, None, linear_config(torch.bfloat16, rows, hopper=True))
    gemv(x, w)
    gated_gemv(x, w)
    few_rows_gated(w[:16], w, w[0, :64], FewRowsConfig(16, 128, 4, 6, ahead=256))
    few_rows_parts(w[:16], w, FewRowsConfig(32, 128, 4, 6, splits=2))
    few_rows_parts(w[:16, :1000], w[:, :1000], FewRowsConfig(32, 256, 4, 4, splits=2))
    few_rows_parts(w, w, FewRowsConfig(64, 128, 4, 4, splits=2, block_rows=64))
    few_rows_linear(w[:16], w, w[0, :64], FewRowsConfig(16, 256, 2, 1, registers=True))
    few_rows_parts(w[:8, :1000], w[:, :1000], FewRowsConfig(16, 256, 4, 1, splits=2, registers=True))
    cache = torch.zeros(2, 4, 16, 2, 64, dtype=torch.bfloat16)
    angles = torch.zeros(1, 32)
    slots = torch.zeros(1, dtype=torch.int64)
    rotate_and_store(x.view(1, 16, 64), (angles, angles), (w[0, :64], w[0, :64], 1e-6), (cache[0], cache[1]), slots)
    check(compiled, 16)


def test_sampling(compiled: list[Any]) -> None:
    rows, vocab = 4, 151_936
    logits, slots = torch.zeros(rows, vocab), torch.zeros(rows, dtype=torch.int64)
    table, work = (
        torch.zeros(rows, COLUMNS, dtype=torch.int64),
        sampling.SamplingWorkspace.allocate(rows, vocab, torch.device("cpu")),
    )
    tokens, last = torch.zeros(rows, dtype=torch.int32), torch.zeros(rows, dtype=torch.int64)
    logit_entries.adjust(logits, slots, table)
    sampling.draw_blocks(logits, slots, table, work)
    few_tokens.draw_few(logits, slots, table, work)
    truncation.count_distances(logits, slots, table, work)
    truncation.draw_cut(logits, slots, table, work)
    logit_entries.restore(logits, slots, table)
    sampling.finish_draw(slots, table, work, last, tokens)
    logit_entries.match_words(slots, table, tokens)
    logprobs(logits, tokens, slots, 20)
    write_rows(table, torch.zeros(2, 1 + COLUMNS, dtype=torch.int64))
    check(compiled, 18)


def test_the_inputs_of_steps_of_all_sizes_take_one_kernel(compiled: list[Any]) -> None:
    long, int32 = torch.zeros(700, dtype=torch.int64), torch.zeros(4096, dtype=torch.int32)
    for tokens, rows in ((1, 1), (16, 16), (640, 64)):
        state = SlotState(long, int32.view(16, 256), 16, 99)
        out = ExpandedStep(*[long[:tokens]] * 3, int32[:rows], int32.view(64, 64)[:rows], *[long[:rows]] * 3)
        expand_step(int32, state, out, tokens)
    assert len({kernel.hash for kernel in compiled}) == 1
    check(compiled, 3)


# What graphics cards of the generations before and after give a program; an A100 gives 163 KiB, an H100 227.
SMALL_MEMORY = 99 * 1024


def test_what_is_chosen_for_an_unknown_device_fits_into_its_shared_memory(
    compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (shared_memory, product_choices):
        monkeypatch.setattr(module, "shared_memory", lambda _: SMALL_MEMORY)
    monkeypatch.setattr(Hopper, "get_current_target", lambda _: GPUTarget("cuda", 89, 32))
    set_overlap(monkeypatch, lambda _, late=False: {"OVERLAP": 0, "launch_pdl": False})
    case = make_case([(5, 600), (1, 600)], heads=8, head_dim=128, dtype=torch.bfloat16)
    case.run(None, paged_attention)
    case.run(None, paged_attention_invariant)
    requests = make_case([(1, 600)] * 80, heads=8, kv_heads=8, head_dim=128, dtype=torch.bfloat16)
    requests.metadata = replace(requests.metadata, max_query_len=1)
    requests.run(None, paged_attention)
    long = make_case([(1030, 1030)], heads=8, head_dim=128, dtype=torch.bfloat16)
    long.run(None, paged_attention)
    shared = make_shared_case([600] * 20, [(list(range(20)), 30)], heads=8, head_dim=128, dtype=torch.bfloat16)
    shared_prefix_attention(shared.q, shared.k_cache, shared.v_cache, shared.metadata, 0.25)
    x, w = torch.zeros(7, 4096, dtype=torch.bfloat16), torch.zeros(64, 4096, dtype=torch.bfloat16)
    few_rows_gated(x, w, None, product_choices.few_rows_of_gates(w, 7))
    few_rows_linear(x, w, None, product_choices.few_rows(w, 7))
    few_rows_parts(x, w, product_choices.few_rows_in_parts(w, 7))
    gemv(x[:1], w, None, product_choices.one_row(w))
    linear_invariant(x, w)
    assert len(compiled) == 17
    assert max(kernel.metadata.shared for kernel in compiled) <= SMALL_MEMORY


def test_a_device_takes_its_own_table_else_one_of_its_architecture_else_the_rules() -> None:
    text = product_choices.FILE.read_text(encoding="utf-8")
    tables = product_choices.read(text)
    assert product_choices.to_json(tables) == text
    (name, own), weight = next(iter(tables.items())), torch.empty(28672, 4096, device="meta")
    assert own.one_row and own.eight_rows and own.sixteen_rows
    other = product_choices.Tuned(own.capability)
    tables["another"] = other
    for asked, capability, expected in ((name, "9.0", own), ("another", "9.0", other), ("a third", "9.0", own)):
        assert product_choices.choose(tables, asked, capability) is expected
    assert product_choices.choose(tables, "a fourth", "7.5") == product_choices.Tuned("7.5")
    assert product_choices.few_rows_of_gates(weight, 8) == FewRowsConfig(32, 128, 4, 5, ahead=512)


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([("apart", "divides"), ("racing", "own"), ("hopper", "divides")], []),
        ([("apart", "divides"), ("racing", "own"), ("hopper", "own")], ["hopper"]),
        ([("apart", "divides"), ("racing", "own"), ("merge", "own")], ["merge"]),
        ([("apart", "own"), ("apart", "divides"), ("racing", "own")], ["apart"]),
        ([("racing", "own"), ("hopper", "divides")], ["hopper"]),  # the control is not reported: so it is ours
        ([("apart", "divides"), ("racing", "divides")], ["the control with a race"]),
        ([], ["the control with a race"]),
    ],
)
def test_reports_of_races_are_left_out_only_where_a_control_shows_the_tool_to_be_wrong(
    reports: list[tuple[str, str]], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend("benchmarks")
    sanitizer_reports = importlib.import_module("sanitizer_reports")
    lines = {"own": (1000, 1001)}
    output = ""
    for kernel, where in reports:
        if where == "divides":
            lines[where] = tuple(
                sorted(sanitizer_reports.dispatch_lines(sanitizer_reports.DIVIDED[f"{kernel}_kernel"]))
            )
        first, second = lines[where]
        output += f"========= Error: Race reported between Read access at {kernel}_kernel+0xf0 in k.py:{first}\n"
        output += f"=========     and Write access at {kernel}_kernel+0x1f0 in k.py:{second} [5 hazards]\n========= \n"
    summary = f"========= RACECHECK SUMMARY: {len(reports)} hazards displayed ({len(reports)} errors, 0 warnings)\n"
    found = sanitizer_reports.races(output + summary)
    assert len(found) == len(expected) and all(name in each for name, each in zip(expected, found, strict=True))
    assert "reports, but" in sanitizer_reports.races(output)[0]
    assert "reports, but" in sanitizer_reports.races(output + summary.replace("SUMMARY: ", "SUMMARY: 9"))[0]
