"""The sampler against the distribution worked out by numpy in float64, token by token."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_server.ipc import SamplingParams
from octavo_server.worker import logprobs as logprobs_module
from octavo_server.worker import noise as noise_module
from octavo_server.worker import sampler as sampler_module
from octavo_server.worker.logits_processors import SamplingRow
from octavo_server.worker.logprobs import likeliest, token_logprobs
from octavo_server.worker.noise import choice_seed, exponential_noise, random_bits
from octavo_server.worker.sampler import Sampled, Sampler

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def distribution(logits: list[float], params: SamplingParams) -> list[float]:
    """The probabilities that the parameters ask for, step by step: temperature, min-p, top-k, top-p."""
    exact = np.array(logits, dtype=np.float64) / params.temperature
    weights = np.exp(exact - exact.max())
    weights[weights < params.min_p * weights.max()] = 0.0
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    for rank, token in enumerate(order):
        if params.top_k and rank >= params.top_k:
            weights[token] = 0.0
    total, before = weights.sum(), 0.0
    for token in order:
        weight = weights[token]
        if before >= params.top_p * total and params.top_p < 1.0:
            weights[token] = 0.0
        before += weight
    return list(weights / weights.sum())


def sample(logits: torch.Tensor, params: list[SamplingParams], positions: list[int]) -> list[Sampled]:
    rows = [SamplingRow(param, position, 0) for param, position in zip(params, positions, strict=True)]
    return Sampler().sample(logits, rows)


def processed_logits(logits: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    return sampler_module.processed_logits(logits, logits.amax(-1, keepdim=True), params)


def random_logits(rows: int, vocab: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


params_strategy = st.builds(
    SamplingParams,
    temperature=st.floats(0.05, 4.0),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1.0)),
    top_k=st.one_of(st.just(0), st.integers(1, 60)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
)


@settings(deadline=None, max_examples=150)
@given(params=st.lists(params_strategy, min_size=1, max_size=5), seed=st.integers(0, 10_000), ties=st.booleans())
def test_the_distribution_is_the_one_asked_for(params: list[SamplingParams], seed: int, ties: bool) -> None:
    logits = random_logits(len(params), 50, seed)
    if ties:
        logits = (logits * 0.5).round()
    got = processed_logits(logits, params).to(torch.float64).softmax(-1)
    for row, param in enumerate(params):
        want = distribution(logits[row].tolist(), param)
        support = (np.array(want) > 0) != (got[row].numpy() > 0)
        # float32 may see a token at the very edge of min-p or top-p on the other side; nothing else may differ
        edge = sum(want[token] or got[row, token].item() for token in np.flatnonzero(support))
        if support.any():
            assert support.sum() == 1 and _at_an_edge(logits[row].tolist(), param)
        np.testing.assert_allclose(got[row].numpy(), want, atol=1e-5 + 2 * edge)


def _at_an_edge(logits: list[float], param: SamplingParams) -> bool:
    def moved(top_p: float, min_p: float) -> list[bool]:
        changed = SamplingParams(param.temperature, top_p, param.top_k, min_p)
        return [value > 0 for value in distribution(logits, changed)]

    up, down = 1 + 1e-5, 1 - 1e-5
    return moved(param.top_p * up, param.min_p * down) != moved(param.top_p * down, param.min_p * up)


def test_the_order_is_temperature_then_min_p_then_top_k_then_top_p() -> None:
    """Numbers for which each other order would keep other tokens, worked out by hand."""
    probabilities = [0.4, 0.3, 0.2, 0.1]
    logits = torch.tensor([[math.log(p) for p in probabilities]])

    def kept(**changes: float) -> list[int]:
        got = processed_logits(logits, [SamplingParams(**changes)])  # type: ignore[arg-type]
        return [token for token in range(4) if got[0, token] > -math.inf]

    assert kept(min_p=0.6) == [0, 1]
    assert kept(min_p=0.6, temperature=2.0) == [0, 1, 2]  # sqrt(0.5) = 0.71, sqrt(0.25) = 0.5
    assert kept(top_p=0.55) == [0, 1]
    assert kept(top_k=2, top_p=0.55) == [0]  # 0.4 of 0.7 are 0.57
    assert kept(min_p=0.6, top_p=0.55) == [0]
    assert kept(top_k=3) == [0, 1, 2]
    assert kept(top_k=9) == [0, 1, 2, 3]


def test_of_equal_tokens_top_k_keeps_exactly_k_by_rising_id() -> None:
    got = processed_logits(torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]), [SamplingParams(top_k=2)])
    assert (got[0] > -math.inf).nonzero().flatten().tolist() == [1, 2]


def test_sampled_tokens_follow_the_distribution() -> None:
    """χ² over 20,000 draws; the seeds are fixed, so this passes always or never."""
    logits = random_logits(1, 40, seed=5, spread=1.5)
    for params in (
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(temperature=1.5, top_k=10, min_p=0.05),
    ):
        draws = 20_000
        rows = [
            SamplingParams(params.temperature, params.top_p, params.top_k, params.min_p, seed=s) for s in range(draws)
        ]
        tokens = [sampled.token_id for sampled in sample(logits.expand(draws, -1), rows, [3] * draws)]
        want = distribution(logits[0].tolist(), params)
        assert _chi_square(Counter(tokens), want, draws)


def test_one_seed_over_many_positions_follows_the_distribution_too() -> None:
    logits = random_logits(1, 40, seed=6, spread=1.5)
    draws, params = 20_000, SamplingParams(seed=1234)
    tokens = [sampled.token_id for sampled in sample(logits.expand(draws, -1), [params] * draws, list(range(draws)))]
    assert _chi_square(Counter(tokens), distribution(logits[0].tolist(), params), draws)


def _chi_square(counts: Counter[int | None], want: list[float], draws: int) -> bool:
    """Whether χ² is below its mean plus 4 standard deviations (for many degrees of freedom nearly normal)."""
    assert all(want[token or 0] > 0 for token in counts)
    used = [(counts[token], p * draws) for token, p in enumerate(want) if p * draws >= 5]
    chi = sum((seen - expected) ** 2 / expected for seen, expected in used)
    degrees = len(used) - 1
    return chi < degrees + 4 * math.sqrt(2 * degrees)


def test_a_temperature_of_zero_takes_the_likeliest_and_of_equals_the_first() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0], [2.0, 7.0, 7.0]])
    assert [s.token_id for s in sample(logits, [SamplingParams(temperature=0.0, seed=9)] * 2, [0, 1])] == [1, 1]


@pytest.mark.parametrize("vocab", [37, 1003, 33_000])
def test_a_row_gives_the_same_token_and_logprobs_whatever_it_is_batched_with(vocab: int) -> None:
    torch.set_num_threads(2)
    logits = random_logits(24, vocab, seed=1)
    params = [
        SamplingParams(
            temperature=(0.0, 0.7, 1.0, 1.3)[row % 4],
            top_p=(1.0, 0.8)[row % 2],
            top_k=(0, 0, 20)[row % 3],
            min_p=(0.0, 0.02)[row // 2 % 2],
            seed=row * 77,
            logprobs=(None, 0, 3, 20)[row // 3 % 4],
        )
        for row in range(24)
    ]
    positions = [row * 5 for row in range(24)]
    together = sample(logits, params, positions)
    for row in range(24):
        assert sample(logits[row : row + 1], [params[row]], [positions[row]]) == [together[row]]
    order = list(reversed(range(24)))
    backwards = sample(logits[torch.tensor(order)], [params[row] for row in order], [positions[row] for row in order])
    assert backwards[::-1] == together


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(9, 100)
    params = [SamplingParams(seed=row, top_p=0.9, logprobs=2) for row in range(9)]
    whole = sample(logits, params, list(range(9)))
    monkeypatch.setattr(logprobs_module, "CHUNK_BYTES", 2 * 8 * 100)
    assert sample(logits, params, list(range(9))) == whole


def test_the_logits_are_left_as_they_are() -> None:
    logits = random_logits(3, 50)
    before = logits.clone()
    sample(logits, [SamplingParams(temperature=0.5, top_k=3, min_p=0.1, logprobs=2)] * 3, [0, 1, 2])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_without_a_distribution_fails_alone(bad: float) -> None:
    logits = random_logits(4, 50)
    params = [SamplingParams(temperature=float(row % 2), seed=row, logprobs=1) for row in range(4)]
    healthy = sample(logits, params, [0] * 4)
    logits[1, 7] = bad
    logits[2, 49] = bad
    got = sample(logits, params, [0] * 4)
    assert [got[0], got[3]] == [healthy[0], healthy[3]]
    assert [got[1].token_id, got[1].logprobs, got[2].token_id] == [None, None, None]


def test_excluded_tokens_in_the_logits_are_never_drawn() -> None:
    logits = torch.full((200, 30), -math.inf)
    logits[:, [4, 9]] = 1.0
    tokens = {s.token_id for s in sample(logits, [SamplingParams(seed=seed) for seed in range(200)], [0] * 200)}
    assert tokens == {4, 9}


# log-probabilities


def test_logprobs_are_of_the_untouched_distribution_with_rank_and_alternatives() -> None:
    logits = random_logits(6, 80, seed=3)
    params = [SamplingParams(temperature=2.5, top_k=70, seed=row, logprobs=row) for row in range(6)]
    for row, sampled in enumerate(sample(logits, params, [0] * 6)):
        exact = logits[row].numpy().astype(np.float64)
        want = exact - exact.max() - math.log(np.exp(exact - exact.max()).sum())
        order = np.argsort(-want, kind="stable").tolist()
        assert sampled.token_id is not None and sampled.logprobs is not None
        assert sampled.logprobs.token_ids == [sampled.token_id, *order[:row]]
        assert sampled.logprobs.rank == order.index(sampled.token_id) + 1
        np.testing.assert_allclose(sampled.logprobs.logprobs, want[sampled.logprobs.token_ids], atol=1e-5)


def test_equally_likely_tokens_share_a_rank_and_are_listed_by_rising_id() -> None:
    logits = torch.tensor([[0.0, 3.0, -0.0, 3.0, 0.0, -5.0]])
    (found,) = token_logprobs(logits, [2], [5])
    assert found.token_ids == [2, 1, 3, 0, 2, 4]
    assert found.rank == 3


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30), st.integers(1, 30))
@settings(deadline=None)
def test_the_likeliest_tokens_are_found_in_order_for_any_floats(values: list[float], count: int) -> None:
    count = min(count, len(values))
    want = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    assert likeliest(torch.tensor([values]), count).tolist() == [want]


def test_more_alternatives_than_the_vocabulary_has_gives_all_of_it() -> None:
    (found,) = token_logprobs(torch.tensor([[1.0, 2.0, 3.0]]), [0], [20])
    assert found.token_ids == [0, 2, 1, 0]


# noise

_64 = (1 << 64) - 1


def splitmix64(state: int) -> Iterator[int]:
    """The generator as its paper has it, on Python's integers."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & _64
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _64
        yield z ^ (z >> 31)


