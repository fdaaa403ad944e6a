"""How it is told that a grammar was not compiled, against processes that do what they are told to."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo_server.errors import EngineError, RequestError
from octavo_server.frontend.grammars import COMPILERS, MOST_OF_CALLER, Grammars
from octavo_server.frontend.structured import GrammarSource
from octavo_server.frontend.text.line_process import Stopped


class Processes:
    """`answer` says what comes of a question."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any]], dict[str, Any]] = lambda question: {"grammar": question["text"]}
        self.asked: list[str] = []
        self.opened = threading.Event()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(question["text"])
        return self.answer(question)

    def held(self, question: dict[str, Any]) -> dict[str, Any]:
        if not self.opened.wait(60.0):
            raise TimeoutError
        return {"grammar": question["text"]}

    def close(self) -> None:
        self.opened.set()


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    made = Processes()
    monkeypatch.setattr("octavo_server.frontend.grammars.LinePool", lambda *_: made)
    yield made
    made.close()


def source(text: str) -> GrammarSource:
    return GrammarSource("lark", text, "structured_outputs.grammar")


@pytest.mark.parametrize("fails", [{"failed": "it was killed"}, Stopped("it was killed")], ids=["child", "process"])
async def test_what_failed_by_no_fault_of_the_grammar_is_the_servers_and_not_remembered(
    processes: Processes, fails: Any
) -> None:
    grammars = Grammars(Path("nowhere"))

    def fail(_: dict[str, Any]) -> dict[str, Any]:
        if isinstance(fails, Stopped):
            raise fails
        return dict(fails)

    good, processes.answer = processes.answer, fail
    with pytest.raises(RequestError, match="try again: it was killed") as caught:
        await grammars.compile(source("a"))
    assert (caught.value.status, caught.value.type, caught.value.param) == (503, "server_error", None)
    processes.answer = good
    assert await grammars.compile(source("a")) == "a"
    processes.answer = lambda _: {"refused": "too long"}
    for _ in range(2):
        with pytest.raises(RequestError, match="too long") as caught:
            await grammars.compile(source("b"))
        assert (caught.value.status, caught.value.param) == (400, "structured_outputs.grammar")
    assert processes.asked == ["a", "a", "b"]


async def test_the_requests_time_and_the_servers_end_reach_who_waits(processes: Processes) -> None:
    processes.answer = processes.held
    grammars = Grammars(Path("nowhere"))
    for deadline in (time.monotonic() - 1, time.monotonic() + 0.05):
        with pytest.raises(EngineError, match="time was up") as caught:
            await grammars.compile(source("a"), b"", deadline)
        assert caught.value.kind == "timeout"
    waiting = [asyncio.create_task(grammars.compile(source(text))) for text in "abcd"]
    await asyncio.sleep(0)
    grammars.end_waiting("the server is shutting down")
    for task in waiting:
        with pytest.raises(EngineError, match="shutting down") as caught:
            await task
        assert caught.value.kind == "unavailable"
    grammars.close()


async def test_beyond_the_bound_a_caller_is_told_when_to_come_back_and_others_are_served(processes: Processes) -> None:
    processes.answer = processes.held
    grammars = Grammars(Path("nowhere"))
    mine = [asyncio.create_task(grammars.compile(source(f"{n}"), b"a")) for n in range(COMPILERS + MOST_OF_CALLER)]
    for _ in range(10):
        await asyncio.sleep(0)
    with pytest.raises(RequestError, match="full") as caught:
        await grammars.compile(source("more"), b"a")
    assert (caught.value.status, caught.value.type, caught.value.code) == (429, "rate_limit_error", "queue_full")
    assert caught.value.retry_after is not None and 1 <= caught.value.retry_after <= 60
    other = asyncio.create_task(grammars.compile(source("other"), b"b"))
    await asyncio.sleep(0)
    processes.opened.set()
    assert await other == "other"
    assert await asyncio.gather(*mine) == [f"{n}" for n in range(len(mine))]
    assert processes.asked.index("other") <= 2 * COMPILERS
    grammars.close()
