"""The demo model's skills, asked of our own engine: a cache, a mask or a position that is broken shows here."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import torch
from tokenizers import Tokenizer
from training.demo_model.cases import Case, cases
from training.demo_model.chat_format import render
from training.demo_model.grading import right

from octavo_server.config import EngineConfig
from octavo_server.engine.core import EngineCore
from octavo_server.engine_start import start_engine
from octavo_server.ipc import AddRequest, SamplingParams
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
PER_SKILL: Final = 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def asked(tokenizer: Tokenizer) -> list[Case]:
    return [case for skill in SKILLS for case in cases(skill, PER_SKILL, tokenizer, seed=7)]


def engine() -> EngineCore:
    return start_engine(EngineConfig(model=MODEL, device="cpu"), lambda _phase: None)


def score(core: EngineCore, asked: list[Case], tokenizer: Tokenizer, max_tokens: int = 200) -> Counter[str]:
    """Right answers by skill, all prompts in flight together."""
    answers: dict[str, list[int]] = {}
    for index, case in enumerate(asked):
        prompt = tokenizer.encode(render(case.messages, case.tools, generation_prompt=True)).ids
        answers[str(index)] = []
        core.add(AddRequest(0, str(index), prompt, SamplingParams(temperature=0.0, max_tokens=max_tokens), 0.0))
    while core.has_work:
        for output in core.step():
            if output.error is not None:
                raise RuntimeError(output.error)
            answers[output.request_id] += output.token_ids
    texts = [tokenizer.decode(answers[str(index)]) for index in range(len(asked))]
    return Counter(
        case.skill for case, text in zip(asked, texts, strict=True) if right(case.grader, text, case.expected)
    )


def test_held_out_prompts_of_each_skill_are_answered_rightly(asked: list[Case], tokenizer: Tokenizer) -> None:
    scores = score(engine(), asked, tokenizer)
    assert sum(scores.values()) >= 0.95 * len(asked), scores
    assert all(scores[skill] >= PER_SKILL - 1 for skill in SKILLS), scores


def _slots_lost(batch: ForwardBatch) -> ForwardBatch:
    """K and V of every third token are written over those of the step's first one.

    To exchange the slots within a request would not do: K carries its position, so attention hardly minds the order.
    """
    slots = batch.slot_mapping.clone()
    slots[2::3] = slots[0]
    return ForwardBatch(
        batch.token_ids, batch.positions, slots, batch.query_start, batch.context_lens, batch.block_tables
    )


def _positions_lost(batch: ForwardBatch) -> ForwardBatch:
    """Every token stands at position 0."""
    positions = torch.zeros_like(batch.positions)
    return ForwardBatch(
        batch.token_ids, positions, batch.slot_mapping, batch.query_start, batch.context_lens, batch.block_tables
    )


@pytest.mark.parametrize("broken", [_slots_lost, _positions_lost])
def test_a_broken_cache_or_position_shows_in_the_scores(
    broken: Callable[[ForwardBatch], ForwardBatch],
    asked: list[Case],
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = engine()
    build = core.runner.batch.build
    monkeypatch.setattr(core.runner.batch, "build", lambda rows: broken(build(rows)))
    few = [case for case in asked if case.skill in ("copying", "recall at 500")]
    scores = score(core, few, tokenizer, max_tokens=40)
    assert sum(scores.values()) <= len(few) // 2
