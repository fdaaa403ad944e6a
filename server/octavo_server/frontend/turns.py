"""Work that callers share and take turns at: one that asks for much delays another by about one piece of it."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Full(Exception):
    """No more may wait. `waiting`: pieces of work that are before it."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} wait already")
        self.waiting = waiting


class _Job(Generic[T]):
    """`waiters`: requests. `callers`: in whose queues it stands; none once it has begun."""

    def __init__(self) -> None:
        self.result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.waiters = 0
        self.callers: set[bytes] = set()


class Turns(Generic[K, T]):
    """Used by the event loop alone. What nobody waits for any more is never begun."""

    def __init__(self, work: Callable[[K], Awaitable[T]], at_once: int, most: int, most_of_caller: int) -> None:
        """at_once: pieces that are worked on. most: that wait, besides; most_of_caller: of these, one caller's."""
        self._work = work
        self._at_once, self._most, self._most_of_caller = at_once, most, most_of_caller
        self._jobs: dict[K, _Job[T]] = {}
        self._queues: OrderedDict[bytes, dict[K, None]] = OrderedDict()  # of callers, who is next first
        self._running: set[asyncio.Task[None]] = set()
        self._closed: Exception | None = None

    @property
    def num_waiting(self) -> int:
        """Pieces of work that have not begun."""
        return len(self._jobs) - len(self._running)

    async def result(self, key: K, caller: bytes) -> T:
        """What comes of a piece of work, done once for all that wait for it at a time.

        Raises:
            Full: too much waits, of all callers or of this one.
        """
        if self._closed is not None:
            raise self._closed
        job = self._jobs.get(key)
        if job is None or job.callers:
            job = self._queued(key, caller)
        job.waiters += 1
        self._begin()
        try:
            return await asyncio.shield(job.result)
        finally:
            job.waiters -= 1
            if not job.waiters and job.callers:
                self._take_out(key, job)
                del self._jobs[key]

    def close(self, error: Exception) -> None:
        """Who waits gets this error, as whoever comes will."""
        self._closed = error
        for key, job in self._jobs.items():
            self._take_out(key, job)
            _fail(job, error)

    def _queued(self, key: K, caller: bytes) -> _Job[T]:
        queue = self._queues.get(caller, {})
        if key not in queue and len(queue) >= self._most_of_caller:
            raise Full(len(queue))
        if key not in self._jobs and self.num_waiting >= self._most and not self._give_way(len(queue)):
            raise Full(self.num_waiting)
        job = self._jobs.setdefault(key, _Job())
        job.callers.add(caller)
        self._queues.setdefault(caller, queue)[key] = None
        return job

    def _give_way(self, waiting: int) -> bool:
        """Whether a caller that has so much waiting gets the place of the last piece of the one that has the most.

        What others wait for, too, gives no way.
        """
        for queue in sorted(self._queues.values(), key=len, reverse=True):
            if len(queue) <= waiting + 1:
                break
            key = next((key for key in reversed(queue) if len(self._jobs[key].callers) == 1), None)
            if key is not None:
                job = self._jobs.pop(key)
                self._take_out(key, job)
                _fail(job, Full(len(queue)))
                return True
        return False

    def _take_out(self, key: K, job: _Job[T]) -> None:
        for caller in job.callers:
            del self._queues[caller][key]
            if not self._queues[caller]:
                del self._queues[caller]
        job.callers.clear()

    def _begin(self) -> None:
        while self._queues and len(self._running) < self._at_once:
            caller = next(iter(self._queues))
            self._queues.move_to_end(caller)
            key = next(iter(self._queues[caller]))
            job = self._jobs[key]
            self._take_out(key, job)
            task = asyncio.create_task(self._run(key, job))
            self._running.add(task)
            task.add_done_callback(self._ended)

    async def _run(self, key: K, job: _Job[T]) -> None:
        try:
            found = await self._work(key)
            if not job.result.done():
                job.result.set_result(found)
        except Exception as error:
            _fail(job, error)
        finally:
            job.result.cancel()  # of no effect but where this was cancelled
            del self._jobs[key]

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._begin()


def _fail(job: _Job[T], error: Exception) -> None:
    if not job.result.done():
        job.result.set_exception(error)
        job.result.exception()  # maybe nobody waits for it
