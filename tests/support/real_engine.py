"""A real engine in this process: a checkpoint, start_engine, and requests driven to their end."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from octavo_server import page_hash
from octavo_server.config import EngineConfig
from octavo_server.engine.core import EngineCore
from octavo_server.engine_process import STALL_SECONDS
from octavo_server.engine_start import start_engine
from octavo_server.ipc import AddRequest, RequestOutput, SamplingParams, TokenLogprobs
from octavo_server.step import SchedulerOutput
from octavo_server.worker import memory

Asked = tuple[list[int], SamplingParams]
Answer = list[tuple[int, TokenLogprobs]]


def start(model: Path, **config: Any) -> EngineCore:
    """An engine on the CPU with 2048 pages of 8 tokens, if nothing else is said, and all of its host memory.

    The step that a start measures, by which nothing is decided on a CPU, is a small one: `test_measured_memory` has
    the real one.
    """
    defaults: dict[str, Any] = {"model": model, "device": "cpu", "block_size": 8, "num_gpu_blocks_override": 2048}
    with mock.patch.object(memory, "_CPU_OPERATIONS", 1e7):
        core = start_engine(EngineConfig(**{**defaults, **config}), lambda _phase: None)
    while core.idle():
        continue
    core.idle()  # takes in what the last call brought
    return core


def add(core: EngineCore, name: str, prompt: list[int], sampling: SamplingParams, **fields: Any) -> None:
    """As it comes from the API process."""
    salt = fields.setdefault("salt", b"")
    hashes = page_hash.hash_pages(prompt, core.scheduler.kv_cache.block_size, salt)
    assert core.add(AddRequest(1, name, prompt, sampling, 0.0, page_hashes=hashes, **fields)) == []


def finish(
    core: EngineCore, after_step: Callable[[], object] = lambda: None
) -> dict[str, tuple[Answer, RequestOutput]]:
    """Runs all requests to their end: tokens with log-probabilities, and the last output. No page is held then."""
    answers: dict[str, Answer] = {}
    last: dict[str, RequestOutput] = {}
    while core.has_work:
        for output in core.step():
            answers.setdefault(output.request_id, []).extend(zip(output.token_ids, output.logprobs or (), strict=True))
            last[output.request_id] = output
        after_step()
        if core.is_stalled:  # all wait for the disk
            time.sleep(STALL_SECONDS)
    assert_nothing_is_held(core)
    return {name: (answers[name], last[name]) for name in answers}


def assert_nothing_is_held(core: EngineCore) -> None:
    """No page by a request, no slot of host memory, and every page is in one place."""
    kv_cache = core.scheduler.kv_cache
    tiers = kv_cache.tiers
    assert core.stats().kv_blocks_used == 0
    assert all(block.ref_count == 0 for block in kv_cache.pool.blocks)
    loading = sum(page.loading for page in kv_cache.index.pages.values())
    assert (tiers.num_pinned, len(tiers.free_slots) + len(tiers.cached) + loading) == (loading, tiers.num_slots)
    assert len(core.runner.batch.states) <= len(core.scheduler._finished_ids)


def answers(core: EngineCore, requests: Mapping[str, Asked]) -> dict[str, Answer]:
    """What requests that come together are answered; none of them ends with an error."""
    for name, (prompt, sampling) in requests.items():
        add(core, name, prompt, sampling)
    found = finish(core)
    assert [last.error for _, last in found.values() if last.error is not None] == []
    return {name: answer for name, (answer, _) in found.items()}


def poison_free_pages(core: EngineCore) -> None:
    """From now on a page that is free and holds nothing of use is full of NaN when a step begins.

    Whoever reads such a page does not get through. Not with overlap: a step under way may still read what is free.
    """
    assert not core.overlap
    launch, pool = core.runner.launch, core.scheduler.kv_cache.pool

    def launch_poisoned(output: SchedulerOutput, on_progress: Callable[[], None]) -> Any:
        leaving = {page for page, _ in output.swap_out}
        free = torch.tensor([page for page in pool.empty if page not in leaving], dtype=torch.int64)
        for k, v in core.runner.kv_cache:
            k[free] = torch.nan
            v[free] = torch.nan
        return launch(output, on_progress)

    core.runner.launch = launch_poisoned
