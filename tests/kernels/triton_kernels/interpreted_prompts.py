"""Attention of whole prompts on the step's own K and V under Triton's interpreter, against float64.

The kernel takes float16 and bfloat16, of which the interpreter computes the latter wrongly; in float32 it is called
here all the same, as nothing in it depends on the type, to see that what is left of an error is float16's.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from octavo_kernels.gathered_attention import attention
from octavo_kernels.paged_attention import AttentionConfig
from octavo_kernels.prompt_attention import prompt_attention
from paged_case import Case, make_case

# Prompts of lengths across the tiles, of one token and of none, and last one that fills no tile.
PROMPTS = [(5, 5), (1, 1), (70, 70), (0, 3), (33, 33), (16, 16), (1, 9), (2, 2)]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}


def rows_of(case: Case, chosen: Callable[[int, int], bool]) -> torch.Tensor:
    """Which rows are those of requests for whose index and number of tokens this holds."""
    return torch.cat([torch.full((n,), chosen(i, n)) for i, n in enumerate(case.query_lens)])


def largest_error(case: Case, window: int | None, found: torch.Tensor, rows: torch.Tensor) -> float:
    return float((found.double() - case.expected(window))[rows].abs().max())


@pytest.mark.parametrize(
    ("shape", "window", "dtype"),
    [
        ((6, 2, 16), None, torch.float32),
        ((7, 1, 32), None, torch.float16),
        ((4, 4, 16), 1, torch.float16),
        ((6, 2, 16), 20, torch.float16),
        ((6, 2, 16), 40, torch.float32),
    ],
)
def test_whole_prompts_of_any_length(shape: tuple[int, int, int], window: int | None, dtype: torch.dtype) -> None:
    heads, kv_heads, head_dim = shape
    case = make_case(PROMPTS, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype)
    config = AttentionConfig(32, 16 if window == 40 else 32, 4, 1)
    found = prompt_attention(case.q, *case.step_kv(), case.metadata, 0.25, window, config)
    assert largest_error(case, window, found, rows_of(case, lambda _, n: n > 1)) <= TOLERANCE[dtype]


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # said by the interpreter
@pytest.mark.parametrize("window", [None, 20])
def test_what_is_no_number_in_one_prompt_stays_there(window: int | None) -> None:
    """A tile of keys reaches into the next request."""
    case = make_case([(40, 40), (33, 33), (9, 9)], dtype=torch.float16)
    rows = rows_of(case, lambda i, _: i != 1)
    q, (k, v) = case.q.clone(), (half.clone() for half in case.step_kv())
    for x in (q, k, v):
        x[~rows] = torch.nan
    found = prompt_attention(q, k, v, case.metadata, 0.25, window, AttentionConfig(32, 32, 4, 1))
    assert largest_error(case, window, found, rows) <= TOLERANCE[torch.float16]


def bounded(case: Case, **known: bool) -> Case:
    longest = max(case.query_lens), max(len(keys) for keys in case.keys)
    case.metadata = replace(case.metadata, max_query_len=longest[0], max_context_len=longest[1], **known)
    return case


def test_a_step_of_whole_prompts_and_decodes_reads_no_pages_for_the_prompts() -> None:
    case = bounded(make_case([(70, 70), (1, 50), (9, 9)], dtype=torch.float16), whole_prompts=True)
    expected = case.expected()
    for cache in (case.k_cache, case.v_cache):  # of the prompts: they need not be there
        for request in (0, 2):
            cache[case.metadata.block_tables[request, :1].long()] = torch.nan
    found = case.run(None, partial(attention, step_kv=case.step_kv()))
    assert (found.double() - expected).abs().max() <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("requests", [[(70, 90), (1, 50)], [(8, 9), (7, 7)]])
def test_a_step_with_a_later_chunk_reads_pages(requests: list[tuple[int, int]]) -> None:
    case = bounded(make_case(requests, dtype=torch.float16))
    unused = tuple(torch.full_like(half, torch.nan) for half in case.step_kv())
    found = case.run(None, partial(attention, step_kv=unused))
    assert largest_error(case, None, found, rows_of(case, lambda *_: True)) <= TOLERANCE[torch.float16]


@pytest.mark.parametrize(("head_dim", "dtype"), [(24, torch.float16), (16, torch.float32)])
def test_other_sizes_and_exact_types_read_pages(head_dim: int, dtype: torch.dtype) -> None:
    case = bounded(make_case([(40, 40), (9, 9)], head_dim=head_dim, dtype=dtype), whole_prompts=True)
    unused = tuple(torch.full_like(half, torch.nan) for half in case.step_kv())
    found = case.run(None, partial(attention, step_kv=unused))
    assert largest_error(case, None, found, rows_of(case, lambda *_: True)) <= TOLERANCE[dtype]
