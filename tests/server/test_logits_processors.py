"""What changes logits before they are sampled from, against transformers' processors and numpy in float64."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from octavo_server.ipc import SamplingParams
from octavo_server.worker import logprobs as logprobs_module
from octavo_server.worker.logits_processors import History, LogitsProcessors, SamplingRow, needs_history
from octavo_server.worker.sampler import Sampler, processed_logits

VOCAB = 40
EOS = (7, 9, 500)  # one is beyond the vocabulary, as files of models have it


def row(params: SamplingParams, tokens: Sequence[int], num_prompt: int) -> SamplingRow:
    """A row whose sequence has these tokens; the history sees a buffer with room for more, as the worker's has."""
    buffer = np.full(len(tokens) + 5, VOCAB - 1, dtype=np.int64)
    buffer[: len(tokens)] = tokens
    history = History(buffer, num_prompt) if needs_history(params) else None
    return SamplingRow(params, len(tokens), num_prompt, history)


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def applied(params: SamplingParams, tokens: Sequence[int], num_prompt: int, logits: torch.Tensor) -> torch.Tensor:
    changed = logits.clone()
    LogitsProcessors(EOS).apply(changed, [row(params, tokens, num_prompt)])
    return changed


tokens_strategy = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=60)


@settings(deadline=None, max_examples=60)
@given(tokens=tokens_strategy, prompt=st.integers(0, 60), seed=st.integers(0, 999), data=st.data())
def test_each_parameter_does_what_transformers_processor_does(
    tokens: list[int], prompt: int, seed: int, data: st.DataObject
) -> None:
    num_prompt = min(prompt, len(tokens))
    logits, ids = logits_of(1, seed), torch.tensor([tokens])
    penalty = data.draw(st.floats(0.1, 5.0))
    bias = data.draw(st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), min_size=1, max_size=5))
    # transformers looks for bad words in the prompt too: it gets the answer alone
    words = data.draw(st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3), min_size=1, max_size=6))
    words += [[*tokens[-1:], 3], [*tokens[-2:], 4]]
    answer = torch.tensor([tokens[num_prompt:]], dtype=torch.int64)
    least = data.draw(st.integers(0, 60))
    cases: list[tuple[SamplingParams, torch.Tensor, LogitsProcessor]] = [
        (SamplingParams(repetition_penalty=penalty), ids, RepetitionPenaltyLogitsProcessor(penalty)),
        (
            SamplingParams(logit_bias=bias),
            ids,
            SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()}),
        ),
        (SamplingParams(bad_words=tuple(map(tuple, words))), answer, NoBadWordsLogitsProcessor(words)),
        (
            SamplingParams(min_tokens=least, stop_token_ids=(2, 7)),
            ids,
            MinNewTokensLengthLogitsProcessor(num_prompt, least, [2, 7, 9]),
        ),
    ]
    for params, seen, processor in cases:
        want = processor(seen, logits.clone())  # type: ignore[arg-type]
        torch.testing.assert_close(applied(params, tokens, num_prompt, logits), want)


@pytest.mark.parametrize(
    ("params", "warper"),
    [
        (SamplingParams(temperature=0.3), TemperatureLogitsWarper(0.3)),
        (SamplingParams(top_k=7), TopKLogitsWarper(7)),
        (SamplingParams(top_p=0.7), TopPLogitsWarper(0.7)),
        (SamplingParams(min_p=0.05), MinPLogitsWarper(0.05)),
    ],
)
def test_what_is_left_to_sample_from_is_what_transformers_leaves(params: SamplingParams, warper: Any) -> None:
    logits = logits_of(50, seed=3)
    want = warper(torch.zeros(50, 1, dtype=torch.int64), logits.clone()).softmax(-1)
    got = processed_logits(logits, logits.amax(-1, keepdim=True), [params] * 50).softmax(-1)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    if params.temperature == 1.0:
        assert (want == 0).any(), "nothing was cut"


def exact(params: SamplingParams, tokens: list[int], num_prompt: int, logits: torch.Tensor) -> np.ndarray:
    """All of them in float64, in the order that the module's docstring promises."""
    changed = logits[0].numpy().astype(np.float64)
    answer = tokens[num_prompt:]
    for word in params.bad_words:
        before = list(word[:-1])
        if len(answer) >= len(before) and answer[len(answer) - len(before) :] == before:
            changed[word[-1]] = -math.inf
    if len(answer) < params.min_tokens:
        changed[[*params.stop_token_ids, 7, 9]] = -math.inf
    for token, bias in (params.logit_bias or {}).items():
        changed[token] += bias
    for token in set(tokens):
        factor = params.repetition_penalty
        changed[token] = changed[token] / factor if changed[token] > 0 else changed[token] * factor
    for token, count in Counter(answer).items():
        changed[token] -= params.frequency_penalty * count + params.presence_penalty
    return changed


everything = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.3]),
    presence_penalty=st.sampled_from([0.0, -1.5, 2.0]),
    frequency_penalty=st.sampled_from([0.0, -0.3, 0.7]),
    logit_bias=st.sampled_from([None, {3: 5.0, 11: -100.0}]),
    bad_words=st.sampled_from([(), ((4,), (5, 6)), ((1, 2, 3), (8,))]),
    min_tokens=st.sampled_from([0, 10, 100]),
    stop_token_ids=st.sampled_from([(), (3, 12)]),
    logprobs=st.sampled_from([None, 2]),
    seed=st.integers(0, 2**63 - 1),
    choice=st.integers(0, 3),
)


