"""The engine's decode steps over shared prefixes, on the CPU: attention takes what it is told about groups at its word.

So a group of requests whose beginnings differ, or one longer than what they share, would change an answer.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from octavo_common.model_config import parse_model_config
from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.reference_attention import paged_attention
from octavo_kernels.reference_shared_prefix import shared_prefix_attention
from octavo_server.engine.core import EngineCore
from octavo_server.ipc import SamplingParams
from octavo_server.worker.model_runner import ModelRunner
from real_engine import Answer, Asked, answers, poison_free_pages, start
from replayed import CallingRecorder, record_on_the_cpu
from tiny_models import config_json, random_decoder, write_checkpoint

CONFIG: Final = config_json("Qwen2ForCausalLM", use_sliding_window=True, sliding_window=24, max_window_layers=2)
Groups = list[tuple[list[int], int]]  # of a call: members and shared tokens of each tile


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(0, 131, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


COMMON, LONGER = tokens(21, 1), tokens(30, 2)
PROMPTS: Final = [
    *(COMMON + LONGER + tokens(1 + index, 10 + index) for index in range(6)),  # the last of their shared pages is full
    *(COMMON + tokens(2 + 5 * index, 20 + index) for index in range(5)),
    *(tokens(9 + 9 * index, 30 + index) for index in range(3)),
]
REQUESTS: Final[dict[str, Asked]] = {
    f"r{index}": (prompt, SamplingParams(temperature=0.0, max_tokens=6 + 3 * index, ignore_eos=True, logprobs=1))
    for index, prompt in enumerate(PROMPTS)
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, CONFIG)
    return folder


@pytest.fixture(scope="module")
def plain(tiny: Path) -> dict[str, Answer]:
    return answers(start(tiny, enable_prefix_caching=False), REQUESTS)


def share_at_their_word(core: EngineCore) -> list[Groups]:
    """Makes the engine's attention read shared prefixes as it is told to; what it is told, call by call."""
    told: list[Groups] = []

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: AttentionMetadata, scale: float, window: int | None
    ) -> torch.Tensor:
        shared = metadata.shared
        if shared is None or window is not None:
            return paged_attention(q, k, v, metadata, scale, window)
        assert metadata.max_query_len == 1
        tiles = [shared.members[first : first + count].tolist() for first, count in shared.tiles.tolist() if count]
        told.append([(members, int(shared.lens[members[0]])) for members in tiles])
        return shared_prefix_attention(q, k, v, metadata, scale)

    decoder = core.runner.decoder  # type: ignore[attr-defined]
    decoder.ops = replace(decoder.ops, paged_attention=attend)
    return told


def check_alike(found: dict[str, Answer], expected: dict[str, Answer]) -> None:
    """Sums are in another order."""
    assert {name: [token for token, _ in answer] for name, answer in found.items()} == {
        name: [token for token, _ in answer] for name, answer in expected.items()
    }
    for name, answer in found.items():
        for (_, ours), (_, theirs) in zip(answer, expected[name], strict=True):
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@pytest.mark.parametrize("overlap", [False, True])
def test_answers_over_shared_prefixes_are_those_without_sharing(
    overlap: bool, tiny: Path, plain: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_server.worker.shared_prefix.LEAST_BYTES", 1)
    monkeypatch.setattr("octavo_server.worker.shared_prefix._FEW", 1)
    record_on_the_cpu(monkeypatch)
    core = start(tiny, async_scheduling=overlap, max_num_seqs=16, max_num_batched_tokens=160)
    told = share_at_their_word(core)
    if not overlap:
        poison_free_pages(core)
    check_alike(answers(core, REQUESTS), plain)
    first = max(told, key=lambda groups: (len(groups), sum(len(members) for members, _ in groups)))
    # 51 common tokens fill six pages of 8, and 21 two: more are saved by all eleven in two groups than in one.
    assert [(len(members), length) for members, length in first] == [(6, 48), (5, 16)]
    assert any(len(groups) == 1 for groups in told)  # as requests end
    told.clear()
    check_alike(answers(core, REQUESTS), plain)  # prefixes are hit
    assert told
    core.close(1.0)


@pytest.mark.parametrize("config", [{"enable_prefix_caching": False}, {"batch_invariant": True}, {}])
def test_where_nothing_is_shared_or_may_be_no_step_is_told_of_groups(
    config: dict[str, Any], tiny: Path, plain: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without prefix caching; with bits that depend on no other row; by default, for prefixes as short as these."""
    if "enable_prefix_caching" in config:
        monkeypatch.setattr("octavo_server.worker.shared_prefix.LEAST_BYTES", 1)
        monkeypatch.setattr("octavo_server.worker.shared_prefix._FEW", 1)
    record_on_the_cpu(monkeypatch)
    core = start(tiny, max_num_seqs=16, **config)
    told = share_at_their_word(core)
    assert answers(core, REQUESTS) == plain
    assert told == []
    core.close(1.0)


@pytest.mark.parametrize(
    ("windows", "is_told"), [((), True), ((24, None, 24), True), ((24, 24, 24), False), ((64, 64, 64), True)]
)
def test_groups_are_looked_for_if_a_layer_sees_whole_contexts(windows: tuple[int | None, ...], is_told: bool) -> None:
    config = parse_model_config(config_json("Qwen3ForCausalLM"))
    config = replace(config, sliding_window=windows or config.sliding_window)
    device = torch.device("cpu")
    made = ModelRunner(config, device, torch.float32, block_size=8, max_num_seqs=9, recorder=CallingRecorder())
    made.decoder = random_decoder(config_json("Qwen3ForCausalLM"), seed=3)
    made.allocate_cache(4)
    graphs = made.make_graphs(64)
    assert graphs is not None and any(shape.shares for shape in graphs._pending) == is_told
