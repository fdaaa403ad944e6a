"""Every Triton kernel on small shapes, against float64 or its twin: what `kernel_sanitizer.py` runs under each tool."""

import importlib
import pkgutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "tests/support", "benchmarks")]

import gpu_sampling  # noqa: E402
import numpy as np  # noqa: E402
import shared_prefix  # noqa: E402
import torch  # noqa: E402
from kernel_checks import SHAPES, Case, Errors, check_rope, check_rows  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

import octavo_kernels  # noqa: E402
from octavo_kernels import reference, step_inputs, step_inputs_kernel, step_start  # noqa: E402
from octavo_kernels import sampling_table as columns  # noqa: E402
from octavo_kernels.few_rows import FewRowsConfig, few_rows_gated, few_rows_linear, few_rows_parts  # noqa: E402
from octavo_kernels.gemv import gated_gemv  # noqa: E402
from octavo_kernels.hopper_attention import CONFIGS  # noqa: E402
from octavo_kernels.linear import is_hopper  # noqa: E402
from octavo_kernels.paged_attention import AttentionConfig, paged_attention_invariant  # noqa: E402
from octavo_kernels.step_inputs import ExpandedStep, SlotState, packed_words, sections  # noqa: E402
from octavo_kernels.token_mask import apply_token_mask  # noqa: E402
from octavo_server.ipc import SamplingParams  # noqa: E402
from sampling_pair import SamplingPair  # noqa: E402

CUDA: Final = torch.device("cuda")
BF16: Final = torch.bfloat16
# (tokens in the step, in the cache): decodes, chunks and prompts on both sides of a tile's end, one request that rests.
STEP: Final = [(1, 1), (1, 67), (0, 9), (5, 70), (33, 33), (66, 66)]
SPLIT: Final = AttentionConfig(16, 64, 4, 2, 64, 64)
FEW_ROWS: Final = (
    *(FewRowsConfig(32, 128, 4, 6), FewRowsConfig(16, 256, 2, 5, ahead=512), FewRowsConfig(32, 128, 4, 6, splits=3)),
    FewRowsConfig(16, 256, 4, 1, splits=2, registers=True),
)
VOCAB: Final = 4999


def kernel_names() -> list[str]:
    """Of all kernels that there are: Triton's are named as their functions."""
    names = set[str]()
    for found in pkgutil.iter_modules(octavo_kernels.__path__, "octavo_kernels."):
        module = importlib.import_module(found.name)
        functions = [value for value in vars(module).values() if isinstance(value, JITFunction)]
        names |= {each.fn.__name__ for each in functions if each.fn.__name__.endswith("_kernel")}
    return sorted(names)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=CUDA).to(BF16)


def check_attention(errors: Errors, name: str, page_size: int, window: int | None) -> None:
    """Over pages, in splits and without, over gathered keys, and invariant."""
    case = Case(STEP, heads=SHAPES[name], page_size=page_size)
    truth = case.expected(window)
    chunks = torch.cat([torch.full((count,), count > 1) for count in case.counts]).cuda()
    errors.add("attention", BF16, case.run(window), truth, name)
    errors.add("attention in splits", BF16, case.run(window, (SPLIT, SPLIT)), truth, name)
    errors.add("gathered", BF16, case.run_gathered(window)[chunks], truth[chunks], name)
    found = paged_attention_invariant(case.q, case.k, case.v, case.metadata, case.scale, window)
    errors.add("invariant attention", BF16, found, truth, name)


def check_hopper(errors: Errors, shape: tuple[int, int, int]) -> None:
    """Chunks on Hopper, by groups of warps."""
    case = Case(STEP, heads=shape)
    chunks = torch.cat([torch.full((count,), count > 1) for count in case.counts]).cuda()
    truth = case.expected()[chunks]
    for config in CONFIGS if is_hopper(CUDA) else ():
        errors.add("hopper", BF16, case.run_hopper(config)[chunks], truth, f"{shape} {config}")


def check_shared_prefix(errors: Errors) -> None:
    """Decodes over prefixes that are read once, and beside them."""
    step = shared_prefix.make_step([1, 40, 70, 5, 17, 130, 1, 9, 64, 300], [([2, 0, 1, 3], 8), ([5, 8, 9], 40)])
    wide = [half.double() for half in step.caches[0]]
    truth = shared_prefix.twin(step.q.double(), *wide, step.metadata, step.q.shape[2] ** -0.5)
    errors.add("shared prefixes", BF16, step.shared(), truth)


def check_few_rows(errors: Errors) -> None:
    """Products of few rows: whole, in parts, gated; tiles, and the weight in registers."""
    for rows, inputs in ((8, 1100), (13, 1024)):
        x, weight, bias = normal(rows, inputs), normal(96, inputs) / 32, normal(96)
        truth = x.double() @ weight.double().t()
        for config in FEW_ROWS:
            errors.add("few rows", BF16, few_rows_linear(x, weight, bias, config), truth + bias.double())
            errors.add("few rows in parts", BF16, few_rows_parts(x, weight, config).sum(0), truth)
        gated = few_rows_gated(x, weight, None, FewRowsConfig(32, 128, 4, 5, ahead=512))
        errors.add("few rows, gated", BF16, gated, reference.silu_and_mul(truth))
        errors.add("one row, gated", BF16, gated_gemv(x[:1], weight), reference.silu_and_mul(truth[:1]))


