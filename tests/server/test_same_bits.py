"""The same request gives the same tokens and log-probabilities, bit by bit, whatever the engine does meanwhile.

On the real engine, on a tiny model and on the demo model, each time with the counters that say that it did.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from octavo_server import page_hash
from octavo_server.engine.core import EngineCore
from octavo_server.ipc import EngineStats, SamplingParams
from real_engine import Answer, Asked, add, answers, finish, poison_free_pages, start
from tiny_models import config_json, write_checkpoint

DEMO: Final = Path(__file__).resolve().parents[2] / "server" / "octavo_server" / "demo_model"
OVERLAP: Final = [pytest.param(False, id="step by step"), pytest.param(True, id="overlap")]


def tokens(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(131) for _ in range(count)]


def sampling(count: int = 24, **changes: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": count, "ignore_eos": True, "logprobs": 3, **changes})


SHARED: Final = tokens(43, seed=99)  # five pages and a piece of one
PROBES: Final[dict[str, Asked]] = {
    "greedy": (SHARED + tokens(30, 1), sampling()),
    "short": (tokens(5, 2), sampling(logprobs=0)),
    "sampled": (SHARED + tokens(9, 3), sampling(temperature=1.1, seed=7, top_p=0.9, top_k=40, min_p=0.01)),
    "penalties": (
        SHARED + tokens(17, 4),
        sampling(
            temperature=0.6,
            seed=8,
            repetition_penalty=1.3,
            presence_penalty=0.4,
            frequency_penalty=0.7,
            logit_bias={3: 2.0, 17: -1.5},
            bad_words=((5,), (9, 11)),
            min_tokens=4,
        ),
    ),
    # n > 1: one prompt, one seed, and the number of the choice.
    **{f"choice {n}": (SHARED + tokens(21, 5), sampling(temperature=1.0, seed=3, choice=n)) for n in range(3)},
}
OTHERS: Final[dict[str, Asked]] = {
    f"other {index}": (
        (SHARED if index % 3 == 0 else []) + tokens(2 + index % 40, 100 + index),
        sampling(4 + index % 11, temperature=index % 4 / 2, seed=index),
    )
    for index in range(64)
}
TOGETHER: Final = dict(sorted((PROBES | OTHERS).items(), key=lambda item: str(hash(item[1][0][0])) + item[0]))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, config_json("Qwen3ForCausalLM", head_dim=20, num_hidden_layers=2))
    return folder


def one_by_one(model: Path, requests: dict[str, Asked]) -> dict[str, Answer]:
    """Each request alone, its prompt in one piece, nothing shared, one step after the other."""
    core = start(model, enable_prefix_caching=False, max_num_batched_tokens=512)
    found = {name: answers(core, {name: asked})[name] for name, asked in requests.items()}
    assert core.stats().preemptions == 0
    return found


@pytest.fixture(scope="module")
def alone(tiny: Path) -> dict[str, Answer]:
    found = one_by_one(tiny, PROBES)
    assert len({str(answer) for answer in found.values()}) == len(PROBES), "the choices differ, and all the others"
    return found


def happened(stats: EngineStats, *counters: str) -> None:
    assert [counter for counter in counters if not getattr(stats, counter)] == [], stats


# --- company, chunks, pressure


@dataclass(frozen=True)
class Way:
    """How an engine is started, and the counters that show what it was brought to."""

    config: dict[str, Any]
    counters: list[str] = field(default_factory=list)


WAYS: Final = {
    "among 64 others": Way({"max_num_seqs": 80, "max_num_batched_tokens": 512}, ["prefix_hits"]),
    "in chunks of 15": Way({"max_num_batched_tokens": 15, "max_num_seqs": 12}),
    "nothing shared": Way({"enable_prefix_caching": False}),
    "computed again": Way({"num_gpu_blocks_override": 24, "preemption_mode": "recompute"}, ["preemptions"]),
    "swapped": Way(
        {"num_gpu_blocks_override": 24, "preemption_mode": "swap", "swap_space": 0.005},
        ["preemptions_by_swap", "swapped_out", "swapped_in"],
    ),
    "swapped, nothing shared": Way(
        {
            "num_gpu_blocks_override": 24,
            "preemption_mode": "swap",
            "swap_space": 0.005,
            "enable_prefix_caching": False,
            "max_num_batched_tokens": 32,
        },
        ["preemptions_by_swap", "swapped_out", "swapped_in"],
    ),
}


@pytest.mark.parametrize("overlap", OVERLAP)
@pytest.mark.parametrize("name", WAYS)
def test_among_64_others_however_pages_are_come_by(
    name: str, overlap: bool, tiny: Path, alone: dict[str, Answer]
) -> None:
    core = start(tiny, async_scheduling=overlap, **WAYS[name].config)
    if not overlap:
        poison_free_pages(core)
    found = answers(core, TOGETHER)
    assert {probe: found[probe] for probe in PROBES} == alone
    happened(core.stats(), *WAYS[name].counters)
    core.close(1.0)


# --- prefixes that were kept somewhere


def _again(core: EngineCore, alone: dict[str, Answer]) -> EngineStats:
    assert answers(core, PROBES) == alone
    return core.stats()


def _turn_over(core: EngineCore, rounds: int) -> None:
    """Other prompts, as many as the device's pages hold several times."""
    for index in range(rounds):
        answers(core, {f"{index} {seed}": (tokens(90, 1000 + 7 * index + seed), sampling(2)) for seed in range(7)})


