"""Norms, rope with the store, SwiGLU and linear maps under Triton's interpreter, against their twins and float64."""

import pytest
import torch

from octavo_kernels import product_choices, reference, small_linear
from octavo_kernels.few_rows import FewRowsConfig, few_rows_gated, few_rows_linear, few_rows_parts
from octavo_kernels.gemv import GemvConfig, gated_gemv, gemv
from octavo_kernels.linear import LinearConfig, linear_invariant, linear_tiles
from octavo_kernels.residual import Residual
from octavo_kernels.rms_norm import add_rms_norm, norm_residual, rms_norm
from octavo_kernels.rope import rotate_and_store
from octavo_kernels.silu_and_mul import silu_and_mul
from octavo_kernels.step_start import begin_step

# Of float16 one rounding may fall the other way: a unit in the last place.
TOLERANCE = {torch.float32: {"rtol": 2e-6, "atol": 2e-6}, torch.float16: {"rtol": 2e-3, "atol": 1e-3}}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), **TOLERANCE[found.dtype])


@dtypes
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (5, 112), (3, 1100)])
def test_rms_norm(rows: int, width: int, dtype: torch.dtype) -> None:
    wide = draw(rows, 2 * width, dtype=dtype)
    x, weight = wide[:, :width], draw(width, dtype=dtype, seed=1)  # rows that do not follow each other
    assert_close(rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    residual = draw(rows, width, dtype=dtype, seed=2)
    expected = reference.add_rms_norm(x, residual.clone(), weight, 1e-5)
    for ours, theirs in zip(add_rms_norm(x, residual, weight, 1e-5), expected, strict=True):
        assert_close(ours, theirs)


@dtypes
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_a_step_begins_with_embeddings_and_angles(tokens: int, dtype: torch.dtype) -> None:
    embedding, cos, sin = (
        draw(30, 1100, dtype=dtype),
        draw(40, 24, dtype=torch.float32),
        -draw(40, 24, dtype=torch.float32),
    )
    token_ids, positions = torch.arange(tokens) * 7 % 30, torch.arange(tokens) * 11 % 40
    hidden, angles = begin_step(embedding, cos, sin, token_ids, positions)
    expected, twice = reference.begin_step(embedding, cos, sin, token_ids, positions)
    assert torch.equal(hidden, expected)
    for ours, theirs in zip(angles, twice, strict=True):
        assert torch.equal(torch.cat((ours, ours), 1), theirs)


@dtypes
def test_silu_and_mul(dtype: torch.dtype) -> None:
    x = draw(3, 2 * 1100, dtype=dtype) * 5
    assert_close(silu_and_mul(x), reference.silu_and_mul(x))


@dtypes
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "heads_first"), [(4, 4, 64, True), (7, 1, 80, False), (16, 8, 16, True)]
)
@pytest.mark.parametrize("normed", [False, True])
def test_rotate_and_store(
    heads: int, kv_heads: int, dim: int, heads_first: bool, normed: bool, dtype: torch.dtype
) -> None:
    tokens, pages, page_size = 5, 3, 8
    qkv = draw(tokens, heads + 2 * kv_heads, dim, dtype=dtype)
    angles = 50 * draw(tokens, dim // 2, dtype=torch.float32, seed=1)
    both = torch.cat((angles, angles), 1)
    weights = draw(2, dim, dtype=dtype, seed=2)
    norms = (weights[0], weights[1], 1e-6) if normed else None
    slots = torch.randperm(pages * page_size, generator=torch.Generator().manual_seed(3))[:tokens]
    shape = (2, pages, kv_heads, page_size, dim) if heads_first else (2, pages, page_size, kv_heads, dim)
    caches = [torch.full(shape, torch.nan, dtype=dtype) for _ in range(2)]
    views = [(c[0].transpose(1, 2), c[1].transpose(1, 2)) if heads_first else (c[0], c[1]) for c in caches]
    found = rotate_and_store(qkv, (angles.cos(), angles.sin()), norms, views[0], slots)
    expected = reference.rotate_and_store(qkv, (both.cos(), both.sin()), norms, views[1], slots)
    assert_close(found, expected)
    # Slots of others are as they were: NaN.
    torch.testing.assert_close(caches[0], caches[1], equal_nan=True, **TOLERANCE[dtype])
    assert caches[0].isnan().sum() == caches[0].numel() - 2 * tokens * kv_heads * dim


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product = (x.double() @ weight.double().t()).to(x.dtype)
    return product if bias is None else product + bias


@dtypes
@pytest.mark.parametrize("rows", [0, 1, 17, 70])
@pytest.mark.parametrize(("inputs", "outputs", "with_bias"), [(128, 37, True), (100, 64, False)])
def test_linear_maps_are_exact(rows: int, inputs: int, outputs: int, with_bias: bool, dtype: torch.dtype) -> None:
    x, weight = draw(rows, inputs, dtype=dtype) / 8, draw(outputs, inputs, dtype=dtype, seed=1)
    bias = draw(outputs, dtype=dtype, seed=2) if with_bias else None
    expected = exact(x, weight, bias)
    assert_close(linear_invariant(x, weight, bias), expected)
    assert_close(linear_tiles(x, weight, bias, LinearConfig(16, 16, 64, 4, 2)), expected)
    if 0 < rows <= 17:
        for few in (FewRowsConfig(16, 64, 4, 2), FewRowsConfig(32, 32, 4, 2)):
            assert_close(few_rows_linear(x[:16], weight, bias, few), expected[:16])
    residual = Residual(draw(rows, outputs, dtype=dtype, seed=3))
    total = residual.hidden + expected
    small_linear.linear_add(x, (weight, bias), residual)
    ones = torch.ones(outputs, dtype=dtype)
    found = norm_residual(residual, (ones, 1e-5))
    # Where a product was rounded the other way and most of it cancels, the difference stays.
    torch.testing.assert_close(residual.hidden, total, rtol=2e-3, atol=4e-3)
    assert_close(found, reference.rms_norm(residual.hidden, ones, 1e-5))


@dtypes
def test_many_rows_are_added_to_the_stream_at_once(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_linear, "MANY_ROWS", 20)
    x, weight = draw(20, 100, dtype=dtype) / 8, draw(40, 100, dtype=dtype, seed=1)
    before = draw(20, 40, dtype=dtype, seed=2)
    residual = Residual(before.clone())
    small_linear.linear_add(x, (weight, None), residual)
    assert (residual.pending is None) == (dtype != torch.float32)  # where the library is exact, nothing is new
    total = residual.hidden if residual.pending is None else residual.hidden + residual.pending
    assert_close(total, (before.double() + x.double() @ weight.double().t()).to(dtype))


@dtypes
@pytest.mark.parametrize("config", [GemvConfig(1, 128, 4), GemvConfig(2, 64, 4), GemvConfig(4, 32, 4)])
def test_a_row_times_a_weight_is_exact(config: GemvConfig, dtype: torch.dtype) -> None:
    for inputs in (128, 200):
        x, weight = draw(1, inputs, dtype=dtype) / 8, draw(37, inputs, dtype=dtype, seed=1)
        bias = draw(37, dtype=dtype, seed=2)
        assert_close(gemv(x, weight, bias, config), exact(x, weight, bias))


@dtypes
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("inputs", [64, 100])
def test_a_gated_map_is_its_twin(inputs: int, with_bias: bool, dtype: torch.dtype) -> None:
    weight = draw(2 * 37, inputs, dtype=dtype, seed=1)
    bias = draw(2 * 37, dtype=dtype, seed=2) if with_bias else None
    for rows in (1, 5, 16):
        x = draw(rows, inputs, dtype=dtype) / 8
        expected = reference.silu_and_mul(exact(x, weight, bias))
        assert_close(few_rows_gated(x, weight, bias, FewRowsConfig(16, 32, 4, 2)), expected)
        if rows == 1:
            assert_close(gated_gemv(x, weight, bias, GemvConfig(2, 32, 4)), expected)


@dtypes
@pytest.mark.parametrize("rows", [1, 5, 17])
@pytest.mark.parametrize("pending", [False, True])
def test_maps_of_the_normed_stream_are_their_twins(rows: int, pending: bool, dtype: torch.dtype) -> None:
    inputs, outputs = 600, 38  # two stretches of a row
    weight, bias = draw(outputs, inputs, dtype=dtype, seed=1) / 16, draw(outputs, dtype=dtype, seed=2)
    norm = (draw(inputs, dtype=dtype, seed=3), 1e-5)
    hidden, more = draw(rows, inputs, dtype=dtype, seed=4), draw(rows, inputs, dtype=dtype, seed=5)
    normed = reference.rms_norm(hidden + more if pending else hidden, *norm)
    for found, expected in (
        (small_linear.norm_linear, exact(normed, weight, bias)),
        (small_linear.norm_gated_linear, reference.silu_and_mul(exact(normed, weight, bias))),
    ):
        residual = Residual(hidden.clone(), more.clone() if pending else None)
        assert_close(found(residual, norm, (weight, bias)), expected)
        assert residual.pending is None
        assert_close(residual.hidden, hidden + more if pending else hidden)


@dtypes
@pytest.mark.parametrize("block_rows", [16, 32])
def test_more_rows_than_a_tile_has_are_taken_by_more_programs(block_rows: int, dtype: torch.dtype) -> None:
    x, weight, bias = draw(39, 100, dtype=dtype) / 8, draw(74, 100, dtype=dtype, seed=1), draw(74, dtype=dtype, seed=2)
    config = FewRowsConfig(16, 32, 4, 2, splits=2, block_rows=block_rows)
    plain = exact(x, weight, None)
    assert_close(few_rows_linear(x, weight, bias, config), exact(x, weight, bias))
    assert_close(few_rows_gated(x, weight, None, config), reference.silu_and_mul(plain))
    assert_close(few_rows_parts(x, weight, config).sum(0).to(dtype), plain)


def test_rows_for_which_a_tile_was_measured_go_to_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, outputs = 64, 34
    chosen = {(outputs, inputs): FewRowsConfig(16, 32, 4, 2, splits=2, block_rows=16)}
    tuned = product_choices.Tuned(more_rows={18: {}, 20: chosen})
    monkeypatch.setattr(product_choices, "tuned", lambda device: tuned)
    weight, norm = draw(outputs, inputs, dtype=torch.float16, seed=1) / 8, torch.ones(inputs, dtype=torch.float16)
    for rows, in_parts in ((17, 3), (20, 3), (21, 2)):  # above 20 rows the library's, in one piece
        x = draw(rows, inputs, dtype=torch.float16)
        residual = Residual(torch.zeros(rows, outputs, dtype=torch.float16))
        small_linear.linear_add(x, (weight, None), residual)
        assert residual.pending is not None and residual.pending.dim() == in_parts
        total = residual.pending.sum(0) if in_parts == 3 else residual.pending
        assert_close(total.half(), exact(x, weight, None))
        normed = reference.rms_norm(x, norm, 1e-5)
        expected = exact(normed, weight, None)
        assert_close(small_linear.norm_linear(Residual(x.clone()), (norm, 1e-5), (weight, None)), expected)
        gated = small_linear.norm_gated_linear(Residual(x.clone()), (norm, 1e-5), (weight, None))
        assert_close(gated, reference.silu_and_mul(expected))


@dtypes
@pytest.mark.parametrize("splits", [1, 3])
def test_parts_of_a_product_add_up_to_it_in_the_norm(splits: int, dtype: torch.dtype) -> None:
    for inputs in (128, 100, 140):  # of the first two there are but two splits
        x, weight = draw(5, inputs, dtype=dtype) / 8, draw(37, inputs, dtype=dtype, seed=1)
        residual, norm = draw(5, 37, dtype=dtype, seed=2), draw(37, dtype=dtype, seed=3)
        parts = few_rows_parts(x, weight, FewRowsConfig(16, 64, 4, 2, splits))
        assert parts.shape == (min(splits, -(-inputs // 64)), 5, 37)
        expected = reference.add_rms_norm(exact(x, weight, None), residual.clone(), norm, 1e-5)
        for ours, theirs in zip(add_rms_norm(parts, residual, norm, 1e-5), expected, strict=True):
            assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_logits_are_not_rounded_to_the_type_of_the_weight(rows: int) -> None:
    x, weight = draw(rows, 64, dtype=torch.float16), draw(37, 64, dtype=torch.float16, seed=1)
    found = small_linear.logits(x, weight)
    torch.testing.assert_close(found, (x.double() @ weight.double().t()).float())
    room = torch.empty_like(found)
    assert small_linear.logits(x, weight, room) is room
    assert torch.equal(room, found)


@dtypes
def test_a_row_of_the_invariant_map_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    x, weight = draw(70, 96, dtype=dtype), draw(37, 96, dtype=dtype, seed=1)
    whole = linear_invariant(x, weight)
    for first, last in ((0, 1), (69, 70), (3, 68)):
        assert torch.equal(linear_invariant(x[first:last], weight), whole[first:last])
