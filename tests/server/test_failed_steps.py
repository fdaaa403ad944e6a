"""A step that fails ends the requests in it, with or without steps behind it and pages on the move, and no others."""

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import torch

import serving
import tiny_tokenizers
from octavo_server.engine.core import EngineCore
from octavo_server.engine_process import STALL_SECONDS
from octavo_server.errors import EngineError
from octavo_server.ipc import RequestOutput, SamplingParams
from octavo_server.step import SchedulerOutput
from octavo_server.step_ring import StepRing
from real_engine import Answer, Asked, add, answers, assert_nothing_is_held, start
from tiny_models import config_json, write_checkpoint

ERRORS: Final = {
    "out_of_memory": torch.OutOfMemoryError("secret"),
    "internal": ValueError("secret"),
}
TIGHT: Final[dict[str, Any]] = {
    "num_gpu_blocks_override": 16,
    "max_model_len": 96,
    "max_num_batched_tokens": 24,
    "preemption_mode": "swap",
    "swap_space": 0.01,
}
REQUESTS: Final[dict[str, Asked]] = {
    f"r{index}": (
        [(5 + index % 3 * 11 + 7 * position) % 131 for position in range(20 + index)],
        SamplingParams(temperature=index % 2 * 0.8, seed=index, max_tokens=24, ignore_eos=True, logprobs=1),
    )
    for index in range(16)
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer, so that it can be served too."""
    folder = tmp_path_factory.mktemp("failing")
    tokenizer = tiny_tokenizers.byte_level_bpe()
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 4096, "num_hidden_layers": 2}
    write_checkpoint(folder, config_json("LlamaForCausalLM", **sizes))
    return tiny_tokenizers.save(tokenizer, folder, chat_template=tiny_tokenizers.CHATML)


@pytest.fixture(scope="module")
def undisturbed(model: Path) -> dict[str, Answer]:
    return answers(start(model), REQUESTS)


class Fault:
    """Breaks the first step, from the `after`th on, whose moves are `wanted`; `hit` says that it did.

    Before the model computes, or, with `at_the_end`, when K and V are in their pages.
    """

    def __init__(
        self, core: EngineCore, error: Exception, wanted: Callable[[SchedulerOutput], Any], *, at_the_end: bool
    ) -> None:
        self.hit = threading.Event()
        self._error, self._wanted, self._armed, self._steps = error, wanted, False, 0
        runner: Any = core.runner
        self._move, self._forward = runner.swapper.launch, runner.decoder.forward
        self._at_the_end = at_the_end
        runner.swapper.launch, runner.decoder.forward = self._launch, self._break

    def _launch(self, output: SchedulerOutput, in_flight_pages: Collection[int]) -> None:
        """Called just before the step is computed, on the same thread."""
        self._move(output, in_flight_pages)
        self._steps += 1
        work = output.num_scheduled_tokens
        self._armed = self._steps > 30 and bool(work and self._wanted(output)) and not self.hit.is_set()

    def _break(self, *arguments: Any) -> Any:
        if not self._armed:
            return self._forward(*arguments)
        self.hit.set()
        if self._at_the_end:
            self._forward(*arguments)
        raise self._error


def drive(core: EngineCore, requests: dict[str, Asked]) -> tuple[dict[str, Answer], dict[str, RequestOutput]]:
    """Each request's answer, as far as it came, and its last output."""
    for name, (prompt, sampling) in requests.items():
        add(core, name, prompt, sampling)
    found: dict[str, Answer] = {name: [] for name in requests}
    last: dict[str, RequestOutput] = {}
    while core.has_work:
        for output in core.step():
            found[output.request_id] += zip(output.token_ids, output.logprobs or (), strict=True)
            last[output.request_id] = output
        if core.is_stalled:
            time.sleep(STALL_SECONDS)
    assert_nothing_is_held(core)
    return found, last


MOVES: Final[dict[str, Callable[[SchedulerOutput], Any]]] = {
    "any": lambda _output: True,
    "in": lambda output: output.swap_in,
    "out": lambda output: output.swap_out,
    "prefill": lambda output: max(output.num_scheduled_tokens.values()) > 1,
}


@pytest.mark.parametrize("overlap", [False, True], ids=["step by step", "overlap"])
@pytest.mark.parametrize("moves", MOVES)
@pytest.mark.parametrize("kind", ERRORS)
def test_a_step_that_fails_ends_its_requests_and_no_others(
    kind: str,
    moves: str,
    overlap: bool,
    model: Path,
    undisturbed: dict[str, Answer],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    core = start(model, async_scheduling=overlap, **TIGHT)
    core.ring = StepRing(tmp_path / "steps")
    fault = Fault(core, ERRORS[kind], MOVES[moves], at_the_end=kind == "internal")
    caplog.set_level(logging.ERROR)
    found, last = drive(core, REQUESTS)
    failed = {name for name, output in last.items() if output.finish_reason == "error"}
    assert fault.hit.is_set() and failed and len(failed) < len(REQUESTS)
    assert {last[name].error_kind for name in failed} == {kind}
    assert not any("secret" in str(last[name].error) for name in failed)
    for name, answer in found.items():
        whole = undisturbed[name]
        assert answer == (whole[: len(answer)] if name in failed else whole)
    (told,) = [text for text in caplog.messages if text.startswith("the last steps:")]
    assert told.count("\n") == 10 and "done in" in told and "failed" in told
    # What is in the cache now is right: everything is hit, and answered as if nothing had been.
    again, last = drive(core, REQUESTS)
    assert again == undisturbed
    assert sum(output.error is not None for output in last.values()) == 0
    assert core.stats().prefix_hits > 0
    core.ring.close()
    core.close(1.0)


def test_pages_that_could_not_be_moved_end_the_engine_rather_than_give_wrong_tokens(model: Path) -> None:
    """The scheduler counts on moves: after one that failed nobody knows what stands where."""
    core = start(model, **TIGHT)
    runner: Any = core.runner
    move = runner.swapper.launch

    def broken(output: SchedulerOutput, in_flight_pages: Collection[int]) -> None:
        if output.swap_in:
            raise torch.OutOfMemoryError("secret")
        move(output, in_flight_pages)

    runner.swapper.launch = broken
    with pytest.raises(EngineError, match="pages could not be moved"):
        drive(core, REQUESTS)


# --- over HTTP

# The first step in which a file is there fails, and takes it away.
BREAK_ONCE: Final = """
import os, torch
from pathlib import Path
from octavo_server.worker.models.decoder import Decoder
flag, forward = Path(os.environ["BREAK_FLAG"]), Decoder.forward
def broken(self, *arguments):
    hidden = forward(self, *arguments)
    if flag.exists():
        flag.unlink()
        raise torch.OutOfMemoryError("secret: tried to allocate at 0x7f")
    return hidden
Decoder.forward = broken
"""


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    return tmp_path / "flag"


@pytest.fixture
def server(model: Path, flag: Path) -> Iterator[serving.ServerProcess]:
    """With overlap, where a step may be behind the one that fails; what becomes of requests is looked at above."""
    config = {"async_scheduling": True, "swap_space": 0.01}
    with serving.serve(model, fake=False, prelude=BREAK_ONCE, env={"BREAK_FLAG": str(flag)}, **config) as server:
        server.wait_until_ready()
        yield server


def test_out_of_memory_is_a_503_for_those_in_the_step_and_the_next_request_succeeds(
    server: serving.ServerProcess, flag: Path
) -> None:
    body = {"model": "tiny", "prompt": "hello world", "max_tokens": 3000, "ignore_eos": True, "temperature": 0}
    url = f"{server.url}/v1/completions"
    engine = server.engine_pid()
    with ThreadPoolExecutor(2) as pool:
        open_ones = [pool.submit(httpx.post, url, json=body, timeout=serving.PATIENCE_SECONDS) for _ in range(2)]
        serving.until(lambda: server.metric("vllm:num_requests_running") == 2)
        flag.touch()
        replies = [future.result() for future in open_ones]
    assert [reply.status_code for reply in replies] == [503, 503]
    for reply in replies:
        assert reply.json()["error"]["code"] == "out_of_memory"
        assert "out of memory" in reply.json()["error"]["message"] and "secret" not in reply.text
    first, second = (
        httpx.post(url, json=body | {"max_tokens": 20}, timeout=serving.PATIENCE_SECONDS) for _ in range(2)
    )
    assert first.status_code == second.status_code == 200
    assert first.json()["choices"][0]["text"] == second.json()["choices"][0]["text"] != ""
    serving.until(lambda: server.metric("octavo:kv_pages", state="used") == 0)
    assert server.engine_pid() == engine and httpx.get(f"{server.url}/ready").status_code == 200
    assert "the last steps:" in server.log and "failed: OutOfMemoryError" in server.log
    os.kill(engine, 0)