@pytest.mark.parametrize("overlap", OVERLAP)
def test_hit_on_the_device(overlap: bool, tiny: Path, alone: dict[str, Answer]) -> None:
    core = start(tiny, async_scheduling=overlap)
    first = _again(core, alone)
    second = _again(core, alone)
    assert second.prefix_hits - first.prefix_hits >= sum((len(prompt) - 1) // 8 * 8 for prompt, _ in PROBES.values())


@pytest.mark.parametrize("overlap", OVERLAP)
def test_hit_in_host_memory(overlap: bool, tiny: Path, alone: dict[str, Answer]) -> None:
    core = start(tiny, async_scheduling=overlap, num_gpu_blocks_override=40, swap_space=0.02)
    _again(core, alone)
    _turn_over(core, 2)
    before = core.stats()
    after = _again(core, alone)
    assert before.prefix_hits_host == 0 and after.prefix_hits_host > 0 and after.swapped_in > 0
    core.close(1.0)


@pytest.mark.parametrize("overlap", OVERLAP)
def test_hit_on_disk_and_after_a_restart_from_it(
    overlap: bool, tiny: Path, tmp_path: Path, alone: dict[str, Answer]
) -> None:
    config: dict[str, Any] = {
        "async_scheduling": overlap,
        "num_gpu_blocks_override": 40,
        "swap_space": 60 * page_bytes(tiny) / 2**30,
        "disk_cache_dir": tmp_path,
    }
    core = start(tiny, **config)
    _again(core, alone)
    _turn_over(core, 3)
    after = _again(core, alone)
    happened(after, "stored", "loaded", "prefix_hits_disk")
    core.close(10.0)
    core = start(tiny, **config)
    assert core.stats().disk_blocks > 0
    happened(_again(core, alone), "loaded", "prefix_hits_disk")
    core.close(10.0)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
    core = start(tiny, **config)
    after = _again(core, alone)
    assert after.prefix_hits_disk == after.loaded == 0
    core.close(10.0)


@pytest.mark.parametrize("slots", [12, 30])
def test_a_host_pool_smaller_than_what_a_step_displaces_leaves_whole_prefixes_on_disk(
    slots: int, tiny: Path, tmp_path: Path
) -> None:
    """Prompts of 24 pages, displaced by steps of 16; what lies on disk afterwards is hit from the first page on."""
    core = start(
        tiny,
        num_gpu_blocks_override=34,
        max_num_batched_tokens=128,
        swap_space=(slots + 3.5) * page_bytes(tiny) / 2**30,
        disk_cache_dir=tmp_path,
    )
    assert slots - 2 <= core.scheduler.kv_cache.tiers.num_slots <= slots + 1
    prompts = {f"r{index}": tokens(8 * 24 + 1, 50 + index) for index in range(6)}
    for name, prompt in prompts.items():
        add(core, name, prompt, sampling(1))
        finish(core, lambda: wait_until_stored(core))
    stats, tiers = core.stats(), core.scheduler.kv_cache.tiers
    least = min(tiers.num_slots, 24)
    for name, prompt in list(prompts.items())[:4]:
        hashes = page_hash.hash_pages(prompt, 8, b"")
        pages = [hashes[at : at + 16] in tiers.disk for at in range(0, len(hashes), 16)]
        whole = [*pages, False].index(False)
        assert whole >= least, f"{name}: {pages}"
    assert stats.dropped == 0 if slots > 24 else stats.dropped > 0
    core.close(10.0)
    core = start(tiny, swap_space=0.05, disk_cache_dir=tmp_path)
    for name, prompt in list(prompts.items())[:4]:
        add(core, name, prompt, sampling(1))
        ((_, last),) = finish(core).values()
        assert last.num_cached_tokens >= 8 * least
    core.close(1.0)


def wait_until_stored(core: EngineCore) -> None:
    """Until the disk's thread has nothing to do: as it would be after a longer step."""
    deadline = time.monotonic() + 30
    disk = core.runner.disk
    while disk._writes or disk._writing is not None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    core.idle()


def page_bytes(model: Path) -> int:
    core = start(model, num_gpu_blocks_override=8)
    return core.runner.bytes_per_page


# --- the demo model


def test_the_demo_model_among_others_swapped_and_from_disk(tmp_path: Path) -> None:
    few = {name: PROBES[name] for name in ("greedy", "penalties", "choice 1")}
    expected = one_by_one(DEMO, few)
    config: dict[str, Any] = {
        "async_scheduling": True,
        "block_size": 16,
        "num_gpu_blocks_override": 24,
        "preemption_mode": "swap",
        "swap_space": 0.02,
        "disk_cache_dir": tmp_path,
        "max_num_batched_tokens": 200,
    }
    core = start(DEMO, **config)
    others = {name: OTHERS[name] for name in list(OTHERS)[::2]}
    found = answers(core, few | others)
    assert {name: found[name] for name in few} == expected
    happened(core.stats(), "preemptions_by_swap", "swapped_out", "swapped_in", "prefix_hits")
    core.close(10.0)
    core = start(DEMO, **config)
    assert answers(core, few) == expected
    happened(core.stats(), "loaded", "prefix_hits_disk")
    core.close(10.0)


# --- names that collide


def _all_alike(*_: Any) -> bytes:
    return b"x" * page_hash.HASH_BYTES


def _by_length(parent: bytes, _tokens: bytes) -> bytes:
    """The name of a page says how many there are before it, and nothing else."""
    before = parent[0] + 1 if parent[1:] == b"n" * (page_hash.HASH_BYTES - 1) else 0
    return bytes([before]) + b"n" * (page_hash.HASH_BYTES - 1)


@pytest.mark.parametrize("extend", [_all_alike, _by_length])
def test_names_that_collide_give_no_wrong_token(
    extend: Callable[[bytes, bytes], bytes],
    tiny: Path,
    tmp_path: Path,
    alone: dict[str, Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page_hash, "extend", extend)
    assert (
        len(
            set(
                map(str, (page_hash.hash_pages(prompt[:8], 8, b"") for prompt, _ in PROBES.values() if len(prompt) > 8))
            )
        )
        == 1
    )
    config: dict[str, Any] = {
        "num_gpu_blocks_override": 40,
        "swap_space": 60 * page_bytes(tiny) / 2**30,
        "disk_cache_dir": tmp_path,
    }
    core = start(tiny, **config)
    for _ in range(2):
        assert answers(core, PROBES) == alone
        _turn_over(core, 1)
    core.close(10.0)
    core = start(tiny, **config)
    _turn_over(core, 1)
    assert answers(core, PROBES) == alone
    core.close(10.0)


def test_tenants_share_nothing_and_get_the_same(tiny: Path, alone: dict[str, Answer]) -> None:
    core = start(tiny)
    for salt in (b"one", b"two"):
        prompt, asked = PROBES["greedy"]
        add(core, "greedy", prompt, asked, salt=salt)
        assert finish(core)["greedy"][0] == alone["greedy"]
        assert core.stats().prefix_hits == 0
    add(core, "greedy", prompt, asked, salt=b"one")
    assert finish(core)["greedy"][0] == alone["greedy"]
    assert core.stats().prefix_hits == (len(prompt) - 1) // 8 * 8
