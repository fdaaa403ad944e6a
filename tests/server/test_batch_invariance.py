"""On the CPU a token's logits are equal bit for bit, whatever it is computed together with."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_server import page_hash
from octavo_server.ipc import AddRequest, EngineStats, SamplingParams, TokenLogprobs
from octavo_server.worker.models.decoder import Decoder
from paged_loop import PagedLoop, Sequence
from real_engine import start
from tiny_models import config_json, random_decoder, write_checkpoint

# Widths and depths that leave remainders in every tile and vector, and as many requests as fill several tiles.
SHAPES: dict[str, dict[str, Any]] = {
    "3 heads a key head": {"architecture": "LlamaForCausalLM", "attention_bias": True, "mlp_bias": True},
    "one head a key head": {"architecture": "Qwen2ForCausalLM", "num_key_value_heads": 6, "head_dim": 20},
    "one key head": {"architecture": "MistralForCausalLM", "num_key_value_heads": 1, "head_dim": 40},
    "qk-norm and windows": {
        "architecture": "Qwen3ForCausalLM",
        "head_dim": 24,
        "use_sliding_window": True,
        "sliding_window": 70,
        "max_window_layers": 1,
    },
    "as the demo model": {
        "architecture": "LlamaForCausalLM",
        "vocab_size": 2048,
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "head_dim": 64,
    },
}


# Threads that share a product may change its sums; two are as many as every machine has.
CASES = [(name, 1) for name in SHAPES] + [("one key head", 2)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}, {case[1]} threads")
def decoder(request: pytest.FixtureRequest) -> Iterator[Decoder]:
    name, threads = request.param
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield random_decoder(config_json(**SHAPES[name]), seed=5)
    torch.set_num_threads(before)


def tokens(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(131) for _ in range(count)]


def alone(decoder: Decoder, text: list[int]) -> torch.Tensor:
    """The logits of every position, the text being all that there is, in one chunk."""
    [logits] = PagedLoop(decoder, num_blocks=64, block_size=16).step([(Sequence(), text)])
    return logits


def in_chunks(decoder: Decoder, text: list[int], sizes: list[int], seed: int = 1) -> torch.Tensor:
    loop, sequence, found = PagedLoop(decoder, num_blocks=64, block_size=16, seed=seed), Sequence(), []
    assert sum(sizes) == len(text)
    for size in sizes:
        found += loop.step([(sequence, text[sequence.length : sequence.length + size])])
    return torch.cat(found)


def test_chunks_do_not_show(decoder: Decoder) -> None:
    text = tokens(300, seed=0)
    whole = alone(decoder, text)
    assert torch.equal(in_chunks(decoder, text, [1, 2, 13, 64, 100, 1, 1, 118]), whole)
    assert torch.equal(in_chunks(decoder, text, [299, 1]), whole)


def test_a_prompt_computed_again_gives_what_decoding_gave(decoder: Decoder) -> None:
    text = tokens(140, seed=1)
    assert torch.equal(in_chunks(decoder, text, [5] + [1] * 135), alone(decoder, text))


def test_company_does_not_show(decoder: Decoder) -> None:
    text = tokens(150, seed=2)
    expected = alone(decoder, text)
    draw = random.Random(3)
    loop = PagedLoop(decoder, num_blocks=1024, block_size=16, seed=4)
    others = [Sequence() for _ in range(64)]
    for index, other in enumerate(others[:48]):
        loop.step([(other, tokens(draw.randrange(1, 200), seed=index))])
    sequence, found = Sequence(), []
    while sequence.length < len(text):
        # The others decode, or bring a prompt, or rest; ours is at another place in each batch.
        active = draw.sample(others, draw.randrange(40, 65))
        batch = [(other, tokens(1 if other.length else draw.randrange(1, 60), seed=9)) for other in active]
        place = draw.randrange(len(batch) + 1)
        size = 90 if sequence.length == 0 else 1
        batch.insert(place, (sequence, text[sequence.length : sequence.length + size]))
        found.append(loop.step(batch)[place])
        for other in others:
            if other.length > 180:
                loop.release(other)
    assert torch.equal(torch.cat(found), expected)


def test_the_order_of_a_batch_does_not_show(decoder: Decoder) -> None:
    texts = [tokens(length, seed=length) for length in (1, 2, 15, 16, 17, 100, 129, 3, 40)]
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    loop = PagedLoop(decoder, num_blocks=64, block_size=16)
    found = loop.step([(Sequence(), texts[index]) for index in order])
    for index, logits in zip(order, found, strict=True):
        assert torch.equal(logits, alone(decoder, texts[index]))


def test_broken_numbers_of_one_request_stay_with_it(decoder: Decoder) -> None:
    text = tokens(60, seed=6)
    expected = alone(decoder, text)
    loop = PagedLoop(decoder, num_blocks=64, block_size=16)
    broken, sequence = Sequence(), Sequence()
    loop.step([(broken, tokens(50, seed=7))])
    for k, v in loop.kv_cache:
        k[broken.pages[0], 3] = torch.inf
        v[broken.pages[0], 3] = torch.nan
    loop.step([(sequence, text[:-1]), (broken, [1])])
    sick, healthy = loop.step([(broken, [1]), (sequence, text[-1:])])
    assert sick.isnan().any()
    assert torch.equal(healthy, expected[-1:])


# On one thread `test_same_bits` has all that an engine may do to requests; here two share the work.
ENGINES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "overlap": ({"async_scheduling": True}, ["prefix_hits"]),
    "overlap, pages swapped": (
        {
            "max_model_len": 96,
            "num_gpu_blocks_override": 16,
            "max_num_batched_tokens": 24,
            "async_scheduling": True,
            "preemption_mode": "swap",
            "swap_space": 0.01,
        },
        ["preemptions_by_swap", "swapped_out", "swapped_in"],
    ),
}


def answers(model: Path, **config: Any) -> tuple[dict[str, list[tuple[int, TokenLogprobs]]], EngineStats]:
    """Tokens and log-probabilities of 24 requests of all kinds, half of which begin alike."""
    core = start(model, **config)
    assert torch.get_num_threads() == 2
    found: dict[str, list[tuple[int, TokenLogprobs]]] = {}
    for index in range(24):
        prompt = (tokens(32, seed=0) if index % 2 else []) + tokens(3 + index, seed=index)
        sampling = SamplingParams(
            temperature=(0.0, 0.7, 1.3)[index % 3],
            seed=index,
            repetition_penalty=1.2 if index % 4 == 0 else 1.0,
            bad_words=((5, 6),) if index % 4 == 1 else (),
            max_tokens=30,
            ignore_eos=True,
            logprobs=2,
        )
        hashes = page_hash.hash_pages(prompt, 8, b"")
        assert core.add(AddRequest(1, str(index), prompt, sampling, float(index), page_hashes=hashes)) == []
        found[str(index)] = []
    while core.has_work:
        for output in core.step():
            assert output.error is None
            found[output.request_id] += zip(output.token_ids, output.logprobs or [], strict=True)
    stats = core.stats()
    core.close(1.0)
    return found, stats


@pytest.fixture(scope="module")
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(
    _two_threads: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[tuple[int, TokenLogprobs]]]]:
    """A model, and what it answers one step after the other, nothing being shared, in pages for all."""
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, config_json("Qwen3ForCausalLM"))
    found, stats = answers(folder, enable_prefix_caching=False)
    assert stats.preemptions == 0 and all(len(answer) == 30 for answer in found.values())
    return folder, found


@pytest.mark.parametrize("name", ENGINES)
def test_what_the_engine_does_meanwhile_does_not_show(
    name: str, undisturbed: tuple[Path, dict[str, list[tuple[int, TokenLogprobs]]]]
) -> None:
    config, counters = ENGINES[name]
    found, stats = answers(undisturbed[0], **config)
    assert found == undisturbed[1]
    assert all(getattr(stats, counter) > 0 for counter in counters), stats
