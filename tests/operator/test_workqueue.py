"""One worker at a time for a key, failures that wait longer each time, and no key that holds up another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from octavo_operator.workqueue import Backoff, Retry, WorkQueue

Handle = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def workers(queue: WorkQueue[str], handle: Handle, count: int = 1) -> Any:
    tasks = [asyncio.create_task(queue.work(handle)) for _ in range(count)]
    try:
        async with asyncio.timeout(20):
            yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        queue.close()


async def until(check: Callable[[], bool]) -> None:
    while not check():  # noqa: ASYNC110 - what is waited for sets no event
        await asyncio.sleep(0)


async def test_a_key_added_often_is_done_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    seen: list[str] = []

    async def handle(key: str) -> None:
        seen.append(key)

    for key in ("a", "a", "b", "a"):
        queue.add(key)
    assert len(queue) == 2
    async with workers(queue, handle):
        await until(lambda: queue.is_idle)
    assert seen == ["a", "b"]


async def test_a_key_added_while_it_is_done_is_done_again_and_never_twice_at_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    running = passes = 0

    async def handle(key: str) -> None:
        nonlocal running, passes
        running += 1
        assert running == 1
        passes += 1
        if passes == 1:
            queue.add(key)
            queue.add(key)
        await asyncio.sleep(0)
        running -= 1

    queue.add("a")
    async with workers(queue, handle, count=4):
        await until(lambda: passes == 2 and queue.is_idle)
    assert passes == 2


@pytest.mark.parametrize("error", [Retry("later"), ValueError("a bug")])
async def test_a_failing_key_holds_up_no_other_and_ends_no_worker(error: Exception) -> None:
    queue: WorkQueue[str] = WorkQueue(Backoff(first=3600.0, most=3600.0))
    seen: list[str] = []

    async def handle(key: str) -> None:
        seen.append(key)
        if key == "bad":
            raise error

    for key in ("bad", "good", "better"):
        queue.add(key)
    async with workers(queue, handle):
        await until(lambda: len(seen) == 3)
        queue.add("bad")  # not urgent: it goes on waiting
        queue.add("good")
        await until(lambda: len(seen) == 4 and queue.is_idle)
        assert seen[-1] == "good"
        queue.add("bad", urgent=True)
        await until(lambda: seen[-1] == "bad")


async def test_urgent_news_during_a_failing_pass_are_not_lost() -> None:
    queue: WorkQueue[str] = WorkQueue(Backoff(first=3600.0, most=3600.0))
    passes = 0

    async def handle(key: str) -> None:
        nonlocal passes
        passes += 1
        if passes == 1:
            queue.add(key, urgent=True)
            raise Retry("later")

    queue.add("a")
    async with workers(queue, handle):
        await until(lambda: passes == 2)


async def test_a_key_comes_back_after_its_backoff_and_success_forgets_the_failures() -> None:
    queue: WorkQueue[str] = WorkQueue(Backoff(first=0.001, most=0.002))
    passes = 0

    async def handle(key: str) -> None:
        nonlocal passes
        passes += 1
        if passes < 4:
            raise Retry("later")

    queue.add("a")
    async with workers(queue, handle):
        await until(lambda: passes == 4 and queue.is_idle)
    assert queue._failures == {}


async def test_a_retry_waits_as_long_as_it_was_told() -> None:
    queue: WorkQueue[str] = WorkQueue(Backoff(first=0.0, most=0.0))
    times: list[float] = []

    async def handle(key: str) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            raise Retry("busy", after=0.2)

    queue.add("a")
    async with workers(queue, handle):
        await until(lambda: len(times) == 2)
    assert times[1] - times[0] >= 0.19


def test_delays_double_up_to_the_most_with_jitter() -> None:
    backoff, random = Backoff(first=1.0, most=60.0), Random(7)
    for failures, whole in ((1, 1.0), (2, 2.0), (3, 4.0), (6, 32.0), (7, 60.0), (10_000, 60.0)):
        delays = [backoff.delay(failures, random) for _ in range(200)]
        assert all(whole / 2 <= delay <= whole for delay in delays)
        assert max(delays) - min(delays) > whole / 4


async def test_others_have_their_turn_between_keys_that_wait_for_nothing() -> None:
    queue, order = WorkQueue[str](), list[str]()

    async def handle(key: str) -> None:
        order.append(key)

    async def other() -> None:
        while "last" not in order:
            order.append("other")
            await asyncio.sleep(0)

    for key in ("first", "second", "last"):
        queue.add(key)
    async with workers(queue, handle):
        await other()
    assert [each for each in order if each != "other"] == ["first", "second", "last"]
    assert "other" in order[order.index("first") : order.index("last")]


async def test_what_asks_gently_to_be_done_later_may_be_done_earlier_and_has_not_failed() -> None:
    queue: WorkQueue[str] = WorkQueue(Backoff(first=3600.0, most=3600.0))
    passes = 0

    async def handle(key: str) -> None:
        nonlocal passes
        passes += 1
        if passes == 1:
            raise Retry("later", after=3600.0, is_gentle=True)
        if passes == 2:
            raise Retry("soon", after=0.0, is_gentle=True)

    queue.add("a")
    async with workers(queue, handle):
        await until(lambda: passes == 1 and queue.is_idle)
        queue.add("a")
        await until(lambda: passes == 3 and queue.is_idle)