@settings(deadline=None, max_examples=150)
@given(params=everything, tokens=tokens_strategy, prompt=st.integers(0, 60), seed=st.integers(0, 999))
def test_all_together_are_applied_in_the_order_that_is_documented(
    params: SamplingParams, tokens: list[int], prompt: int, seed: int
) -> None:
    num_prompt, logits = min(prompt, len(tokens)), logits_of(1, seed)
    got = applied(params, tokens, num_prompt, logits)[0].numpy()
    np.testing.assert_allclose(got, exact(params, tokens, num_prompt, logits), atol=1e-4, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.tuples(everything, tokens_strategy, st.integers(0, 60)), min_size=2, max_size=12),
    seed=st.integers(0, 999),
)
def test_a_row_gives_the_same_bits_alone_in_any_company_and_in_chunks(
    rows: list[tuple[SamplingParams, list[int], int]], seed: int
) -> None:
    logits, sampler = logits_of(len(rows), seed), Sampler(EOS)
    made = [row(params, tokens, min(prompt, len(tokens))) for params, tokens, prompt in rows]
    together = sampler.sample(logits, made)
    assert [sampler.sample(logits[index : index + 1], [one])[0] for index, one in enumerate(made)] == together
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs_module, "CHUNK_BYTES", 3 * 8 * VOCAB)
        assert sampler.sample(logits, made) == together


@settings(deadline=None, max_examples=40)
@given(tokens=tokens_strategy, prompt=st.integers(0, 60), steps=st.sets(st.integers(1, 60)))
def test_a_history_that_grew_is_one_that_was_counted_at_once(tokens: list[int], prompt: int, steps: set[int]) -> None:
    num_prompt = min(prompt, len(tokens))
    buffer = np.full(200, -1, dtype=np.int64)
    buffer[:num_prompt] = tokens[:num_prompt]
    grown = History(buffer, num_prompt)
    for length in sorted({*steps, len(tokens)}):
        if num_prompt <= length <= len(tokens):
            buffer[:length] = tokens[:length]
            ids, counts = grown.count(length)
            answer = Counter(tokens[num_prompt:length])
            assert sorted(ids.tolist()) == sorted(set(tokens[:length]))
            assert counts.tolist() == [answer[token] for token in ids.tolist()]


def test_many_distinct_tokens_are_counted(random_tokens: int = 5000) -> None:
    tokens = np.random.default_rng(1).integers(0, 100_000, random_tokens)
    ids, counts = History(tokens, 10).count(len(tokens))
    want = Counter(tokens[10:].tolist())
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == {t: want[t] for t in tokens.tolist()}


def test_rows_without_such_a_parameter_are_left_alone_and_need_no_history() -> None:
    logits = logits_of(2)
    changed = logits.clone()
    penalized = SamplingParams(presence_penalty=2.0)
    LogitsProcessors(EOS).apply(changed, [row(SamplingParams(), [1, 2], 1), row(penalized, [1, 2], 1)])
    assert torch.equal(changed[0], logits[0]) and not torch.equal(changed[1], logits[1])
    plain = SamplingParams(logit_bias={1: 2.0}, bad_words=((3,),), min_tokens=4)
    assert not needs_history(plain) and needs_history(penalized)
    assert needs_history(SamplingParams(bad_words=((3, 4),)))
    assert needs_history(SamplingParams(repetition_penalty=0.9)) and needs_history(SamplingParams(frequency_penalty=-1))


def test_logprobs_stay_those_of_the_untouched_logits() -> None:
    logits = logits_of(1)
    best = int(logits[0].argmax())
    params = SamplingParams(temperature=0.0, bad_words=((best,),), logprobs=1)
    (sampled,) = Sampler().sample(logits, [row(params, [1], 1)])
    assert sampled.logprobs is not None
    assert sampled.token_id == sampled.logprobs.token_ids[0] != best
    assert sampled.logprobs.token_ids[1] == best and sampled.logprobs.rank == 2
    want = logits[0].double().log_softmax(-1)[sampled.logprobs.token_ids]
    np.testing.assert_allclose(sampled.logprobs.logprobs, want.numpy(), atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_which_all_is_excluded_fails_alone(temperature: float) -> None:
    logits = logits_of(2)
    nothing = SamplingParams(temperature=temperature, bad_words=tuple((token,) for token in range(VOCAB)))
    fine = SamplingParams(temperature=temperature, bad_words=((1,),))
    first, second = Sampler().sample(logits, [row(nothing, [1], 1), row(fine, [1], 1)])
    assert first.token_id is None and second.token_id is not None


def test_draws_follow_the_changed_distribution() -> None:
    """χ² over 20,000 draws of fixed seeds, each a row of its own, three of them choices of one seed."""
    logits, draws, tokens = logits_of(1, seed=8) / 2, 20_000, [1, 2, 3, 2, 2]
    changes: dict[str, Any] = {
        "repetition_penalty": 1.4,
        "frequency_penalty": 0.5,
        "logit_bias": {5: 2.0, 1: 3.0},
        "bad_words": ((8,), (2, 9)),
        "min_tokens": 6,
    }
    rows = [row(SamplingParams(**changes, seed=draw // 3, choice=draw % 3), tokens, 1) for draw in range(draws)]
    counts = Counter(found.token_id for found in Sampler(EOS).sample(logits.expand(draws, -1), rows))
    changed = exact(SamplingParams(**changes), tokens, 1, logits)
    want = np.exp(changed - changed.max()) / np.exp(changed - changed.max()).sum()
    assert not {7, 8, 9} & set(counts)
    used = [(counts[token], p * draws) for token, p in enumerate(want) if p * draws >= 5]
    chi = sum((seen - expected) ** 2 / expected for seen, expected in used)
    assert chi < len(used) - 1 + 4 * math.sqrt(2 * (len(used) - 1))
