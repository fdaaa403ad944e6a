"""The plain-torch operations against float64, with NaN wherever nothing may be read."""

import pytest
import torch

from attention_oracle import dense_attention
from octavo_kernels import attention_plan
from octavo_kernels.reference import apply_rope, linear, pack_weight, rms_norm, silu_and_mul, store_kv
from paged_case import RAGGED, make_case


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-6) -> None:
    assert found.shape == expected.shape
    difference = (found.double() - expected).abs().max()
    assert difference <= tolerance, f"differs by {difference:.2e}"


@pytest.mark.parametrize("page_size", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("window", [None, 1, 20, 64, 100])
def test_attention_over_ragged_requests_is_exact(page_size: int, window: int | None) -> None:
    case = make_case(RAGGED, page_size=page_size)
    assert_close(case.run(window), case.expected(window))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(4, 4, 64), (8, 2, 80), (3, 1, 40), (10, 2, 96), (7, 1, 128), (12, 2, 10), (9, 1, 16), (32, 2, 8)],
)
def test_attention_is_exact_for_any_heads(heads: int, kv_heads: int, head_dim: int) -> None:
    case = make_case([(1, 70), (20, 33), (3, 3), (1, 5)], heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    assert_close(case.run(), case.expected(), 1e-5)


def test_one_request_with_one_key_head_is_exact() -> None:
    for request in ((1, 1), (1, 63), (2, 2)):
        case = make_case([request], heads=1, kv_heads=1)
        assert_close(case.run(), case.expected())


def test_the_order_of_the_cache_in_memory_does_not_show() -> None:
    pages = make_case(RAGGED, heads_first=True)
    tokens = make_case(RAGGED, heads_first=False)
    assert torch.equal(pages.run(), tokens.run())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_of_half_precision_loses_only_the_last_rounding(dtype: torch.dtype) -> None:
    case = make_case(RAGGED, dtype=dtype)
    expected = case.expected()
    found = case.run()
    assert found.dtype == dtype
    # Half a unit in the last place of the result, and nothing from within.
    assert ((found.double() - expected).abs() <= expected.abs() * torch.finfo(dtype).eps / 2 + 1e-5).all()


def test_attention_in_float64_is_exact_to_float64() -> None:
    case = make_case(RAGGED, dtype=torch.float64)
    assert_close(case.run(), case.expected(), 1e-14)


def test_little_working_memory_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = make_case(RAGGED).run(window=90)
    monkeypatch.setattr(attention_plan, "GATHER_ELEMENTS", 1)
    monkeypatch.setattr(attention_plan, "SCORE_ELEMENTS", 1 << 12)
    assert torch.equal(make_case(RAGGED).run(window=90), plenty)


def test_the_plan_is_made_once_for_all_layers_with_one_window() -> None:
    case = make_case(RAGGED)
    first = case.run()
    case.run(window=20)
    plans = dict(case.metadata.plans)
    assert torch.equal(case.run(), first)
    assert case.metadata.plans == plans
    assert len(plans) == 2


def test_scores_of_any_size_overflow_nothing() -> None:
    case = make_case([(4, 100), (1, 100)])
    case.q *= 1e4
    assert_close(case.run(), case.expected(), 1e-4)


def test_the_oracle_agrees_with_torch() -> None:
    q, k, v = torch.randn(3, 50, 4, 16, generator=torch.Generator().manual_seed(0))
    heads_first = [x.transpose(0, 1).double() for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True, scale=0.25)
    assert_close(dense_attention(q, [k], [v], [50], 0.25), expected.transpose(0, 1), 1e-14)


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 100])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_is_exact_and_a_row_does_not_depend_on_the_others(rows: int, packed: bool, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 100, generator=draw).to(dtype)
    weight, bias = torch.randn(37, 100, generator=draw).to(dtype), torch.randn(37, generator=draw).to(dtype)
    used = pack_weight(weight) if packed else weight
    product = x.double() @ weight.double().t()
    expected = product + bias.double()
    found = linear(x, used, bias)
    assert found.dtype == dtype
    # The product is rounded to the type, and the sum with the bias again.
    tolerance = torch.finfo(dtype).eps * (product.abs() + expected.abs()) / 2 + 1e-4
    assert ((found.double() - expected).abs() <= tolerance).all()
    for row in range(rows):
        assert torch.equal(linear(x[row : row + 1], used, bias)[0], found[row])


@pytest.mark.parametrize("shape", [(5, 48), (5, 3, 24), (1, 10)])
def test_rms_norm_is_exact(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = 3 * torch.randn(shape, generator=draw), torch.randn(shape[-1], generator=draw)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_close(rms_norm(x, weight, 1e-5), expected)
    # Rounded to the type of the input before the weight, as transformers does: one unit in the last place at most.
    half, half_weight = x.bfloat16(), weight.bfloat16()
    normed = (half.double() / (half.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()).bfloat16()
    assert torch.allclose(rms_norm(half, half_weight, 1e-5), half_weight * normed, rtol=2**-7, atol=0)


def test_rope_turns_each_pair_by_its_angle() -> None:
    draw = torch.Generator().manual_seed(0)
    x, angles = torch.randn(7, 3, 10, generator=draw), 50 * torch.randn(7, 5, generator=draw)
    turned = torch.complex(x[..., :5].double(), x[..., 5:].double()) * torch.exp(1j * angles.double()).unsqueeze(1)
    angles = torch.cat((angles, angles), dim=1)
    assert_close(apply_rope(x, angles.cos(), angles.sin()), torch.cat((turned.real, turned.imag), dim=-1))
    assert apply_rope(x.bfloat16(), angles.cos(), angles.sin()).dtype == torch.bfloat16


def test_silu_and_mul_is_exact_and_a_row_does_not_depend_on_the_others() -> None:
    x = 20 * torch.randn(33, 2 * 37, generator=torch.Generator().manual_seed(0))
    x[0, 0], x[1, 0] = 200.0, -200.0
    wide = x.double()
    found = silu_and_mul(x)
    expected = wide[:, :37] * torch.sigmoid(wide[:, :37]) * wide[:, 37:]
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-30)
    for row in range(33):
        assert torch.equal(silu_and_mul(x[row : row + 1])[0], found[row])


@pytest.mark.parametrize("heads_first", [False, True])
def test_store_kv_writes_its_slots_and_no_other(heads_first: bool) -> None:
    k, v = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    k_cache, v_cache = torch.full((2, 5, 2, 8, 4) if heads_first else (2, 5, 8, 2, 4), torch.nan)
    if heads_first:
        k_cache, v_cache = k_cache.transpose(1, 2), v_cache.transpose(1, 2)
    store_kv(k, v, k_cache, v_cache, torch.tensor([39, 0, 17]))
    for new, cache in ((k, k_cache), (v, v_cache)):
        assert torch.equal(torch.stack([cache[4, 7], cache[0, 0], cache[2, 1]]), new)
        assert cache.isnan().sum() == cache.numel() - new.numel()
