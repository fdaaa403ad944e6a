"""The demo model's skills, asked of our own engine: a cache, a mask or a position that is broken shows here."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from tokenizers import Tokenizer
from training.demo_model.cases import Case, cases
from training.demo_model.chat_format import render
from training.demo_model.grading import right

from octavo_server import page_hash
from octavo_server.config import EngineConfig
from octavo_server.engine.core import EngineCore
from octavo_server.engine_process import STALL_SECONDS
from octavo_server.engine_start import start_engine
from octavo_server.ipc import AddRequest, SamplingParams
from octavo_server.worker.input_batch import ScheduledRow, StepInputs
from octavo_server.worker.models.interface import ForwardBatch

MODEL: Final = Path(__file__).resolve().parents[2] / "server" / "octavo_server" / "demo_model"
SKILLS: Final = (
    "copying",
    "arithmetic",
    "spelling",
    "JSON, schema from user",
    "tool calls",
    "recall at 50",
    "recall at 500",
    "recall at 1000",
)
PER_SKILL: Final = 4
MAX_TOKENS: Final = 80
SHORT: Final = 64  # prompts of less go on behind their answers' ends, up to MAX_TOKENS: they outgrow their pages
# 1,280 tokens: the longest prompt fits, and no second one of its kind.
FORTY_PAGES: Final = {"num_gpu_blocks_override": 40, "block_size": 32}


@dataclass
class Tight:
    """How 40 pages are made to do, for all prompts or some, and the counters that must show it, and must not."""

    config: dict[str, Any]
    happens: list[str] = field(default_factory=list)
    never: list[str] = field(default_factory=list)
    all_prompts: bool = False
    disk: bool = False


TIGHT: Final = {
    "all of it": Tight(
        {"preemption_mode": "swap", "swap_space": 0.03, "max_num_batched_tokens": 160, "async_scheduling": True},
        [
            "preemptions_by_swap",
            "swapped_out",
            "swapped_in",
            "stored",
            "loaded",
            "prefix_hits_host",
            "prefix_hits_disk",
        ],
        all_prompts=True,
        disk=True,
    ),
    "chunks, computed again, nothing shared": Tight(
        {"preemption_mode": "recompute", "max_num_batched_tokens": 64, "enable_prefix_caching": False},
        ["preemptions"],
        ["preemptions_by_swap", "swapped_out", "prefix_hits", "prefix_hits_host"],
    ),
    "shared, computed again, steps overlap": Tight(
        {"preemption_mode": "recompute", "async_scheduling": True}, ["preemptions", "prefix_hits"], ["swapped_out"]
    ),
    "shared, host memory, whichever is faster": Tight(
        {"swap_space": 0.1}, ["preemptions", "prefix_hits_host", "swapped_in", "swapped_out"], ["prefix_hits_disk"]
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def asked(tokenizer: Tokenizer) -> list[Case]:
    return [case for skill in SKILLS for case in cases(skill, PER_SKILL, tokenizer, seed=7)]


@pytest.fixture(scope="module")
def prompts(asked: list[Case], tokenizer: Tokenizer) -> list[list[int]]:
    texts = [render(case.messages, case.tools, generation_prompt=True) for case in asked]
    return [tokenizer.encode(text).ids for text in texts]


@pytest.fixture(scope="module")
def undisturbed(prompts: list[list[int]]) -> list[list[int]]:
    """The answers where nothing is shared, every page has room, and steps follow each other."""
    core = start(enable_prefix_caching=False, async_scheduling=False)
    answers = ask(core, prompts)
    assert core.stats().preemptions == 0
    core.close(0.0)
    return answers


def start(**config: Any) -> EngineCore:
    core = start_engine(EngineConfig(model=MODEL, device="cpu", **config), lambda _phase: None)
    while core.idle():  # until all host memory is there
        continue
    return core


def ask(core: EngineCore, prompts: list[list[int]], max_tokens: int = MAX_TOKENS) -> list[list[int]]:
    """The answers, all prompts in flight together; no page is held when the last one is there."""
    answers: list[list[int]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompts):
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=len(prompt) < SHORT)
        hashes = page_hash.hash_pages(prompt, core.scheduler.kv_cache.block_size, b"")
        assert core.add(AddRequest(0, str(index), prompt, sampling, float(index), page_hashes=hashes)) == []
    while core.has_work:
        for output in core.step():
            if output.error is not None:
                raise RuntimeError(output.error)
            answers[int(output.request_id)] += output.token_ids
        if core.is_stalled:  # all wait for the disk
            time.sleep(STALL_SECONDS)
    assert core.stats().kv_blocks_used == 0
    return answers


def score(asked: list[Case], answers: list[list[int]], tokenizer: Tokenizer) -> Counter[str]:
    """Right answers by skill, each judged up to its end."""
    end = tokenizer.token_to_id("<|im_end|>")
    texts = [tokenizer.decode(answer[: answer.index(end)] if end in answer else answer) for answer in answers]
    graded = zip(asked, texts, strict=True)
    return Counter(case.skill for case, text in graded if right(case.grader, text, case.expected))


def test_held_out_prompts_of_each_skill_are_answered_rightly(
    asked: list[Case], undisturbed: list[list[int]], tokenizer: Tokenizer
) -> None:
    scores = score(asked, undisturbed, tokenizer)
    assert sum(scores.values()) >= 0.95 * len(asked), scores
    assert all(scores[skill] >= PER_SKILL - 1 for skill in SKILLS), scores


@pytest.mark.parametrize("name", TIGHT)
def test_a_cache_of_40_pages_gives_the_same_answers_as_one_that_fits_all(
    name: str, prompts: list[list[int]], undisturbed: list[list[int]], tmp_path: Path
) -> None:
    """Prompt by prompt; the longer ones come twice, and what the second time finds depends on where the pages went."""
    case = TIGHT[name]
    config = FORTY_PAGES | case.config | ({"disk_cache_dir": tmp_path} if case.disk else {})
    some = {index for index, prompt in enumerate(prompts) if len(prompt) < SHORT or index % PER_SKILL == 0}
    chosen = [index for index in range(len(prompts)) if case.all_prompts or index in some]
    long = [index for index in chosen if len(prompts[index]) >= 2 * SHORT]
    order = long + [index for index in chosen if index not in long] + long
    core = start(**config)
    found = ask(core, [prompts[index] for index in order])
    stats = core.stats()
    core.close(5.0)
    assert found == [undisturbed[index] for index in order]
    assert stats.kv_blocks_total == 40
    assert [counter for counter in case.happens if getattr(stats, counter) == 0] == []
    assert [counter for counter in case.never if getattr(stats, counter) > 0] == []
    if case.disk:
        again = start(**config)
        assert ask(again, [prompts[index] for index in long[::3]]) == [undisturbed[index] for index in long[::3]]
        assert again.stats().prefix_hits_disk > 0
        again.close(5.0)


def _slots_lost(batch: ForwardBatch) -> ForwardBatch:
    """K and V of every third token are written over those of the step's first one.

    To exchange the slots within a request would not do: K carries its position, so attention hardly minds the order.
    """
    slots = batch.slot_mapping.clone()
    slots[2::3] = slots[0]
    return replace(batch, slot_mapping=slots)


def _positions_lost(batch: ForwardBatch) -> ForwardBatch:
    """Every token stands at position 0."""
    return replace(batch, positions=torch.zeros_like(batch.positions))


@pytest.mark.parametrize("broken", [_slots_lost, _positions_lost])
def test_a_broken_cache_or_position_shows_in_the_scores(
    broken: Callable[[ForwardBatch], ForwardBatch],
    asked: list[Case],
    prompts: list[list[int]],
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = start()
    build = core.runner.batch.build

    def build_broken(rows: list[ScheduledRow]) -> StepInputs:
        inputs = build(rows)
        return replace(inputs, forward=broken(inputs.forward))

    monkeypatch.setattr(core.runner.batch, "build", build_broken)
    few = [index for index, case in enumerate(asked) if case.skill in ("copying", "recall at 50")]
    answers = ask(core, [prompts[index] for index in few], max_tokens=40)
    scores = score([asked[index] for index in few], answers, tokenizer)
    assert sum(scores.values()) <= len(few) // 2
