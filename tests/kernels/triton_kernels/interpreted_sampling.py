"""The sampling kernels under Triton's interpreter, against their twin in torch: token by token and bit by bit of noise.

What the twin does is held against numpy, transformers and χ² in `tests/server/test_sampler.py`.
"""

import itertools
import math
import random

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from octavo_kernels import logit_entries
from octavo_kernels.logprobs import logprobs
from octavo_kernels.sampling_noise import position_key, words
from octavo_server.ipc import SamplingParams
from octavo_server.worker.logprobs import launch_logprobs
from octavo_server.worker.noise import choice_seed, random_bits, stream_of
from octavo_server.worker.sampler import Sampled
from sampling_pair import SamplingPair

CPU = torch.device("cpu")
# numpy, which the interpreter computes with, warns of arithmetic on infinities and NaN: here they are meant to be.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")


@pytest.fixture(autouse=True)
def few_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of up to two blocks of entries, a program each: the other six of a row would find nothing to do."""
    monkeypatch.setattr(logit_entries, "_SPLITS", 2)


def logits_of(rows: int, vocab: int, seed: int, ties: bool = False) -> torch.Tensor:
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3
    return (logits * 2).round() / 2 if ties else logits


def assert_same(got: list[Sampled], want: list[Sampled]) -> None:
    assert [one.token_id for one in got] == [one.token_id for one in want]
    for one, other in zip(got, want, strict=True):
        assert (one.logprobs is None) == (other.logprobs is None)
        if one.logprobs is not None and other.logprobs is not None:
            assert (one.logprobs.token_ids, one.logprobs.rank) == (other.logprobs.token_ids, other.logprobs.rank)
            np.testing.assert_allclose(one.logprobs.logprobs, other.logprobs.logprobs, atol=1e-5)


@triton.jit
def _bits_kernel(table_ptr, high_ptr, low_ptr, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    key = position_key(tl.load(table_ptr), tl.load(table_ptr + 1))
    index = tl.arange(0, COUNT)
    high, low = words(key, index)
    tl.store(high_ptr + index, high.to(tl.int64))
    tl.store(low_ptr + index, low.to(tl.int64))


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_the_noise_has_the_same_bits(seed: int) -> None:
    for choice, position in ((0, 0), (3, 70_000)):
        table = torch.tensor([stream_of(seed, choice), position])
        high, low = torch.zeros(2, 2048, dtype=torch.int64)
        _bits_kernel[(1,)](table, high, low, COUNT=2048)
        assert torch.equal(torch.cat([high, low]), random_bits([choice_seed(seed, choice)], [position], 4096, CPU)[0])


SETTINGS = [
    dict(zip(("top_k", "top_p", "min_p"), values, strict=True))
    for values in itertools.product((0, 1, 20, 64, 65, 700, 10**6), (1.0, 0.9, 0.3, 1e-6), (0.0, 0.05))
]


@pytest.mark.parametrize(("vocab", "ties", "every"), [(1003, True, 1), (4097, False, 3), (37, True, 4)])
def test_tokens_are_those_that_sorting_gives(vocab: int, ties: bool, every: int) -> None:
    params = [
        SamplingParams((0.4, 1.0, 2.0)[n % 3], seed=n, **setting)  # type: ignore[arg-type]
        for n, setting in enumerate(SETTINGS[::every])
    ]
    params[7:9] = [SamplingParams(temperature=0.0, seed=9), SamplingParams(temperature=0.0, top_k=5, top_p=0.5)]
    pair = SamplingPair(params, [[1, 2]] * len(params), 1, vocab, CPU)
    assert_same(*pair.step(logits_of(len(params), vocab, 1, ties)))


def test_tokens_follow_the_distribution() -> None:
    """χ² of 200 draws over tokens of both halves of two blocks."""
    logits, draws = torch.full((1, 4200), -math.inf), 200
    tokens = [3, 2047, 2048, 4095, 4096, 4199]
    logits[0, tokens] = torch.linspace(-1, 1, 6)
    params = [SamplingParams(temperature=0.8, seed=seed) for seed in range(draws)]
    got, want = SamplingPair(params, [[1]] * draws, 1, 4200, CPU).step(logits.expand(draws, -1))
    assert_same(got, want)
    seen = np.array([sum(one.token_id == token for one in got) for token in tokens])
    expected = draws * (logits[0, tokens].double() / 0.8).softmax(0).numpy()
    assert seen.sum() == draws
    assert ((seen - expected) ** 2 / expected).sum() < 5 + 4 * math.sqrt(2 * 5)


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
def test_a_row_without_a_distribution_fails_alone(bad: float) -> None:
    settings = [{}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.5}, {"logprobs": 2}]
    params = [SamplingParams(seed=n, **setting) for n, setting in enumerate(settings * 2)]  # type: ignore[arg-type]
    logits = logits_of(10, 5000, 1)
    logits[:5, 4500] = bad
    got, want = SamplingPair(params, [[1]] * 10, 1, 5000, CPU).step(logits)
    assert [one.token_id for one in got[:5]] == [None] * 5
    assert_same(got[5:], want[5:])


def test_excluded_tokens_are_never_drawn_and_a_row_of_which_all_is_excluded_fails_alone() -> None:
    settings = [{}, {"top_k": 5}, {"top_k": 100}, {"top_p": 0.999999}, {"min_p": 1e-30}, {"temperature": 0.0}]
    params = [SamplingParams(seed=n, **setting) for n, setting in enumerate(settings * 2)]  # type: ignore[arg-type]
    logits = torch.full((12, 4200), -math.inf)
    logits[:6, [7, 4100]] = 1.0
    got, _ = SamplingPair(params, [[1]] * 12, 1, 4200, CPU).step(logits)
    assert {one.token_id for one in got[:6]} <= {7, 4100}
    assert [one.token_id for one in got[6:]] == [None] * 6


def any_params(draw: random.Random, vocab: int) -> SamplingParams:
    """Of all that a request can ask for, about half."""

    def some(value: object, otherwise: object) -> object:
        return value if draw.random() < 0.5 else otherwise

    tokens = [draw.randrange(vocab) for _ in range(8)]
    return SamplingParams(
        temperature=draw.choice([0.0, 0.8]),
        top_p=some(0.9, 1.0),  # type: ignore[arg-type]
        top_k=draw.choice([0, 0, 5, 80]),
        min_p=some(0.01, 0.0),  # type: ignore[arg-type]
        seed=draw.randrange(2**63),
        choice=draw.randrange(3),
        repetition_penalty=some(1.3, 1.0),  # type: ignore[arg-type]
        presence_penalty=some(-1.5, 0.0),  # type: ignore[arg-type]
        frequency_penalty=some(0.7, 0.0),  # type: ignore[arg-type]
        logit_bias=some({tokens[0]: 5.0, tokens[1]: -100.0}, None),  # type: ignore[arg-type]
        bad_words=some((*((a, b) for a in range(0, vocab, 2) for b in (1, 3)), (4,), (5, 6, 7)), ()),  # type: ignore[arg-type]
        min_tokens=draw.choice([0, 4]),
        stop_token_ids=(tokens[2], 2),
        logprobs=draw.choice([None, 0, 3]),
    )


@pytest.mark.parametrize("seed", range(3))
def test_penalties_bias_and_exclusions_follow_the_answer_without_the_host(seed: int) -> None:
    """Steps of changing company; no vocabulary is so small that tokens would not come again."""
    draw, vocab, count = random.Random(seed), 24, 16
    params = [any_params(draw, vocab) for _ in range(count)]
    known = [[draw.randrange(vocab) for _ in range(4 + index % 5)] for index in range(count)]
    pair = SamplingPair(params, known, 4, vocab, CPU, eos=(2, 9, 500))
    for step in range(5):
        which = sorted(draw.sample(range(count), 11))
        assert_same(*pair.step(logits_of(11, vocab, 100 * seed + step), which))


@pytest.mark.parametrize("splits", [2, 8])
def test_many_distinct_tokens_are_counted(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More entries than a program takes at a time, and a vocabulary that the answer fills up: of three blocks of
    entries, the first program of two takes two; of eight programs, five take none."""
    monkeypatch.setattr(logit_entries, "_SPLITS", splits)
    draw, vocab = random.Random(1), 1300
    params = [SamplingParams(seed=n, repetition_penalty=1.5, frequency_penalty=0.5, logprobs=n % 2) for n in range(2)]
    known = [[draw.randrange(vocab) for _ in range(length)] for length in (3000, 40)]
    pair = SamplingPair(params, known, 20, vocab, CPU)
    for step in range(3):
        assert_same(*pair.step(logits_of(2, vocab, step) / 10))


