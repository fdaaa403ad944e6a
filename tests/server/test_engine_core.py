"""Scheduler, runner, sampler and a real, tiny model together."""

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers

from octavo_server.engine import core as core_module
from octavo_server.engine.core import EngineCore
from octavo_server.errors import ConfigError, ModelError
from octavo_server.ipc import AddRequest, RequestOutput, SamplingParams, TokenLogprobs
from octavo_server.page_hash import hash_pages
from octavo_server.worker import logprobs
from octavo_server.worker.logits_processors import SamplingRow
from octavo_server.worker.sampler import Sampler
from real_engine import poison_free_pages, start
from tiny_models import MODEL_TYPES, config_json, reference_logits, write_checkpoint

NO_END = {"bos_token_id": None, "eos_token_id": None}  # said as null: left out, it is 2


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_checkpoint(folder, {**config_json("LlamaForCausalLM", num_hidden_layers=2), **NO_END})
    return folder


def prompt(length: int, salt: int = 0) -> list[int]:
    return [(13 * index * index + 7 * salt + 1) % 131 for index in range(length)]


def run(core: EngineCore, requests: dict[str, tuple[list[int], SamplingParams]]) -> dict[str, list[RequestOutput]]:
    """Runs all to their end; a page that is still held then is an error."""
    for name, (tokens, sampling) in requests.items():
        hashes = hash_pages(tokens, core.scheduler.kv_cache.block_size, b"")
        assert core.add(AddRequest(1, name, tokens, sampling, 0.0, hashes)) == []
    results: dict[str, list[RequestOutput]] = {name: [] for name in requests}
    while core.has_work:
        for output in core.step():
            results[output.request_id].append(output)
    assert core.stats().kv_blocks_used == 0
    return results


def generate(model: Any, tokens: list[int], count: int) -> list[int]:
    """What transformers' own `generate` answers, greedily."""
    ids = torch.tensor([tokens])
    everything = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=everything, max_new_tokens=count, do_sample=False, pad_token_id=0)
    answer: list[int] = out[0, len(tokens) :].tolist()
    return answer


@pytest.mark.parametrize(
    ("changes", "theirs"),
    [
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"bad_words": "some"}, {"bad_words_ids": "some"}),
        (
            {"repetition_penalty": 1.1, "logit_bias": {17: 1.5}},
            {"repetition_penalty": 1.1, "sequence_bias": {(17,): 1.5}},
        ),
        ({"min_tokens": 25}, {"min_new_tokens": 25}),
    ],
)
def test_greedy_text_with_penalties_is_that_of_transformers(
    tmp_path: Path, llama: Path, changes: dict[str, Any], theirs: dict[str, Any]
) -> None:
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    undisturbed = generate(plain, prompt(9), 40)
    if "bad_words" in changes:  # the first token of the answer, a pair of it, and one that is not in it
        words = [undisturbed[:1], undisturbed[3:5], [130, 129]]
        changes, theirs = {"bad_words": tuple(map(tuple, words))}, {"bad_words_ids": words}
    # An end that the answer would come to soon: only `min_tokens` puts it off.
    eos = undisturbed[2] if "min_tokens" in changes else None
    config = config_json("LlamaForCausalLM", num_hidden_layers=2)
    model = write_checkpoint(tmp_path, {**config, **NO_END, "eos_token_id": eos})
    ids = torch.tensor([prompt(9)])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0, **theirs
    )
    want = out[0, 9:].tolist()
    assert want != undisturbed[: len(want)], "the parameter changed nothing: it tests nothing"
    sampling = SamplingParams(temperature=0.0, max_tokens=40, **changes)
    requests = {"a": (prompt(9), sampling), "plain": (prompt(9), SamplingParams(max_tokens=40))}
    for overlap in (False, True):  # with it a step is launched before the tokens that it penalizes are known
        assert tokens_of(run(start(tmp_path, async_scheduling=overlap), requests)["a"]) == want


