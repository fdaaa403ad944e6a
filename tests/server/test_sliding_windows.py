"""A model all of whose layers slide: pages that left the window are free for others, and nobody reads them."""

import random
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import transformers

from octavo_server import engine_start
from octavo_server.engine.core import EngineCore
from octavo_server.ipc import SamplingParams
from real_engine import Answer, Asked, add, answers, finish, poison_free_pages, start
from tiny_models import config_json, write_checkpoint

WINDOW, PAGE = 24, 8
HELD: Final = WINDOW // PAGE + 1  # pages that a decode holds at most: the window need not begin with a page
TOTAL: Final = 112  # tokens that a request comes to have


def tokens(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(131) for _ in range(count)]


def sampling(count: int, **changes: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": count, "ignore_eos": True, "logprobs": 1, **changes})


SHARED: Final = tokens(61, 50)
PROMPTS: Final = [tokens(3 + index, index) for index in range(9)] + [
    SHARED + tokens(5 * index, index) for index in range(1, 4)
]
REQUESTS: Final[dict[str, Asked]] = {
    f"r{index}": (prompt, sampling(TOTAL - len(prompt))) for index, prompt in enumerate(PROMPTS)
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistral")
    ends = {"bos_token_id": None, "eos_token_id": None}
    write_checkpoint(folder, {**config_json("MistralForCausalLM", sliding_window=WINDOW), **ends})
    return folder


@pytest.fixture(scope="module")
def unfreed(model: Path) -> dict[str, Answer]:
    """The answers of an engine that keeps every page, and shares none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_start, "_window", lambda _model: None)
        core = start(model, enable_prefix_caching=False)
    found = answers(core, REQUESTS)
    assert core.stats().preemptions == 0
    return found


def test_the_answers_are_those_of_transformers(model: Path, unfreed: dict[str, Answer]) -> None:
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )
    for name in ("r0", "r9"):
        prompt = REQUESTS[name][0]
        ids = torch.tensor([prompt])
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_length=TOTAL, do_sample=False, pad_token_id=0
        )
        assert [token for token, _ in unfreed[name]] == out[0, len(prompt) :].tolist()


def test_pages_are_free_as_soon_as_they_have_left_the_window(model: Path, unfreed: dict[str, Answer]) -> None:
    """Twelve requests of 14 pages each in a pool of 54: not one of them has to give way."""
    core = start(model, num_gpu_blocks_override=54, max_model_len=TOTAL, max_num_batched_tokens=32)
    poison_free_pages(core)
    held: list[int] = []
    for name, asked in REQUESTS.items():
        add(core, name, *asked)
    found = finish(core, lambda: held.append(_most_held_by_a_decode(core)))
    assert {name: answer for name, (answer, _) in found.items()} == unfreed
    assert core.stats().preemptions == 0
    assert max(held) == HELD


def _most_held_by_a_decode(core: EngineCore) -> int:
    kv_cache = core.scheduler.kv_cache
    running = core.scheduler.running
    decodes = [each for each in running if each.num_computed_tokens > each.num_prefill_tokens + PAGE]
    return max(
        (len(each.blocks) - each.num_holes for each in (kv_cache._held[decode.request_id] for decode in decodes)),
        default=0,
    )


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("mode", ["swap", "recompute"])
def test_windows_that_are_swapped_or_computed_again(
    mode: str, overlap: bool, model: Path, unfreed: dict[str, Answer]
) -> None:
    core = start(
        model,
        num_gpu_blocks_override=20,
        max_model_len=TOTAL,
        max_num_batched_tokens=32,
        preemption_mode=mode,
        swap_space=0.01 if mode == "swap" else 0.0,
        async_scheduling=overlap,
    )
    if not overlap:
        poison_free_pages(core)
    assert answers(core, REQUESTS) == unfreed
    stats = core.stats()
    assert stats.preemptions > 0
    assert (stats.preemptions_by_swap > 0 and stats.swapped_in > 0) == (mode == "swap")
    core.close(1.0)


def long_conversations(found: dict[str, Answer]) -> dict[str, Asked]:
    """Prompts that go on behind most of each answer."""
    return {
        name: (prompt + [token for token, _ in found[name]][: TOTAL - len(prompt) - 20] + tokens(3, 7), sampling(12))
        for name, (prompt, _) in REQUESTS.items()
    }


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_a_prefix_is_hit_whose_beginning_has_left_the_window(
    tier: str, model: Path, tmp_path: Path, unfreed: dict[str, Answer]
) -> None:
    """Only the pages that its next token sees are needed, wherever they are."""
    asked = long_conversations(unfreed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_start, "_window", lambda _model: None)
        expected = answers(start(model, enable_prefix_caching=False), asked)
    config: dict[str, Any] = {"max_model_len": TOTAL}
    if tier != "device":
        config |= {"num_gpu_blocks_override": 24, "swap_space": 0.01}
    if tier == "disk":
        config |= {"disk_cache_dir": tmp_path}
    core = start(model, **config)
    assert answers(core, REQUESTS) == unfreed
    if tier == "disk":
        core.close(10.0)
        core = start(model, **config)
    poison_free_pages(core)
    before = core.stats()
    assert answers(core, asked) == expected
    after = core.stats()
    counter = "prefix_hits" + ("" if tier == "device" else f"_{tier}")
    assert getattr(after, counter) - getattr(before, counter) > 0
    if tier == "device":
        assert after.prefix_hits - before.prefix_hits >= len(asked) * (TOTAL - 20 - PAGE)
    core.close(1.0)
