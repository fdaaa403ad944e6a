"""Messages to the engine's loop: between two steps only a moment of them, and aborts before what waits."""

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from engine_fakes import FakeEngine
from octavo_server import engine_process, ipc
from octavo_server.engine_process import EngineLoop

GREEDY = ipc.SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
GARBAGE = [b"", b"\x80", b"\x83\xa4type\xaaAddRequest", b"\x83\xa4type\xaaAddChoices\xa5epoch", b"\x80\x04\x95."]


class Frames:
    """A channel in this process: what is put there arrives, and what is sent is kept."""

    epoch = 1

    def __init__(self) -> None:
        self.arriving: deque[bytes] = deque()
        self.sent: list[ipc.EngineMessage] = []
        self.log: list[str] = []  # requests, aborts and steps in their order

    def put(self, *messages: ipc.FrontendMessage | bytes) -> None:
        self.arriving.extend(one if isinstance(one, bytes) else ipc.encoder.encode(one) for one in messages)

    def receive(self, _timeout: float) -> list[bytes]:
        found = list(self.arriving)
        self.arriving.clear()
        return found

    def decode(self, frame: bytes) -> ipc.FrontendMessage | None:
        try:
            message: ipc.FrontendMessage = ipc.frontend_decoder.decode(frame)
        except Exception:
            return None
        return message if message.epoch == self.epoch else None

    def send(self, message: ipc.EngineMessage) -> None:
        self.sent.append(message)


class Loop:
    """The real loop over a fake engine, whose clock advances by a second with every request that is added."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.channel = Frames()
        self.core = FakeEngine(
            num_blocks=1000, block_size=16, max_num_seqs=64, max_num_batched_tokens=64, max_model_len=1024
        ).core
        self.log: list[str] = []
        self._now = 0.0
        self.loop = EngineLoop(self.core, self.channel)  # type: ignore[arg-type]
        monkeypatch.setattr(engine_process, "stdin_ended", lambda: False)
        monkeypatch.setattr(engine_process, "time", SimpleNamespace(monotonic=lambda: self._now))
        add, abort, step = self.core.add, self.core.abort, self.core.step

        def logged_add(message: ipc.AddRequest) -> Any:
            self.log.append(message.request_id)
            self._now += 1.0
            return add(message)

        def logged_abort(request_ids: list[str]) -> Any:
            self.log.append(f"abort {' '.join(request_ids)}")
            return abort(request_ids)

        def logged_step(on_progress: Any) -> Any:
            self.log.append("step")
            outputs = step(on_progress)
            self.loop.stopping = not self.core.has_work and self.loop._inbox.is_empty
            return outputs

        monkeypatch.setattr(self.core, "add", logged_add)
        monkeypatch.setattr(self.core, "abort", logged_abort)
        monkeypatch.setattr(self.core, "step", logged_step)

    def run(self) -> dict[str, str]:
        """Until all is done; how each request ended."""
        self.loop.run()
        outputs = [output for message in self.channel.sent for output in getattr(message, "outputs", [])]
        return {output.request_id: output.finish_reason for output in outputs if output.finish_reason}


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(monkeypatch)


def request(request_id: str, epoch: int = 1) -> ipc.AddRequest:
    return ipc.AddRequest(epoch, request_id, [5, 6, 7], GREEDY, 0.0)


def test_however_many_messages_there_are_steps_go_on_between_them(loop: Loop) -> None:
    names = [f"r{index}" for index in range(20)]
    loop.channel.put(*map(request, names))
    assert loop.run() == dict.fromkeys(names, "length")
    begun = [at for at, entry in enumerate(loop.log) if entry.startswith("r")]
    assert all(loop.log[at + 1] == "step" for at in begun), loop.log


def test_the_choices_of_a_prompt_are_many_messages_in_one(loop: Loop) -> None:
    others = [(f"r{index}", GREEDY) for index in range(1, 20)]
    loop.channel.put(ipc.AddChoices(1, request("r0"), others))
    assert loop.run() == dict.fromkeys([f"r{index}" for index in range(20)], "length")
    assert [entry for entry in loop.log if entry != "step"] == [f"r{index}" for index in range(20)]
    assert loop.log[:4] == ["r0", "step", "r1", "step"]


def test_an_abort_goes_before_requests_that_wait_and_takes_its_own_out(loop: Loop) -> None:
    others = [(f"r{index}", GREEDY) for index in range(1, 10)]
    loop.channel.put(request("first"), ipc.AddChoices(1, request("r0"), others))
    loop.channel.put(ipc.Abort(1, ["first", "r0", "r3", "r9"]), request("last"))
    ended = loop.run()
    assert loop.log[0] == "abort first r0 r3 r9"
    left = ["r1", "r2", *(f"r{index}" for index in range(4, 9)), "last"]
    assert [entry for entry in loop.log[1:] if entry != "step"] == left
    assert ended == dict.fromkeys(left, "length")


def test_an_abort_that_comes_between_two_choices_takes_out_those_that_wait_and_ends_those_that_run(loop: Loop) -> None:
    others = [(f"r{index}", GREEDY) for index in range(1, 6)]
    loop.channel.put(ipc.AddChoices(1, request("r0"), others))
    step, steps = loop.core.step, iter(range(1000))

    def then_abort(on_progress: Any) -> Any:
        if next(steps) == 1:
            loop.channel.put(ipc.Abort(1, ["r1", "r2", "r5"]))
        return step(on_progress)

    loop.core.step = then_abort  # type: ignore[method-assign]
    ended = loop.run()
    assert [entry for entry in loop.log if entry.startswith("r")] == ["r0", "r1", "r3", "r4"]
    assert {name: ended.get(name) for name in ("r0", "r3", "r4")} == dict.fromkeys(("r0", "r3", "r4"), "length")
    assert "r1" not in loop.core.scheduler.requests


def test_after_an_abort_an_id_may_come_again(loop: Loop) -> None:
    loop.channel.put(request("a"), ipc.Abort(1, ["a"]))
    loop.loop._inbox.fill(0.0)
    assert [type(message).__name__ for message in loop.loop._inbox.messages()] == ["Abort"]
    assert loop.loop._inbox.is_empty
    loop.channel.put(request("a"))
    assert loop.run() == {"a": "length"}


def test_garbage_and_other_epochs_among_messages_do_nothing(loop: Loop) -> None:
    loop.channel.put(*GARBAGE, request("old", epoch=2), ipc.Abort(2, ["new"]), request("new"), *GARBAGE)
    loop.channel.put(ipc.AddChoices(2, request("older", epoch=2), [("oldest", GREEDY)]))
    assert loop.run() == {"new": "length"}
    assert [entry for entry in loop.log if entry != "step"] == ["new"]


def test_what_brings_requests_is_known_by_its_first_bytes() -> None:
    one = request("a")
    assert all(map(ipc.brings_requests, map(ipc.encoder.encode, (one, ipc.AddChoices(1, one, [])))))
    assert not any(map(ipc.brings_requests, map(ipc.encoder.encode, (ipc.Abort(1, ["a"]), ipc.Shutdown(1)))))