def tokens_of(outputs: list[RequestOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


@pytest.mark.parametrize("architecture", sorted(MODEL_TYPES))
def test_greedy_text_is_that_of_transformers_for_a_hundred_tokens_alone_and_batched(
    architecture: str, tmp_path: Path
) -> None:
    window = {"sliding_window": 24} if architecture == "MistralForCausalLM" else {}
    model = write_checkpoint(tmp_path, {**config_json(architecture), **NO_END, **window})
    prompts = {f"r{length}": prompt(length, length) for length in (1, 8, 33)}
    core = start(tmp_path, max_num_batched_tokens=24)
    sampling = SamplingParams(temperature=0.0, max_tokens=100)
    together = run(core, {name: (tokens, sampling) for name, tokens in prompts.items()})
    answers = {name: tokens_of(outputs) for name, outputs in together.items()}
    for name, found in answers.items():
        assert len(found) == 100 and len(set(found)) > 10, "a model that says nothing tests nothing"
        # Each token must be the likeliest after those before it. That these are the same follows by induction.
        likeliest = reference_logits(model, prompts[name] + found[:-1])[len(prompts[name]) - 1 :].argmax(-1)
        assert found == likeliest.tolist(), name
    alone = run(core, {"r33": (prompts["r33"], sampling)})
    assert tokens_of(alone["r33"]) == answers["r33"]


@pytest.fixture(scope="module")
def undisturbed(llama: Path) -> dict[str, list[RequestOutput]]:
    """The answers to `crowd()` without pressure."""
    core = start(llama, max_num_batched_tokens=512, enable_prefix_caching=False)
    results = run(core, crowd())
    assert core.stats().preemptions == 0
    return results


def crowd() -> dict[str, tuple[list[int], SamplingParams]]:
    """Prompts of which some begin alike; greedy and drawn, with all that is told besides."""
    return {
        f"r{index}": (
            prompt(12, index % 4)[: 3 + index % 11] + prompt(8, index),
            SamplingParams(
                temperature=float(index % 3) / 2,
                seed=index,
                max_tokens=24,
                logprobs=2,
                prompt_logprobs=1 if index % 2 else None,
                repetition_penalty=1.2 if index % 5 == 0 else 1.0,
            ),
        )
        for index in range(64)
    }


@pytest.mark.parametrize(
    ("mode", "overlap"),
    [("swap", False), ("recompute", False), ("swap", True), ("recompute", True), ("auto", True)],
    ids=lambda value: value if isinstance(value, str) else "overlap" if value else "step by step",
)
def test_64_requests_in_a_pool_for_8_are_preempted_and_answer_bit_for_bit_as_without_pressure(
    llama: Path, undisturbed: dict[str, list[RequestOutput]], mode: str, overlap: bool
) -> None:
    tight = start(
        llama,
        max_model_len=48,
        num_gpu_blocks_override=8 * 6,
        max_num_batched_tokens=32,
        preemption_mode=mode,
        swap_space=0.001,
        async_scheduling=overlap,
    )
    if not overlap:
        poison_free_pages(tight)
    pressed = run(tight, crowd())
    stats = tight.stats()
    assert stats.preemptions > 0 and stats.prefix_hits > 0 and stats.swapped_in > 0
    assert mode == "auto" or (stats.preemptions_by_swap > 0) == (mode == "swap")
    assert {name: _answers(outputs) for name, outputs in pressed.items()} == {
        name: _answers(outputs) for name, outputs in undisturbed.items()
    }
    assert all(len(tokens_of(outputs)) == 24 for outputs in pressed.values())
    assert sum(outputs[-1].num_preemptions for outputs in pressed.values()) == tight.stats().preemptions > 0
    tight.close(10.0)


def _answers(outputs: list[RequestOutput]) -> list[RequestOutput]:
    """Without what differs by time and neighbours: when it began, what was cached, how often it gave way."""
    same = {"num_cached_tokens": 0, "num_external_tokens": 0, "first_scheduled": None, "num_preemptions": 0}
    return [msgspec.structs.replace(output, **same) for output in outputs]


def test_the_first_result_says_when_it_began_and_where_its_prefix_was_found(llama: Path) -> None:
    core = start(llama, num_gpu_blocks_override=16, max_model_len=120, swap_space=0.01)
    sampling = SamplingParams(temperature=0.0, max_tokens=3)
    begun = time.monotonic()
    for name, salt in (("cold", 0), ("other", 1), ("from host memory", 0), ("on the device", 0)):
        first, *others = run(core, {name: (prompt(100, salt), sampling)})[name]
        assert first.first_scheduled is not None
        assert begun < first.first_scheduled < time.monotonic()
        assert all(output.first_scheduled is None for output in others)
        found = {"from host memory": (96, True), "on the device": (96, False)}.get(name, (0, False))
        assert (first.num_cached_tokens, first.num_external_tokens > 0) == found
        if first.num_external_tokens:
            assert core.stats().prefix_hits_host == first.num_external_tokens
    core.close(10.0)


def test_each_token_is_drawn_from_the_models_distribution_with_the_noise_of_its_position(llama: Path) -> None:
    """The same draws, made from transformers' logits one position after the other."""
    sampling = SamplingParams(temperature=1.2, top_p=0.95, seed=11, max_tokens=40)
    got = tokens_of(run(start(llama), {"a": (prompt(9), sampling)})["a"])
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    tokens = prompt(9)
    for _ in range(40):
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, -1:]
        (drawn,) = Sampler().sample(logits, [SamplingRow(sampling, len(tokens), 9)])
        assert drawn.token_id is not None
        tokens.append(drawn.token_id)
    assert got == tokens[9:]


def test_prompt_logprobs_are_those_of_the_model_over_chunks_and_pages(llama: Path) -> None:
    tokens = prompt(50)
    core = start(llama, max_num_batched_tokens=7)
    sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=3, logprobs=3)
    (output,) = run(core, {"a": (tokens, sampling)})["a"]
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.no_grad():
        exact = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1).numpy()
    assert output.prompt_logprobs is not None and output.logprobs is not None
    assert len(output.prompt_logprobs) == 50 and output.prompt_logprobs[0] is None
    for position, found in enumerate([*output.prompt_logprobs[1:], *output.logprobs]):
        token = [*tokens[1:], *output.token_ids][position]
        _check(found, exact[position], token)


