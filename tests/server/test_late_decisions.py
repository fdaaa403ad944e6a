"""With overlap the next step is decided as late as can be: what comes meanwhile joins it, the device never waits.

A device of known speed, a host of known speed and a socket, all on one clock that the test advances.
"""

from types import SimpleNamespace
from typing import Any

import pytest

from engine_fakes import FakeEngine, FakeHandle
from octavo_server import engine_process, ipc
from octavo_server.engine_process import EngineLoop
from octavo_server.step import SchedulerOutput
from octavo_server.step_meter import StepMeter

HOST, STEP = 0.0004, 0.010  # seconds that a launch takes, and that a step takes


class Machine:
    """The real loop; its messages come at times."""

    epoch = 1

    def __init__(self, monkeypatch: pytest.MonkeyPatch, host: float = HOST, max_num_seqs: int = 8) -> None:
        fake = FakeEngine(overlap=True, num_blocks=500, max_model_len=512, max_num_seqs=max_num_seqs)
        self.clock, self.core, self.host = fake.clock, fake.core, host
        self.arriving: list[tuple[float, ipc.FrontendMessage]] = []
        self.begins: list[tuple[float, SchedulerOutput]] = []  # of each step on the device
        self.idle: list[float] = []  # seconds that the device waited before each
        self._free = 0.0  # when the device is through with all it has
        self._launch = fake.runner.launch
        monkeypatch.setattr(fake.runner, "launch", self.launch)
        monkeypatch.setattr(engine_process, "stdin_ended", lambda: not (self.core.has_work or self.arriving))
        monkeypatch.setattr(engine_process, "time", SimpleNamespace(monotonic=self.clock))
        self.loop = EngineLoop(self.core, self)  # type: ignore[arg-type]

    def launch(self, output: SchedulerOutput, on_progress: Any) -> FakeHandle:
        self.clock.now += self.host
        handle = self._launch(output, on_progress)
        if not output.num_scheduled_tokens:
            return handle
        begin = max(self._free, self.clock.now)
        self.idle.append(begin - self._free)
        self.begins.append((begin, output))
        self._free = end = begin + STEP
        wait = handle.wait

        def until_it_is_through(timeout: float | None = None) -> Any:
            self.clock.now = max(self.clock.now, end)
            return wait(timeout)

        handle.wait = until_it_is_through  # type: ignore[method-assign]
        return handle

    def receive(self, timeout: float) -> list[bytes]:
        end = self.clock.now + int(1000 * timeout) / 1000
        if self.arriving and self.arriving[0][0] <= end:
            self.clock.now = max(self.clock.now, self.arriving[0][0])
            return [ipc.encoder.encode(self.arriving.pop(0)[1])]
        self.clock.now = end
        return []

    def decode(self, frame: bytes) -> ipc.FrontendMessage:
        message: ipc.FrontendMessage = ipc.frontend_decoder.decode(frame)
        return message

    def send(self, _message: ipc.EngineMessage) -> None:
        pass

    def ask(self, when: float, name: str, max_tokens: int) -> None:
        sampling = ipc.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        self.arriving.append((when, ipc.AddRequest(1, name, [5, 6, 7], sampling, 0.0)))

    def first_step(self, name: str) -> float:
        """When the first step with tokens of the request began."""
        return next(begin for begin, output in self.begins if name in output.num_scheduled_tokens)


def test_a_request_joins_the_step_that_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.ask(0.0, "first", 60)
    arrivals = [0.203 + 0.0407 * index for index in range(8)]  # anywhere within a step
    for index, when in enumerate(arrivals):
        machine.ask(when, f"late {index}", 2)
    machine.loop.run()
    waits = [machine.first_step(f"late {index}") - when for index, when in enumerate(arrivals)]
    assert all(0 <= wait <= STEP + 2 * HOST + 0.002 for wait in waits), waits  # else up to two steps, 1.5 on average
    assert all(idle < 1e-9 for idle in machine.idle[1:-1]), machine.idle


def test_a_slow_host_decides_at_once_and_keeps_the_device_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, host=0.45 * STEP)
    machine.ask(0.0, "first", 40)
    machine.loop.run()
    assert all(idle < 1e-9 for idle in machine.idle[2:]), machine.idle


def test_where_no_seat_is_free_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, max_num_seqs=1)
    machine.ask(0.0, "first", 20)
    launched = []
    launch = machine.core.runner.launch

    def note(output: SchedulerOutput, on_progress: Any) -> Any:
        launched.append(machine.clock.now)
        return launch(output, on_progress)

    monkeypatch.setattr(machine.core.runner, "launch", note)
    machine.loop.run()
    ahead = [begin - at for at, (begin, _) in zip(launched[3:], machine.begins[3:], strict=False)]
    assert min(ahead) > 0.8 * STEP, ahead  # right after the step before it began


def meter(tokens: int = 4, steps: int = 8) -> StepMeter:
    """Steps of 10 ms each that decode, one behind the other, each decided and launched in 0.3 ms; the last at 0.08."""
    found = StepMeter()
    found.schedule_seconds = 0.0001
    for index in range(steps):
        found.begin(index * STEP, tokens, 0)
        found.launched(index * STEP + 0.0002)
        found.add((index + 1) * STEP, tokens, 0)
    return found


def test_slack_is_what_the_step_under_way_takes_less_what_the_host_takes() -> None:
    found = meter()
    found.begin(8 * STEP, 4, 0)
    assert found.slack(8 * STEP + 0.001) == pytest.approx(STEP - 0.001 - 1.5 * 0.0003 - 0.0003)


def test_the_step_under_way_takes_as_long_as_its_decodes_at_least() -> None:
    fewer, mixed, prefill = meter(), meter(), meter()
    fewer.begin(8 * STEP, 3, 0)
    mixed.begin(8 * STEP, 504, 502)
    prefill.begin(8 * STEP, 500, 500)
    host = 1.5 * 0.0003 + 0.0003
    assert fewer.slack(8 * STEP) == pytest.approx(0.75 * STEP - host)
    assert mixed.slack(8 * STEP) == pytest.approx(0.5 * STEP - host)
    assert prefill.slack(8 * STEP) < 0


def test_there_is_no_slack_behind_two_steps_none_or_a_failed_one() -> None:
    assert meter().slack(8 * STEP) == 0.0
    behind_two, failed, unknown = meter(), meter(), meter(steps=0)
    for each in (behind_two, behind_two, failed, unknown):
        each.begin(8 * STEP, 4, 0)
    failed.forget()
    assert [each.slack(8 * STEP) for each in (behind_two, failed, unknown)] == [0.0] * 3
