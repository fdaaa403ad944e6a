"""An answer that began on another engine goes on here with the very tokens that it would have had there."""

from pathlib import Path
from typing import Any, Final

import pytest

from octavo_server.engine.core import EngineCore
from octavo_server.ipc import AddRequest, SamplingParams
from real_engine import add, finish, start
from tiny_models import config_json, write_checkpoint

DEMO: Final = Path(__file__).resolve().parents[2] / "server" / "octavo_server" / "demo_model"
PROMPT: Final = [(7 * index) % 131 for index in range(21)]
LENGTH: Final = 18
CHANGES: Final[dict[str, dict[str, Any]]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"seed": 5, "top_p": 0.95, "min_p": 0.001},
    "third choice": {"seed": 5, "choice": 2},
    "penalties": {
        "seed": 11,
        "repetition_penalty": 1.4,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.9,
        "min_tokens": 9,
        "bad_words": ((5,), (9, 11)),
    },
}


@pytest.fixture(scope="module", params=["tiny", "demo", "tiny, overlap"])
def core(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineCore:
    if request.param == "demo":
        return start(DEMO, max_num_batched_tokens=16)
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, config_json("Qwen3ForCausalLM", head_dim=20))
    return start(folder, max_num_batched_tokens=16, async_scheduling="overlap" in request.param)


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_an_answer_that_is_cut_anywhere_goes_on_bit_for_bit(core: EngineCore, changes: dict[str, Any]) -> None:
    sampling = SamplingParams(**{"max_tokens": LENGTH, "ignore_eos": True, "logprobs": 2, **changes})
    add(core, "whole", PROMPT, sampling)
    whole, last = finish(core)["whole"]
    tokens = [token for token, _ in whole]
    assert (len(tokens), last.finish_reason) == (LENGTH, "length")
    for cut in range(1, LENGTH):  # all of them in one batch
        add(core, f"cut {cut}", PROMPT, sampling, output_token_ids=tokens[:cut])
    for name, (rest, end) in finish(core).items():
        cut = int(name.split()[1])
        assert rest == whole[cut:], name
        assert end.finish_reason == "length"


def test_what_is_told_with_the_first_token_is_told_with_the_first_new_one(core: EngineCore) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    request = AddRequest(1, "r", PROMPT, sampling, 0.0, output_token_ids=[3, 4])
    before = core.stats()
    assert core.add(request) == []
    outputs = [output for _ in range(8) for output in core.step()]
    assert [output.first_scheduled is not None for output in outputs] == [True, False]
    after = core.stats()
    assert after.prompt_tokens - before.prompt_tokens == len(PROMPT)
    assert after.generation_tokens - before.generation_tokens == 2


@pytest.mark.parametrize(
    ("replayed", "words"),
    [([1, 2, 3, 4], "as long as it may be"), ([1] * 9, "as long as it may be"), ([10**6], "token id 1000000")],
)
def test_a_replay_that_leaves_nothing_to_do_or_cannot_be_is_refused(
    core: EngineCore, replayed: list[int], words: str
) -> None:
    (refusal,) = core.add(AddRequest(1, "r", PROMPT, SamplingParams(max_tokens=4), 0.0, output_token_ids=replayed))
    assert (refusal.finish_reason, refusal.error_kind) == ("error", "invalid")
    assert words in (refusal.error or "")
    assert not core.has_work