def test_logits_of_a_long_prompt_are_made_for_some_rows_at_a_time(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a request asks for: in one step that computes 200 tokens, log-probabilities of all of them."""
    core = start(llama, max_num_batched_tokens=512)
    request = {"a": (prompt(200), SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=20))}
    whole = _answers(run(core, request)["a"])
    rows_at_once: list[int] = []
    decoder: Any = core.runner.decoder
    logits = decoder.logits

    def counted(rows: torch.Tensor) -> Any:
        rows_at_once.append(len(rows))
        return logits(rows)

    monkeypatch.setattr(decoder, "logits", counted)
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 32 * 8 * 131)
    assert _answers(run(core, request)["a"]) == whole
    assert max(rows_at_once) == 32 and sum(rows_at_once) == 199 + 1


def _check(found: TokenLogprobs | None, exact: np.ndarray, token: int) -> None:
    order = np.argsort(-exact).tolist()
    assert found is not None
    assert found.token_ids == [token, *order[:3]]
    assert found.rank == order.index(token) + 1
    np.testing.assert_allclose(found.logprobs, exact[found.token_ids], atol=1e-4)


def test_the_ends_of_config_and_generation_config_count_together(tmp_path: Path) -> None:
    plain = write_checkpoint(tmp_path / "plain", {**config_json("LlamaForCausalLM"), **NO_END})
    answer = generate(plain, prompt(5), 40)
    first = {token: answer.index(token) for token in reversed(answer)}
    early, late = sorted((token for token in first if first[token] >= 2), key=lambda token: first[token])[:2]
    folder = tmp_path / "ending"
    write_checkpoint(folder, config_json("LlamaForCausalLM", eos_token_id=late))
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": [{early}, 130]}}')
    sampling = SamplingParams(temperature=0.0, max_tokens=40)
    ignoring = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    results = run(start(folder), {"a": (prompt(5), sampling), "all": (prompt(5), ignoring)})
    assert tokens_of(results["a"]) == answer[: first[early] + 1]
    assert (results["a"][-1].finish_reason, results["a"][-1].stop_reason) == ("stop", None)
    assert tokens_of(results["all"]) == answer
    (folder / "generation_config.json").unlink()
    assert tokens_of(run(start(folder), {"a": (prompt(5), sampling)})["a"]) == answer[: first[late] + 1]


def test_an_answer_ends_at_the_longest_length(llama: Path) -> None:
    core = start(llama, max_model_len=20)
    outputs = run(core, {"a": (prompt(12), SamplingParams(max_tokens=1000))})["a"]
    assert len(tokens_of(outputs)) == 8 and outputs[-1].finish_reason == "length"


def test_without_a_length_it_is_lowered_to_what_the_pages_hold(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    core = start(llama, num_gpu_blocks_override=10)
    assert core.scheduler.limits.max_model_len == 80
    assert "lowered from the model's 512 tokens to 80" in caplog.text
    assert len(tokens_of(run(core, {"a": (prompt(12), SamplingParams(max_tokens=1000))})["a"])) == 68


def test_a_model_that_computes_no_numbers_is_found_before_ready(tmp_path: Path) -> None:
    import safetensors.torch

    write_checkpoint(tmp_path, config_json("LlamaForCausalLM"))
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"].fill_(torch.nan)
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"finite numbers in torch\.float32; try another --dtype"):
        start(tmp_path)


def test_the_start_leaves_no_trace_in_counters_or_pages(llama: Path) -> None:
    core = start(llama)
    stats = core.stats()
    assert (stats.steps, stats.prompt_tokens, stats.generation_tokens, stats.kv_blocks_used) == (0, 0, 0, 0)
    assert core.runner.batch.states == {}


@pytest.mark.parametrize(
    ("files", "config", "error", "words"),
    [
        ({}, {}, ModelError, r"config\.json is missing"),
        ({"config.json": "{}"}, {}, ModelError, "architectures"),
        (None, {"max_model_len": 400, "num_gpu_blocks_override": 5}, ConfigError, "--num-gpu-blocks-override to 50"),
        (None, {"max_model_len": 513}, ConfigError, "--max-model-len 513"),
        (None, {"device": "cuda"}, ConfigError, "--device cuda: torch finds no CUDA device"),
        (None, {"num_gpu_blocks_override": 2**31 - 1}, ConfigError, r"no memory for .* lower --num-gpu-blocks"),
    ],
)
def test_a_start_that_cannot_work_is_refused_with_the_remedy(
    llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str] | None,
    config: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, content in (files or {}).items():
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=words):
        start(llama if files is None else tmp_path, **config)


def test_a_gpu_that_others_use_is_refused_with_the_numbers(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2 * 2**30, 80 * 2**30))
    with pytest.raises(ConfigError, match=r"72\.0 GiB of GPU memory .* only 2\.0 GiB are free: lower --gpu-memory"):
        start(llama, device="cuda", num_gpu_blocks_override=None)


def test_the_engines_state_and_step_can_be_read_in_one_sitting() -> None:
    files = list(Path(core_module.__file__).parent.glob("*.py"))
    assert len(files) > 5
    assert sum(len(path.read_text().splitlines()) for path in files) < 1500