def check_step_start(errors: Errors) -> None:
    """Embeddings, angles, and a step's inputs from what the host says of it."""
    embedding, angles = normal(30, 1100), torch.randn(2, 40, 24, device=CUDA)
    ids, positions = torch.arange(5, device=CUDA), torch.arange(5, device=CUDA) * 7
    hidden, (cos, sin) = step_start.begin_step(embedding, *angles, ids, positions)
    expected, twice = reference.begin_step(embedding, *angles, ids, positions)
    errors.add("embeddings", BF16, hidden, expected)
    errors.add("angles", torch.float32, torch.cat((cos, cos, sin, sin), 1), torch.cat(twice, 1))
    tokens, rows, slots, width, page = 40, 7, 12, 9, 4
    memory = np.zeros(packed_words(tokens, rows) + 9, dtype=np.int32)
    to = sections(memory, tokens, rows)
    to.token_ids[:20], to.token_ids[5], to.draws[:] = np.arange(20), -1, 1
    to.query_start[:] = [0, 5, 6, 20, 20, 20, 20, 20]
    to.start[:3], to.slot[:], to.slot[:3], to.known[3:] = [3, 8, 0], slots, [4, 0, 9], 1
    to.page_start[:], to.pages[:] = [0, 2, 5, 9, 9, 9, 9, 9], np.arange(100, 109)
    to.sampling[:], to.sampling[:2] = -1, [0, 1]
    shapes = [(tokens,)] * 3 + [(rows,), (rows, width)] + [(rows,)] * 3
    kinds = [torch.int64] * 3 + [torch.int32] * 2 + [torch.int64] * 3
    found = []
    for expand in (step_inputs_kernel.expand_step, step_inputs.expand_step):
        tables = torch.full((slots + 1, width), 77, dtype=torch.int32, device=CUDA)
        state = SlotState(torch.arange(5000, 5000 + slots, device=CUDA), tables, page, 77)
        out = ExpandedStep._make(
            [torch.full(shape, -9, dtype=kind, device=CUDA) for shape, kind in zip(shapes, kinds, strict=True)]
        )
        expand(torch.from_numpy(memory).cuda(), state, out, 14)
        found.append(torch.cat([part.flatten().float() for part in (*out, tables)]))
    errors.add("a step's inputs", torch.float32, *found)


def check_sampling(errors: Errors) -> None:
    """Every way to draw, with log-probabilities and without, and masks: token by token."""
    settings = [*gpu_sampling.KINDS.values(), {"bad_words": ((1, 2), (3,)), "logprobs": 2}, {"min_tokens": 30}]
    params = [SamplingParams(seed=row, **setting) for row, setting in enumerate(settings)]
    pair = SamplingPair(params, [list(range(40))] * len(params), 20, VOCAB, CUDA, eos=(5,))
    table = pair.slots.table.clone()
    pair.slots.table.zero_()
    memory = torch.zeros(64, pair.slots.joining_words, dtype=torch.int64).pin_memory()
    pair.slots.apply(pair.slots.changes(pair.states, ()), memory)
    entries = (columns.ENTRIES.value, columns.WORDS.value)  # addresses, of memory that is new each time
    differing = (pair.slots.table != table).any(0).nonzero().flatten().tolist()
    if not set(differing) <= set(entries):
        errors.failures.append(f"rows read from the host differ in {differing}")
    for step in range(2):
        logits = 3 * torch.randn(len(params), VOCAB, device=CUDA, generator=torch.Generator(CUDA).manual_seed(step))
        got, want = pair.step(logits)
        for one, other, setting in zip(got, want, settings, strict=True):
            if one.token_id != other.token_id:
                errors.failures.append(f"drawn with {setting}: {one.token_id}, not {other.token_id}")
    logits, masks = torch.randn(5, VOCAB, device=CUDA), torch.randint(-(2**31), 2**31, (5, 157), device=CUDA).int()
    forced, expected = torch.arange(5, device=CUDA, dtype=torch.int32) % 2, logits.clone()
    apply_token_mask(logits, masks, forced)
    reference.apply_token_mask(expected, masks, forced)
    if not torch.equal(logits, expected):
        errors.failures.append("masked logits")


CHECKS: Final[dict[str, Callable[[Errors], None]]] = {
    "attention, 4 a key head": partial(check_attention, name="8B", page_size=16, window=None),
    "attention, a window": partial(check_attention, name="3 a key head", page_size=8, window=20),
    "attention, one key head": partial(check_attention, name="7, one key head", page_size=256, window=None),
    "hopper, 4 a key head": partial(check_hopper, shape=(32, 8, 128)),
    "hopper, one key head": partial(check_hopper, shape=(7, 1, 64)),
    "shared prefixes": check_shared_prefix,
    "rows": lambda errors: check_rows(errors, BF16, "cuda"),
    "few rows": check_few_rows,
    "rope": lambda errors: check_rope(errors, BF16, "cuda"),
    "step start": check_step_start,
    "sampling": check_sampling,
}
