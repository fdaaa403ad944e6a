"""What the engine is asked for: the request's parameters, the model's defaults where it is silent."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from octavo_common.generation_config import GenerationDefaults, read_generation_defaults
from octavo_server.errors import RequestError
from octavo_server.frontend.model import SamplingDefaults, sampling_defaults
from octavo_server.frontend.openai import CompletionRequest
from octavo_server.frontend.sampling import Asked, answer_length, sampling_params
from octavo_server.ipc import SamplingParams


def params(defaults: SamplingDefaults = SamplingDefaults(), **fields: Any) -> SamplingParams:  # noqa: B008 (frozen)
    request = CompletionRequest(model="m", prompt="p", **fields)
    return sampling_params(request, defaults, Asked(max_tokens=9, drawn_seed=77))


def test_a_silent_request_gets_the_models_defaults() -> None:
    made = params(SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1))
    assert (made.temperature, made.top_p, made.top_k, made.min_p) == (0.6, 0.9, 20, 0.1)
    assert made.repetition_penalty == 1.1
    assert (made.seed, made.max_tokens) == (77, 9)
    assert params() == SamplingParams(seed=77, max_tokens=9)


def test_what_the_request_says_counts_even_if_it_is_zero() -> None:
    defaults = SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1)
    made = params(defaults, temperature=0, top_p=1, top_k=0, min_p=0, seed=0, repetition_penalty=1)
    assert (made.temperature, made.top_p, made.top_k, made.min_p, made.seed) == (0, 1, 0, 0, 0)
    assert made.repetition_penalty == 1


def test_spellings_of_other_servers_mean_the_same() -> None:
    assert params(top_k=-1).top_k == 0
    assert params(top_p=0, temperature=1.5).temperature == 0  # nothing but the likeliest token is left
    assert 0 <= params(seed=-5).seed < 2**63
    assert params(seed=-5) != params(seed=-6)


def test_the_prompts_logprobs_are_computed_only_for_an_echo() -> None:
    assert params(logprobs=3).prompt_logprobs is None
    assert params(logprobs=3, echo=True).prompt_logprobs == 3
    assert params(echo=True).prompt_logprobs is None


def test_defaults_out_of_range_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published = {"temperature": 0.7, "top_p": 1.5, "repetition_penalty": 0.0, "eos_token_id": [1, 2]}
    (tmp_path / "generation_config.json").write_text(json.dumps(published))
    with caplog.at_level(logging.WARNING):
        made = sampling_defaults(read_generation_defaults(tmp_path))
    assert made == SamplingDefaults(temperature=0.7)
    assert "top_p" in caplog.text
    assert "repetition_penalty" in caplog.text
    caplog.clear()
    honoured = sampling_defaults(GenerationDefaults(repetition_penalty=1.05))
    assert honoured == SamplingDefaults(repetition_penalty=1.05)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("asked", "prompt", "length"),
    [(None, 1, 99), (None, 99, 1), (10, 90, 10), (0, 99, 0), (0, 100, 0), (1, 99, 1)],
)
def test_an_answer_is_as_long_as_asked_or_as_fits(asked: int | None, prompt: int, length: int) -> None:
    assert answer_length(asked, prompt_tokens=prompt, max_model_len=100, param="prompt") == length


@pytest.mark.parametrize(("asked", "prompt"), [(None, 100), (11, 90), (0, 101), (1, 100), (1, 5000)])
def test_what_does_not_fit_is_refused_with_the_lengths(asked: int | None, prompt: int) -> None:
    with pytest.raises(RequestError, match=f"100 tokens.*{prompt} tokens") as caught:
        answer_length(asked, prompt_tokens=prompt, max_model_len=100, param="prompt")
    assert caught.value.code == "context_length_exceeded"
