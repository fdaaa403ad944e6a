"""The kernels compiled for Hopper (sm_90) without a GPU: the interpreter takes programs that the compiler refuses."""

import sys
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from octavo_kernels import few_tokens, logit_entries, sampling, truncation
from octavo_kernels import hopper_linear as products
from octavo_kernels.few_rows import FewRowsConfig, few_rows_gated, few_rows_linear, few_rows_parts
from octavo_kernels.gathered_attention import attention, gathered_attention
from octavo_kernels.gemv import gated_gemv, gemv
from octavo_kernels.hopper_attention import CONFIGS, hopper_attention
from octavo_kernels.linear import linear_config, linear_invariant, linear_tiles
from octavo_kernels.logprobs import logprobs
from octavo_kernels.paged_attention import paged_attention
from octavo_kernels.residual import Residual
from octavo_kernels.rms_norm import add_rms_norm, norm_residual
from octavo_kernels.rope import rotate_and_store
from octavo_kernels.sampling_table import COLUMNS
from octavo_kernels.shared_prefix_attention import shared_prefix_attention
from octavo_kernels.silu_and_mul import silu_and_mul
from octavo_kernels.step_inputs import ExpandedStep, SlotState
from octavo_kernels.step_inputs_kernel import expand_step
from octavo_kernels.step_start import begin_step
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
    for module in [module for name, module in sys.modules.items() if name.startswith("octavo_kernels.")]:
        if hasattr(module, "overlap"):
            monkeypatch.setattr(module, "overlap", lambda _, late=False: {"OVERLAP": 1 + late, "launch_pdl": True})
    driver.set_active(Hopper())
    return found


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
    for config in CONFIGS:
        hopper_attention(case.q, case.k_cache, case.v_cache, case.metadata, 0.25, config)
    assert all(kernel.metadata.shared <= SHARED_MEMORY for kernel in compiled)


@pytest.mark.parametrize(
    ("rows", "outputs", "tile"),
    [
        *((64, 28672, (1, 256)), (128, 28672, (1, 256)), (256, 28672, (2, 256)), (512, 28672, (2, 128))),
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
    check(compiled, 17)


def test_the_inputs_of_steps_of_all_sizes_take_one_kernel(compiled: list[Any]) -> None:
    long, int32 = torch.zeros(700, dtype=torch.int64), torch.zeros(4096, dtype=torch.int32)
    for tokens, rows in ((1, 1), (16, 16), (640, 64)):
        state = SlotState(long, int32.view(16, 256), 16, 99)
        out = ExpandedStep(*[long[:tokens]] * 3, int32[:rows], int32.view(64, 64)[:rows], *[long[:rows]] * 3)
        expand_step(int32, state, out, tokens)
    assert len({kernel.hash for kernel in compiled}) == 1
    check(compiled, 3)