def test_splitmix64_of_this_test_gives_the_published_numbers() -> None:
    """Seed 1234567: the test vector that implementations share."""
    numbers = splitmix64(1234567)
    assert [next(numbers) for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**63, 2**64 - 1, -1])
def test_noise_is_nested_splitmix64_of_which_each_number_serves_two_tokens(seed: int) -> None:
    position = 5
    keys = splitmix64(next(splitmix64(seed & _64)))
    key = [next(keys) for _ in range(position + 1)][position]
    numbers = list(itertools.islice(splitmix64(key), 6144))
    want = [
        numbers[token // 4096 * 2048 + token % 2048] >> (0 if token % 4096 >= 2048 else 32) for token in range(9000)
    ]
    for count in (1, 50, 2048, 2049, 4095, 4096, 4097, 6144, 6145, 9000):
        assert random_bits([seed], [position], count, CPU)[0].tolist() == [bits % 2**32 for bits in want[:count]]


def test_each_choice_has_a_seed_of_its_own_and_the_first_one_the_requests() -> None:
    for seed in (0, 1, 2**63 - 1):
        first, second = itertools.islice(splitmix64(seed), 2)
        assert choice_seed(seed, 0) == seed
        choices = splitmix64(second)
        assert [choice_seed(seed, choice) for choice in range(1, 20)] == [next(choices) for _ in range(19)]
        keys = random_bits([choice_seed(seed, choice) for choice in range(50)], [0] * 50, 4, CPU)
        assert len(set(keys.flatten().tolist())) == 200 and first >> 32 not in keys.flatten().tolist()


def test_noise_is_exponential_and_independent_between_seeds_choices_positions_and_tokens() -> None:
    another = choice_seed(7, 1)
    noise = exponential_noise([7, 7, 8, 8, another], [0, 1, 0, 1, 0], 50_000, CPU)
    assert bool((noise > 0).all()) and bool(noise.isfinite().all())
    for row in noise.numpy():
        assert abs(row.mean() - 1) < 4 / math.sqrt(50_000)
        # Kolmogorov and Smirnov: the greatest distance to the distribution function
        ordered = np.sort(row)
        distance = np.abs(1 - np.exp(-ordered) - (np.arange(50_000) + 0.5) / 50_000).max()
        assert distance < 1.63 / math.sqrt(50_000)
        assert abs(np.corrcoef(row[:-1], row[1:])[0, 1]) < 4 / math.sqrt(50_000)
    correlations = np.corrcoef(noise.numpy())[np.triu_indices(5, 1)]
    assert np.abs(correlations).max() < 4 / math.sqrt(50_000)


def test_the_two_tokens_that_share_a_number_have_independent_noise() -> None:
    noise = exponential_noise([7], [0], 8192 * 16, CPU)[0].view(-1, 2, 2048).transpose(0, 1).flatten(1)
    assert abs(np.corrcoef(noise.numpy())[0, 1]) < 4 / math.sqrt(noise.shape[1])


def test_noise_is_precise_where_it_is_least_and_bounded_where_it_is_greatest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of 10^5 numbers decides a draw: noise that came in steps of 2^-24 would show."""
    bits = torch.tensor([[0, 1, 2, 28_001, 2**31, 2**32 - 200, 2**32 - 1]])
    monkeypatch.setattr(noise_module, "random_bits", lambda *_: bits)
    got = exponential_noise([0], [0], 7, CPU)[0].tolist()
    want = [-math.log1p(-max(number, 0.5) / 2**32) for number in bits[0].tolist()]
    assert got[:5] == pytest.approx(want[:5], rel=3e-7)
    assert 16 < got[5] <= got[6] < 17


def test_each_bit_of_the_seed_changes_half_of_the_noise() -> None:
    base = random_bits([42], [3], 2000, CPU)
    for bit in range(64):
        changed = base ^ random_bits([42 ^ (1 << bit)], [3], 2000, CPU)
        flipped = sum(int(bits & _64).bit_count() for bits in changed[0].tolist()) / (32 * 2000)
        assert 0.49 < flipped < 0.51
