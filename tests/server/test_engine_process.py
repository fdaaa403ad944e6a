"""The engine as a process, over its real socket: start, answers, aborts, garbage, failures, death."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engine_process import PATIENCE, EngineProcess
from octavo_server import ipc
from octavo_server.ipc import Abort, AddRequest, Failed, Outputs, Ready, SamplingParams, Shutdown, Starting
from octavo_server.step_ring import read_steps, steps_path
from tiny_models import config_json, write_checkpoint

PROMPT = [5, 9, 2, 44, 7]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, {**config_json("LlamaForCausalLM"), "eos_token_id": None})
    return folder


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[EngineProcess]:
    """One engine for all tests that leave it as it was."""
    with EngineProcess(model, max_num_batched_tokens=16) as process:
        process.ready()
        yield process


def test_the_start_is_told_phase_by_phase_and_ends_with_ready(engine: EngineProcess) -> None:
    starting = [message for message in engine.inbox if isinstance(message, Starting)]
    assert [message.phase for message in starting] == [
        "import",
        "load weights",
        "measure memory",
        "allocate cache",
        "warm up",
    ]
    assert [message.seconds for message in starting] == sorted(message.seconds for message in starting)
    ready = next(message for message in engine.inbox if isinstance(message, Ready))
    assert list(ready.phases) == [message.phase for message in starting]
    assert ready.figures["weights_bytes"] > 0 and ready.figures["weights_seconds"] > 0
    assert (ready.version, ready.max_model_len, ready.block_size) == (ipc.PROTOCOL_VERSION, 512, 16)
    assert ready.num_blocks == 256 * 512 // 16


def test_the_first_word_comes_before_anything_heavy_is_imported() -> None:
    code = (
        "import sys, octavo_server.engine_process; "
        "print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_requests_are_answered_step_by_step_and_the_pages_come_back(engine: EngineProcess) -> None:
    engine.add("one", PROMPT, max_tokens=6)
    engine.add("two", PROMPT * 8, max_tokens=4, logprobs=2, prompt_logprobs=1)
    done = engine.finish("one", "two")
    assert [len(done[name][0]) for name in ("one", "two")] == [6, 4]
    assert [output.finish_reason for output in engine.results["one"]] == [None] * 5 + ["length"]
    prompt_logprobs = engine.results["two"][0].prompt_logprobs
    assert prompt_logprobs is not None and len(prompt_logprobs) == 40 and prompt_logprobs[0] is None
    assert all(entry is not None and len(entry.token_ids) == 2 for entry in prompt_logprobs[1:])
    for output in engine.results["two"]:
        assert output.logprobs is not None and len(output.logprobs[0].token_ids) == 3
    assert engine.idle().kv_blocks_used == 0


def test_an_abort_ends_a_request_in_mid_answer(engine: EngineProcess) -> None:
    engine.add("endless", PROMPT, max_tokens=400)
    engine.add("brief", PROMPT, max_tokens=3)
    engine.finish("brief")
    engine.abort("endless", "unheard of")
    tokens, last = engine.finish("endless")["endless"]
    assert last.finish_reason == "abort" and len(tokens) < 400
    assert engine.idle().kv_blocks_used == 0


def test_a_request_that_cannot_be_served_is_refused_alone(engine: EngineProcess) -> None:
    engine.add("long", [1] * 600)
    engine.add("fine", PROMPT, max_tokens=2)
    done = engine.finish("long", "fine")
    assert done["long"][1].finish_reason == "error" and "600" in (done["long"][1].error or "")
    assert len(done["fine"][0]) == 2


def test_messages_of_another_epoch_are_dropped(engine: EngineProcess) -> None:
    engine.send(AddRequest(engine.epoch + 1, "stale", PROMPT, SamplingParams(), 0.0))
    engine.send(Shutdown(engine.epoch - 1))
    engine.add("fresh", PROMPT, max_tokens=2)
    engine.finish("fresh")
    assert "stale" not in engine.results


def test_garbage_and_pickles_are_dropped_and_nothing_is_done(engine: EngineProcess, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle = b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."  # runs a command where it is opened
    for frame in (pickle, b"", b"\x00" * 1000, b"\xc1", b'{"type": "Shutdown", "epoch": 7}', b"\x81\xa4type\xa4Nope"):
        engine.socket.send(frame)
    engine.socket.send(msgspec.msgpack.encode({"type": "AddRequest", "epoch": engine.epoch, "request_id": 5}))
    engine.socket.send_multipart([ipc.encoder.encode(Shutdown(engine.epoch)), b"second frame"])
    engine.add("after garbage", PROMPT, max_tokens=2)
    assert len(engine.finish("after garbage")["after garbage"][0]) == 2
    assert not canary.exists()
    assert engine.log.read_text().count("none of ours") == 1


def test_an_id_in_use_does_not_disturb_its_owner(engine: EngineProcess) -> None:
    engine.add("twin", PROMPT, max_tokens=20)
    engine.add("twin", PROMPT[::-1], max_tokens=20)
    engine.add("single", PROMPT, max_tokens=20)
    done = engine.finish("twin", "single")
    assert done["twin"][0] == done["single"][0]


def test_the_same_request_gives_the_same_tokens_alone_and_among_others(engine: EngineProcess) -> None:
    engine.add("alone", PROMPT, temperature=1.0, seed=3, max_tokens=30)
    engine.finish("alone")
    for index in range(6):
        engine.add(f"other {index}", PROMPT[: 1 + index % 5] * (index + 1), temperature=1.0, seed=index, max_tokens=25)
    engine.add("among", PROMPT, temperature=1.0, seed=3, max_tokens=30)
    engine.add("another seed", PROMPT, temperature=1.0, seed=4, max_tokens=30)
    done = engine.finish("alone", "among", "another seed")
    assert done["alone"][0] == done["among"][0] != done["another seed"][0]


def test_an_idle_engine_beats_and_sleeps(engine: EngineProcess) -> None:
    engine.idle()

    def cpu_seconds() -> float:
        fields = Path(f"/proc/{engine.engine_pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = cpu_seconds()
    beats = [engine.wait_for(Outputs) for _ in range(3)]
    assert all(beat.outputs == [] for beat in beats)
    assert cpu_seconds() - before < 0.15


def test_ctrl_c_is_left_to_the_api_process(engine: EngineProcess) -> None:
    os.kill(engine.engine_pid, signal.SIGINT)
    engine.add("after ctrl-c", PROMPT, max_tokens=2)
    engine.finish("after ctrl-c")


# Each part of a step takes longer than the heart's interval.
PLODDING = """
import time
from octavo_server import engine_process as process
from octavo_server.worker.models.decoder import Decoder
process.HEARTBEAT_SECONDS = 0.01
def slow(self, batch, kv_cache, on_progress, rows):
    def plod():
        time.sleep(0.02)
        on_progress()
    return quick(self, batch, kv_cache, plod, rows)
