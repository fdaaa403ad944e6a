"""The kernel that keeps logits to a grammar, under the interpreter: against its twin, and that against numpy."""

import numpy as np
import pytest
import torch

from octavo_kernels import reference
from octavo_kernels.token_mask import apply_token_mask
from octavo_server.ipc import SamplingParams
from octavo_server.worker.grammar import RowMasks
from sampling_pair import SamplingPair

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")


def case(rows: int, vocab: int, words: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(rows, vocab, generator=generator)
    masks = torch.randint(-(2**31), 2**31, (rows, words), generator=generator).to(torch.int32)
    return logits, masks, torch.arange(rows, dtype=torch.int32) % 2


@pytest.mark.parametrize(("rows", "vocab", "words"), [(1, 31, 1), (3, 2048, 64), (5, 4999, 157), (2, 4999, 160)])
def test_only_allowed_tokens_keep_a_logit(rows: int, vocab: int, words: int) -> None:
    logits, masks, forced = case(rows, vocab, words)
    bits = (masks.numpy()[:, np.arange(vocab) // 32] >> (np.arange(vocab) % 32)) & 1
    want = np.where(bits == 1, np.where(forced.numpy()[:, None] == 1, 0.0, logits.numpy()), -np.inf)
    for mask in (apply_token_mask, reference.apply_token_mask):
        got = logits.clone()
        mask(got, masks, forced)
        np.testing.assert_array_equal(got.numpy(), want)


def test_strides_are_those_of_the_tensors() -> None:
    logits, masks, forced = case(4, 1000, 40)
    wide = torch.full((4, 1200), 7.0)
    wide[:, 100:1100] = logits
    apply_token_mask(wide[:, 100:1100], masks[:, :32], forced)
    reference.apply_token_mask(logits, masks[:, :32], forced)
    assert torch.equal(wide[:, 100:1100], logits)
    assert (wide[:, :100] == 7.0).all() and (wide[:, 1100:] == 7.0).all()


def test_masked_rows_are_drawn_as_the_twin_draws_them_and_their_log_probabilities_are_untouched() -> None:
    """With bias, bad words and min_tokens: forced rows, which only may end, end whatever excludes that."""
    eos, vocab = 9, 700
    params = [
        SamplingParams(temperature=temperature, seed=seed, grammar="g", logprobs=3, **setting)  # type: ignore[arg-type]
        for seed, (temperature, setting) in enumerate(
            (temperature, setting)
            for temperature in (0.0, 1.0)
            for setting in (
                {},
                {"logit_bias": {5: 50.0, 9: -100.0}, "bad_words": ((9,),)},
                {"min_tokens": 40, "top_k": 3},
                {"presence_penalty": 1.0, "top_p": 0.5},
            )
        )
    ]
    pair = SamplingPair(params, [[1, 2]] * len(params), 1, vocab, CPU, eos=(eos,))
    logits, masks, _ = case(len(params), vocab, 22)
    forced = torch.arange(len(params), dtype=torch.int32) // 2 % 2
    masks[forced == 1] = 0
    masks[forced == 1, eos // 32] = 1 << eos % 32
    got, want = pair.step(logits, masks=RowMasks(masks.numpy(), forced.numpy()))
    assert [one.token_id for one in got] == [one.token_id for one in want]
    assert [one.token_id == eos for one in got] == [bool(one) for one in forced]
    log_softmax = logits.log_softmax(dim=-1)
    for row, one in enumerate(got):
        assert one.logprobs is not None and one.token_id is not None
        assert one.logprobs.token_ids[1] == int(logits[row].argmax())
        np.testing.assert_allclose(one.logprobs.logprobs[0], log_softmax[row, one.token_id], atol=1e-4)
