"""Steps launched before the tokens of the step before them are known, against steps one at a time."""

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch

from octavo_common.model_config import parse_model_config
from octavo_server.ipc import SamplingParams
from octavo_server.step import NewRequest, SampledRow, SchedulerOutput
from octavo_server.worker.model_runner import ModelRunner
from octavo_server.worker.step_handle import StepBehindFailed, StepHandle
from tiny_models import config_json, random_decoder

CONFIG = config_json("Qwen3ForCausalLM")
BLOCK = 8
CPU = torch.device("cpu")

# Greedy, drawn, with everything that looks at the tokens before, and with everything that is told besides a token.
SAMPLINGS = {
    "greedy": SamplingParams(temperature=0.0, logprobs=2),
    "drawn": SamplingParams(temperature=1.5, seed=5, logprobs=0, prompt_logprobs=2),
    "penalties": SamplingParams(temperature=1.0, seed=6, repetition_penalty=1.3, frequency_penalty=0.4),
    "bad words": SamplingParams(temperature=0.0, bad_words=((3, 4), (5,)), presence_penalty=1.0, logprobs=1),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def runner(*, threaded: bool, max_num_seqs: int = 4) -> ModelRunner:
    made = ModelRunner(
        parse_model_config(CONFIG), CPU, torch.float32, block_size=BLOCK, max_num_seqs=max_num_seqs, threaded=threaded
    )
    made.decoder = random_decoder(CONFIG, seed=3)
    made.allocate_cache(64)
    return made


def prompt(length: int, salt: int) -> list[int]:
    return [(13 * index * index + 7 * salt + 1) % 131 for index in range(length)]


@dataclass
class Script:
    """Hands out steps by counting alone, as a scheduler does that looks ahead: it never asks for a token."""

    lengths: dict[str, int] = field(default_factory=dict)
    pages: dict[str, list[int]] = field(default_factory=dict)
    free: list[int] = field(default_factory=lambda: list(range(63, -1, -1)))
    steps: int = 0

    def step(
        self,
        new: dict[str, tuple[list[int], SamplingParams]] | None = None,
        decode: tuple[str, ...] = (),
        chunk: dict[str, int] | None = None,
        finished: tuple[str, ...] = (),
    ) -> SchedulerOutput:
        """New requests with `chunk[name]` tokens of their prompt (all by default); others with one token or a chunk."""
        chunk, counts, news, added = chunk or {}, {}, [], {}
        for name in finished:
            self.free += self.pages.pop(name)
            self.lengths.pop(name)
        for name, (tokens, sampling) in (new or {}).items():
            counts[name] = chunk.get(name, len(tokens))
            self.lengths[name], self.pages[name] = 0, []
            pages = self._grow(name, counts[name])
            news.append(NewRequest(name, tokens, len(tokens), len(tokens) + 60, sampling, pages, 0))
        for name in (*decode, *(name for name in chunk if name not in counts)):
            counts[name] = chunk.get(name, 1)
            if pages := self._grow(name, counts[name]):
                added[name] = pages
        self.steps += 1
        return SchedulerOutput(self.steps, news, added, counts, list(finished))

    def _grow(self, name: str, count: int) -> list[int]:
        self.lengths[name] += count
        needed = -(-self.lengths[name] // BLOCK) - len(self.pages[name])
        pages = [self.free.pop() for _ in range(needed)]
        self.pages[name] += pages
        return pages


def workload() -> list[SchedulerOutput]:
    """Four requests in and out of step, one of them in chunks; one ends and another takes its place and its slot."""
    script, names = Script(), tuple(SAMPLINGS)
    first = {name: (prompt(9 + index, index), SAMPLINGS[name]) for index, name in enumerate(names)}
    steps = [script.step(first, chunk={"drawn": 6})]
    steps += [script.step(decode=("greedy", "penalties", "bad words"), chunk={"drawn": 4})]
    steps += [script.step(decode=names) for _ in range(10)]
    steps += [script.step({"next": (prompt(20, 9), SAMPLINGS["penalties"])}, decode=names[1:], finished=("greedy",))]
    steps += [script.step(decode=("next", *names[1:])) for _ in range(10)]
    steps += [script.step(decode=names[2:]), script.step(decode=names[1:]), script.step(decode=("drawn",))]
    return steps


def one_at_a_time(made: ModelRunner, steps: list[SchedulerOutput]) -> list[list[SampledRow]]:
    return [made.execute(step) for step in steps]


def overlapped(made: ModelRunner, steps: list[SchedulerOutput]) -> list[list[SampledRow]]:
    """Each step is launched before the one before it is waited for."""
    results, handles = [], deque[StepHandle]()
    for step in steps:
        handles.append(made.launch(step))
        if len(handles) > 1:
            results.append(handles.popleft().result())
    return [*results, *(handle.result() for handle in handles)]


@pytest.mark.parametrize("threaded", [False, True])
def test_steps_launched_ahead_give_the_rows_of_steps_one_at_a_time(threaded: bool) -> None:
    steps = workload()
    want = one_at_a_time(runner(threaded=False), steps)
    assert overlapped(runner(threaded=threaded), steps) == want
    tokens = [row.token_id for rows in want for row in rows]
    assert len(set(tokens)) > 30 and all(row.error is None for rows in want for row in rows)
    assert any(row.prompt_logprobs for rows in want for row in rows)


class Gate:
    """A decoder whose forward passes wait to be let through, and break if told so."""

    def __init__(self, made: ModelRunner) -> None:
        assert made.decoder is not None
        self.inner, self.open, self.entered = made.decoder, threading.Semaphore(0), threading.Semaphore(0)
        self.breaks = False
        made.decoder = self  # type: ignore[assignment]

    def forward(self, batch: object, kv_cache: object, on_progress: Callable[[], None], rows: object) -> torch.Tensor:
        self.entered.release()
        assert self.open.acquire(timeout=60)
        if self.breaks:
            self.breaks = False
            raise MemoryError("broken for the test")
        return self.inner.forward(batch, kv_cache, on_progress, rows)  # type: ignore[arg-type]

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        return self.inner.logits(rows)


def test_launch_returns_while_the_step_computes_and_progress_tells_of_it() -> None:
    made = runner(threaded=True)
    gate, script = Gate(made), Script()
    told: list[str] = []
    handle = made.launch(script.step({"a": (prompt(5, 1), SAMPLINGS["greedy"])}), lambda: told.append("here"))
    assert gate.entered.acquire(timeout=60)
    behind = made.launch(script.step(decode=("a",)))
    assert handle.wait(0.0) is None and behind.wait(0.0) is None and handle.progress == 0
    gate.open.release(2)
    assert [row.request_id for row in handle.result()] == ["a"] and len(behind.result()) == 1
    assert handle.progress == 2 * CONFIG["num_hidden_layers"] and told == []
    assert handle.wait() == handle.wait()


def test_on_the_calling_thread_progress_is_told_within_launch() -> None:
    made, told = runner(threaded=False), []
    handle = made.launch(Script().step({"a": (prompt(5, 1), SAMPLINGS["greedy"])}), lambda: told.append("here"))
    assert len(told) == handle.progress == 2 * CONFIG["num_hidden_layers"]


@pytest.mark.parametrize("threaded", [False, True])
def test_a_step_behind_one_that_fails_fails_too_and_the_next_is_sound(threaded: bool) -> None:
    made = runner(threaded=threaded)
    gate, script = Gate(made), Script()
    gate.open.release(100)
    made.execute(script.step({"a": (prompt(5, 1), SAMPLINGS["greedy"])}))
    gate.breaks = True
    failing = made.launch(script.step(decode=("a",)))
    behind = made.launch(script.step({"b": (prompt(7, 2), SAMPLINGS["greedy"])}, decode=("a",)))
    with pytest.raises(MemoryError, match="broken for the test"):
        failing.wait()
    with pytest.raises(StepBehindFailed) as caught:
        behind.wait()
    assert isinstance(caught.value.__cause__, MemoryError)
    made.recover()
    after = script.step({"c": (prompt(6, 3), SAMPLINGS["penalties"])}, finished=("a", "b"))
    want = runner(threaded=False).execute(Script().step({"c": (prompt(6, 3), SAMPLINGS["penalties"])}))
    assert made.execute(after) == want
    assert list(made.batch.states) == ["c"]


@pytest.mark.parametrize("threaded", [False, True])
def test_recover_lets_a_step_follow_that_nobody_waited_for(threaded: bool) -> None:
    made = runner(threaded=threaded)
    gate, script = Gate(made), Script()
    gate.open.release(100)
    gate.breaks = True
    failing = made.launch(script.step({"a": (prompt(5, 1), SAMPLINGS["greedy"])}))
    made.launch(script.step(decode=("a",)))
    with pytest.raises(MemoryError):
        failing.wait()
    made.recover()
    (row,) = made.execute(script.step({"b": (prompt(5, 1), SAMPLINGS["greedy"])}, finished=("a",)))
    assert row.error is None


@pytest.mark.parametrize("threaded", [False, True])
def test_pages_are_moved_by_steps_that_fail_and_by_steps_behind_them(threaded: bool) -> None:
    """The scheduler counts on it: pages of requests in other steps move with these."""
    made, script = runner(threaded=threaded), Script()
    made.add_lower_tiers(4, None)
    while made.idle():
        pass
    for page, (keys, values) in ((page, made.kv_cache[0]) for page in (20, 21, 22)):
        keys[page], values[page] = float(page), -float(page)
    output = script.step({"a": (prompt(5, 1), SAMPLINGS["greedy"])})
    gate = Gate(made)
    gate.open.release(100)
    gate.breaks = True
    failing = made.launch(dataclasses.replace(output, swap_out=[(20, 0)]))
    behind = made.launch(SchedulerOutput(2, num_scheduled_tokens={"a": 1}, swap_out=[(21, 1)]))
    impossible = made.launch(SchedulerOutput(3, num_scheduled_tokens={"unknown": 1}, swap_out=[(22, 2)]))
    for handle in (failing, behind, impossible):
        with pytest.raises((MemoryError, StepBehindFailed, KeyError)):
            handle.wait()
    made.recover()
    made.execute(SchedulerOutput(4, finished_ids=["a"], swap_in=[(0, 30), (1, 31), (2, 32)]))
    assert [made.kv_cache[0][0][page].unique().tolist() for page in (30, 31, 32)] == [[20.0], [21.0], [22.0]]


def test_a_step_that_cannot_be_made_fails_as_its_handle() -> None:
    made = runner(threaded=False)
    handle = made.launch(SchedulerOutput(1, num_scheduled_tokens={"unknown": 1}))
    with pytest.raises(KeyError):
        handle.wait()


def test_what_follows_a_token_from_no_distribution_is_an_error_and_others_are_not_hurt() -> None:
    steps = workload()
    want = one_at_a_time(runner(threaded=False), steps[:4])
    made = runner(threaded=True)
    handles = [made.launch(step) for step in steps[:1]]
    handles[0].result()
    ill = made.batch.states["greedy"]
    for k, _ in made.kv_cache:
        k[ill.block_ids[0], 0] = torch.nan  # of one request alone
    got = overlapped(made, steps[1:4])
    for rows, right in zip(got, want[1:], strict=True):
        assert [row.request_id for row in rows] == [row.request_id for row in right]
        for row, expected in zip(rows, right, strict=True):
            if row.request_id == "greedy":
                assert row.token_id is None and "not finite" in (row.error or "")
            else:
                assert row == expected


def test_slots_are_given_back_and_taken_again() -> None:
    made, script = runner(threaded=True, max_num_seqs=2), Script()
    last: tuple[str, ...] = ()
    steps = []
    for round_number in range(6):
        names = (f"a{round_number}", f"b{round_number}")
        new = {name: (prompt(4 + round_number, len(steps)), SAMPLINGS["greedy"]) for name in names}
        steps += [script.step(new, finished=last), script.step(decode=names), script.step(decode=names)]
        last = names
    assert overlapped(made, steps) == one_at_a_time(runner(threaded=False, max_num_seqs=2), steps)
    assert sorted(state.slot for state in made.batch.states.values()) == [0, 1]