quick, Decoder.forward = Decoder.forward, slow
"""


WAITING_BRIEFLY = """
from octavo_server.engine import core
core._WAIT_SECONDS = 0.01
"""

# A step of a request hangs for good, in its first layer.
HANGING = """
import time
from octavo_server.worker.models.decoder import Decoder
def hanging(self, batch, kv_cache, on_progress, rows):
    while len(batch.token_ids) == 5:  # no step of the start has so many
        time.sleep(0.01)
    return quick(self, batch, kv_cache, on_progress, rows)
quick, Decoder.forward = Decoder.forward, hanging
"""


def test_the_heart_beats_within_a_long_step_as_its_layers_get_done(model: Path) -> None:
    with EngineProcess(model, prelude=PLODDING) as engine:
        engine.ready()
        engine.add("long", PROMPT, max_tokens=1)
        engine.wait_for(Outputs, lambda message: bool(message.outputs))
        beats = [message for message in engine.inbox if isinstance(message, Outputs) and not message.outputs]
        # Only a step that is under way has a request running and no result.
        assert (
            len([beat for beat in beats if beat.stats.running == 1])
            == 2 * config_json("LlamaForCausalLM")["num_hidden_layers"]
        )


def test_the_heart_beats_within_a_long_step_on_a_thread_of_its_own(model: Path) -> None:
    with EngineProcess(model, prelude=PLODDING + WAITING_BRIEFLY, async_scheduling=True) as engine:
        engine.ready()
        engine.add("long", PROMPT, max_tokens=1)
        engine.wait_for(Outputs, lambda message: bool(message.outputs))
        beats = [message for message in engine.inbox if isinstance(message, Outputs) and not message.outputs]
        assert any(beat.stats.running == 1 for beat in beats)


def test_an_engine_whose_step_hangs_falls_silent(model: Path) -> None:
    with EngineProcess(model, prelude=HANGING + WAITING_BRIEFLY, async_scheduling=True) as engine:
        engine.ready()
        engine.idle()
        engine.add("long", PROMPT, max_tokens=1)
        while engine.socket.poll(2000):  # four times the heart's interval
            message = engine.receive()
            assert isinstance(message, Outputs) and message.stats.running == 0  # from before the step


def test_the_steps_before_a_kill_can_be_read(model: Path) -> None:
    with EngineProcess(model) as engine:
        engine.ready()
        engine.add("open", PROMPT, max_tokens=400)
        for _ in range(20):
            engine.wait_for(Outputs, lambda message: bool(message.outputs))
        engine.process.kill()
        engine.wait_for_exit()
        steps = read_steps(steps_path(engine.path))
        assert len(steps) >= 20 and all("1 running" in step for step in steps[1:])
        assert steps[0].startswith("1 ") and "5 tokens (5 of prefill)" in steps[0] and "done in" in steps[0]


# Prompts with token 13 or 14 break the step that they are in, those with 15 get logits that are no numbers.
BROKEN = """
import torch
from octavo_server.worker import next_tokens
from octavo_server.worker.input_batch import InputBatch
build = InputBatch.build
def prompt(row):  # of none but these requests: the start rehearses steps with any tokens
    mine = row.state.request_id.startswith(("culprit", "second"))
    return row.state.token_ids[:row.state.num_prompt] if mine else []