def test_a_request_that_comes_back_goes_on_where_it_was() -> None:
    """After a preemption its answer is told anew: nothing may be left of the slot's last owner, or of its own past."""
    params = [SamplingParams(seed=1, frequency_penalty=1.0, bad_words=((1, 2), (3,))), SamplingParams(seed=2, top_k=3)]
    pair = SamplingPair(params, [[1, 2, 3, 1], [4, 5, 6]], 2, 12, CPU)
    for step in range(3):
        assert_same(*pair.step(logits_of(2, 12, step)))
    pair.states[0].slot, pair.states[1].slot = pair.states[1].slot, pair.states[0].slot
    pair.slots.apply(pair.slots.changes(pair.states, [state.request_id for state in pair.states]))
    for step in range(3):
        assert_same(*pair.step(logits_of(2, 12, 9 + step)))


def test_rows_that_are_nobodys_change_nothing() -> None:
    pair = SamplingPair([SamplingParams(seed=4, presence_penalty=1.0)] * 2, [[1], [2]], 1, 50, CPU)
    table, logits = pair.slots.table.clone(), logits_of(3, 50, 1)
    before = logits.clone()
    pair.sampler.launch(logits, torch.tensor([-1, -1]), pair.rows([0, 1]), pair.last)
    assert torch.equal(pair.slots.table, table) and torch.equal(logits, before) and bool((pair.last == -7).all())


def test_logprobs_of_any_rows() -> None:
    for vocab, count in ((1003, 20), (4100, 3), (3, 3), (300, 0)):
        logits = logits_of(5, vocab, vocab, ties=True)
        logits[2, :2] = torch.tensor([0.0, -0.0])
        tokens, rows = torch.tensor([0, 1, 2, 1, 0], dtype=torch.int32), torch.tensor([4, 0, 2])
        ids, values, ranks = logprobs(logits, tokens, rows, count)
        want = launch_logprobs(logits, tokens, [count] * 3, rows)
        assert torch.equal(ids, want.ids) and torch.equal(ranks, want.ranks)
        torch.testing.assert_close(values, want.values, atol=1e-5, rtol=1e-5)
