"""Engines whose sampler is the kernels, under Triton's interpreter: they answer as those whose sampler is torch do.

Step by step and overlapped, where the tokens of the step before are on the device alone; with prompts in chunks, slots
that change hands, and preemptions after which a request is told anew.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_kernels import logit_entries
from octavo_server.ipc import SamplingParams
from octavo_server.worker import next_tokens
from octavo_server.worker.device_sampler import DeviceSampler
from octavo_server.worker.sampling_slots import SamplingSlots
from real_engine import Answer, Asked, add, answers, start
from replayed import record_on_the_cpu
from tiny_models import SMALL, config_json, write_checkpoint

CPU, VOCAB = torch.device("cpu"), SMALL["vocab_size"]


@pytest.fixture(autouse=True)
def few_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row has more entries than a program takes at a time; `interpreted_sampling.py` has such rows."""
    monkeypatch.setattr(logit_entries, "_SPLITS", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "qwen2"
    write_checkpoint(directory, config_json("Qwen2ForCausalLM"))
    return directory


def requests() -> dict[str, Asked]:
    """All that looks at tokens before, with and without temperature, beside plain ones."""
    words = tuple((first, last) for first in range(VOCAB) for last in (3, 5))
    asked: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.5, "temperature": 0.0},
        {"frequency_penalty": 1.0, "presence_penalty": 0.5, "logprobs": 2},
        {"bad_words": (*words, (7,)), "min_tokens": 4, "top_k": 9},
        {"top_p": 0.7, "logit_bias": {11: 3.0}, "frequency_penalty": 0.3, "temperature": 0.3},
        {"temperature": 0.0, "presence_penalty": 2.0, "ignore_eos": True},
    ]
    return {
        f"request {index}": (
            [(17 * position + 3 * index) % VOCAB for position in range(5 + 2 * index)],
            SamplingParams(**{"seed": index, "max_tokens": 17 - 2 * index, "logprobs": 0, **setting}),
        )
        for index, setting in enumerate(asked)
    }


def run(model: Path, **config: Any) -> tuple[dict[str, Answer], int]:
    """The answers, and how often a request was preempted. Six requests take turns in three places."""
    core = start(model, max_num_seqs=3, **config)
    found, preemptions = answers(core, requests()), core.stats().preemptions
    core.close(1.0)
    return found, preemptions


def test_the_answers_are_those_of_the_twin_step_by_step_overlapped_and_preempted(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want, _ = run(model)
    drawn: list[int] = []

    def device_sampler(num_slots: int, vocab_size: int, eos: Any, device: torch.device) -> DeviceSampler:
        sampler = DeviceSampler(SamplingSlots(num_slots, vocab_size, eos, device), num_slots, vocab_size)
        launch = sampler.launch
        sampler.launch = lambda *args: (drawn.append(1), launch(*args))[1]  # type: ignore[method-assign]
        return sampler

    monkeypatch.setattr(next_tokens, "_device_sampler", device_sampler)
    tight = {"num_gpu_blocks_override": 6, "max_model_len": 40, "preemption_mode": "recompute"}
    for config in ({}, {"async_scheduling": True}, {"async_scheduling": True, **tight}):
        got, preemptions = run(model, max_num_batched_tokens=16, **config)
        for name, answer in want.items():
            assert [token for token, _ in got[name]] == [token for token, _ in answer], (name, config)
        assert (preemptions > 0) == ("preemption_mode" in config)
    assert drawn


def tokens_of(model: Path, **config: Any) -> dict[str, list[int]]:
    """Greedy and drawn requests that want tokens alone, and beside them, for a while, one that wants more."""
    core = start(model, max_num_seqs=4, max_num_batched_tokens=16, **config)
    for index in range(6):
        asked = {"penalties": 0.5} if index == 4 else {}
        sampling = SamplingParams(
            seed=index,
            temperature=0.8 * (index % 2),
            max_tokens=5 + 3 * index if index != 4 else 4,
            presence_penalty=asked.get("penalties", 0.0),
            ignore_eos=True,
        )
        add(
            core,
            f"request {index}",
            [(17 * position + 3 * index) % VOCAB for position in range(4 + 3 * index)],
            sampling,
        )
    found: dict[str, list[int]] = {}
    while core.has_work:
        for output in core.step():
            found.setdefault(output.request_id, []).extend(output.token_ids)
    core.close(1.0)
    return found


@pytest.mark.parametrize("overlap", [False, True])
def test_tokens_drawn_in_the_graph_of_their_step_are_those_of_the_twin(
    model: Path, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    want = tokens_of(model)
    drawn, launched = list[int](), list[int]()

    def device_sampler(num_slots: int, vocab_size: int, eos: Any, device: torch.device) -> DeviceSampler:
        sampler = DeviceSampler(SamplingSlots(num_slots, vocab_size, eos, device), num_slots, vocab_size)
        draw_plain, launch = sampler.draw_plain, sampler.launch

        def plain(logits: torch.Tensor, slot: torch.Tensor, *rest: torch.Tensor) -> None:
            drawn.append(int((slot >= 0).sum()))
            draw_plain(logits, slot, *rest)

        sampler.draw_plain = plain  # type: ignore[method-assign]
        sampler.launch = lambda *args: (launched.append(1), launch(*args))[1]  # type: ignore[method-assign]
        return sampler

    recorder = record_on_the_cpu(monkeypatch)
    monkeypatch.setattr(next_tokens, "_device_sampler", device_sampler)
    assert tokens_of(model, async_scheduling=overlap) == want
    assert recorder.replayed > 10 and max(drawn) == 4
    assert 0 < len(launched) < recorder.replayed  # beside the one with penalties, behind the graph
    assert drawn.count(0) >= len(launched)