def broken_build(self, rows):
    if any(13 in prompt(row) for row in rows):
        raise torch.OutOfMemoryError("secret")
    if any(14 in prompt(row) for row in rows):
        raise ValueError("secret /path")
    return build(self, rows)
def broken_draw(self, rows, slot, logits, masks=None):
    def broken_logits(part):
        found = logits(part)
        for index, row in enumerate(rows[part]):
            if 15 in prompt(row):
                found[index] = torch.nan
        return found
    return healthy(self, rows, slot, broken_logits, masks)
InputBatch.build = broken_build
healthy, next_tokens.NextTokens.draw = next_tokens.NextTokens.draw, broken_draw
"""


@pytest.fixture(scope="module")
def broken_engine(model: Path) -> Iterator[EngineProcess]:
    with EngineProcess(model, prelude=BROKEN, max_num_seqs=2) as process:
        process.ready()
        yield process


@pytest.mark.parametrize(("token", "words"), [(13, "out of memory"), (14, "the engine failed")])
def test_a_step_that_breaks_fails_its_requests_and_no_others(
    broken_engine: EngineProcess, token: int, words: str
) -> None:
    engine, hit, culprit, waiting = broken_engine, f"hit {token}", f"culprit {token}", f"waiting {token}"
    engine.add(hit, PROMPT, max_tokens=400)
    engine.wait_for(Outputs, lambda message: bool(message.outputs))
    engine.add(culprit, [token], max_tokens=5)
    engine.add(waiting, PROMPT, max_tokens=50)  # at most two at a time
    done = engine.finish(hit, culprit, waiting)
    for name in (hit, culprit):
        assert done[name][1].finish_reason == "error"
        assert words in (done[name][1].error or "") and "secret" not in (done[name][1].error or "")
    assert done[waiting][1].finish_reason == "length" and len(done[waiting][0]) == 50
    assert done[hit][0][:50] == done[waiting][0][: len(done[hit][0])]
    assert engine.idle().kv_blocks_used == 0
    assert "secret" in engine.log.read_text()


def test_a_row_of_nan_fails_its_request_alone(broken_engine: EngineProcess) -> None:
    engine = broken_engine
    engine.add("first", PROMPT, max_tokens=40)
    engine.wait_for(Outputs, lambda message: bool(message.outputs))
    engine.add("second", [15], max_tokens=40)
    done = engine.finish("first", "second")
    assert done["first"][1].finish_reason == "length" and len(done["first"][0]) == 40
    assert done["second"][1].finish_reason == "error" and "finite" in (done["second"][1].error or "")


def test_a_start_that_fails_says_why_in_one_line(model: Path) -> None:
    with EngineProcess(model, max_model_len=400, num_gpu_blocks_override=5) as engine:
        while not isinstance(message := engine.receive(), Failed):
            pass
        assert "raise --num-gpu-blocks-override to 25" in message.message and "\n" not in message.message
        assert engine.wait_for_exit() == 1


def test_without_a_start_message_it_says_who_starts_it() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "octavo_server.engine_process"], input=b"hello\n", capture_output=True
    )
    assert result.returncode == 1
    assert b"is started by octavo serve" in result.stderr


def test_shutdown_ends_it_with_status_0(model: Path) -> None:
    with EngineProcess(model) as engine:
        engine.ready()
        engine.add("open", PROMPT, max_tokens=400)
        engine.send(Shutdown(engine.epoch))
        assert engine.wait_for_exit() == 0


def test_sigterm_ends_it_after_the_step(model: Path) -> None:
    with EngineProcess(model) as engine:
        engine.ready()
        engine.add("open", PROMPT, max_tokens=400)
        engine.wait_for(Outputs, lambda message: bool(message.outputs))
        engine.process.terminate()
        assert engine.wait_for_exit() == 0


@pytest.mark.parametrize("when", ["at the start", "in mid-answer"])
def test_it_dies_with_a_parent_that_was_killed(model: Path, when: str) -> None:
    with EngineProcess(model, between=True) as engine:
        if when == "at the start":
            engine.wait_for(Starting)
        else:
            engine.ready()
            engine.add("open", PROMPT, max_tokens=400)
            engine.wait_for(Outputs, lambda message: bool(message.outputs))
        with contextlib.closing(_ProcessHandle(engine.engine_pid)) as handle:
            engine.process.kill()
            assert handle.wait(PATIENCE), "the engine lives on"


def test_it_ends_when_stdin_does_where_the_kernel_did_not_end_it(model: Path) -> None:
    """As after a parent that was killed before the engine could ask the kernel to follow it."""
    unasked = "import octavo_server.engine_process as p; p._die_with_parent = lambda: None"
    with EngineProcess(model, prelude=unasked, between=True) as engine:
        engine.ready()
        with contextlib.closing(_ProcessHandle(engine.engine_pid)) as handle:
            engine.process.kill()
            assert handle.wait(PATIENCE), "the engine lives on"


class _ProcessHandle:
    """A process that need not be a child, followed to its end."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def wait(self, seconds: float) -> bool:
        return bool(select.select([self._fd], [], [], seconds)[0])

    def close(self) -> None:
        os.close(self._fd)


def test_an_abort_of_nothing_is_nothing(engine: EngineProcess) -> None:
    engine.send(Abort(engine.epoch, []))
    engine.abort("never", "seen")
    engine.add("after nothing", PROMPT, max_tokens=1)
    engine.finish("after nothing")
    assert "never" not in engine.results
