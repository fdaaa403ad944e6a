"""Turns at shared work, against a worker that ends each piece when it is told to."""

import asyncio

import pytest

from octavo_server.frontend.turns import Full, Turns


class Worker:
    """`begun`: pieces in the order in which they were; each ends when `end` is called."""

    def __init__(self, at_once: int = 1, most: int = 20, most_of_caller: int = 10) -> None:
        self.begun: list[str] = []
        self.turns = Turns(self._work, at_once, most, most_of_caller)
        self._open: dict[str, asyncio.Future[str]] = {}

    async def _work(self, key: str) -> str:
        self.begun.append(key)
        self._open[key] = asyncio.get_running_loop().create_future()
        return await self._open[key]

    async def ask(self, key: str, caller: str = "a") -> asyncio.Task[str]:
        task = asyncio.create_task(self.turns.result(key, caller.encode()))
        await settle()
        return task

    async def end(self, key: str, error: Exception | None = None) -> None:
        future = self._open.pop(key)
        future.set_result(f"made {key}") if error is None else future.set_exception(error)
        await settle()

    async def drain(self) -> None:
        while self._open:
            await self.end(next(iter(self._open)))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def leave(task: asyncio.Task[str]) -> None:
    task.cancel()
    await asyncio.wait({task})
    await settle()


async def test_a_caller_with_many_pieces_delays_another_by_one() -> None:
    worker = Worker()
    tasks = [await worker.ask(f"a{number}") for number in range(8)]
    tasks += [await worker.ask(f"b{number}", "b") for number in range(2)] + [await worker.ask("c0", "c")]
    await worker.drain()
    assert worker.begun == ["a0", "a1", "b0", "c0", "a2", "b1", *(f"a{number}" for number in range(3, 8))]
    assert [await task for task in tasks[-2:]] == ["made b1", "made c0"]


async def test_work_that_nobody_waits_for_any_more_is_never_begun() -> None:
    worker = Worker()
    running, left, stays, other = [await worker.ask(key) for key in ("one", "two", "three", "three")]
    for task in (running, left, other):
        await leave(task)
    assert worker.turns.num_waiting == 1
    await worker.drain()
    assert worker.begun == ["one", "three"] and await stays == "made three"
    assert worker.turns.num_waiting == 0
    again = await worker.ask("two")
    await worker.drain()
    assert await again == "made two"


async def test_what_several_wait_for_is_done_once_at_the_first_turn_of_any_of_them() -> None:
    worker = Worker()
    tasks = [await worker.ask(key) for key in ("one", "two", "three", "same")]
    tasks += [await worker.ask("same", "b"), await worker.ask("one", "b")]
    await worker.end("one")
    assert worker.begun == ["one", "two"]
    await worker.end("two")
    assert worker.begun == ["one", "two", "same"]
    await worker.drain()
    assert worker.begun == ["one", "two", "same", "three"]
    assert [await task for task in tasks] == [f"made {key}" for key in ("one", "two", "three", "same", "same", "one")]


async def test_a_bounded_number_waits_of_all_and_of_each_caller() -> None:
    worker = Worker(at_once=2, most=5, most_of_caller=3)
    tasks = [await worker.ask(f"a{number}") for number in range(5)]
    with pytest.raises(Full) as refused:
        await worker.turns.result("a5", b"a")
    assert refused.value.waiting == 3
    tasks += [await worker.ask("b0", "b"), await worker.ask("b1", "b"), await worker.ask("a4"), await worker.ask("a0")]
    with pytest.raises(Full):
        await worker.turns.result("b2", b"b")  # of those that have as much waiting nobody gives way
    await leave(tasks[5])
    tasks[5] = await worker.ask("c0", "c")
    await worker.drain()
    assert sorted(worker.begun) == ["a0", "a1", "a2", "a3", "a4", "b1", "c0"]
    assert all([await task for task in tasks])


async def test_whoever_has_the_most_waiting_gives_way_to_who_has_less() -> None:
    worker = Worker(at_once=1, most=4, most_of_caller=4)
    crowd = [await worker.ask(f"a{number}") for number in range(5)]
    others = [await worker.ask(key, key[0]) for key in ("b0", "c0")]
    for refused in crowd[3:]:
        with pytest.raises(Full) as full:
            await refused
        assert full.value.waiting in (3, 2)
    with pytest.raises(Full):
        await worker.turns.result("b1", b"b")
    assert worker.turns.num_waiting == 4
    await worker.drain()
    assert worker.begun == ["a0", "a1", "b0", "c0", "a2"]
    assert all([await task for task in [*crowd[:3], *others]])


async def test_what_others_wait_for_too_does_not_give_way() -> None:
    worker = Worker(at_once=1, most=3, most_of_caller=4)
    crowd = [await worker.ask(f"a{number}") for number in range(4)]
    shared = await worker.ask("a3", "b")
    other = await worker.ask("c0", "c")
    with pytest.raises(Full):
        await crowd[2]
    await worker.drain()
    assert all([await task for task in [*crowd[:2], crowd[3], shared, other]])


async def test_where_the_longest_queue_is_shared_the_next_one_gives_way() -> None:
    worker = Worker(at_once=1, most=5, most_of_caller=4)
    first = await worker.ask("first")
    shared = [await worker.ask(f"s{number}", caller) for number in range(3) for caller in ("a", "b")]
    crowd = [await worker.ask(f"d{number}", "d") for number in range(2)]
    other = await worker.ask("c0", "c")
    with pytest.raises(Full):
        await crowd[1]
    await worker.drain()
    assert all([await task for task in [first, *shared, crowd[0], other]])


async def test_an_error_is_for_those_who_waited_and_the_next_is_begun() -> None:
    worker = Worker()
    first, second = await worker.ask("one"), await worker.ask("two")
    gone = await worker.ask("three")
    await worker.end("one", OSError("broken"))
    with pytest.raises(OSError, match="broken"):
        await first
    await leave(gone)
    assert worker.begun == ["one", "two"]
    worker.turns.close(KeyError("over"))
    for waiting in (second, await worker.ask("four")):
        with pytest.raises(KeyError, match="over"):
            await waiting
    await worker.drain()
    assert worker.begun == ["one", "two"]
