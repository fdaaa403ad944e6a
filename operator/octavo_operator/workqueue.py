"""One queue of keys for all events: a key is worked on by one worker at a time, and one that fails waits alone.

As in client-go: adding a key that waits changes nothing, adding one that is worked on has it done once more, and
failures back off exponentially. Source of the scheme: k8s.io/client-go, util/workqueue.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT")

log = logging.getLogger(__name__)


class Retry(Exception):
    """The key is to be worked on again, after the backoff or `after` seconds, whichever is longer.

    `is_gentle`: that is no failure; after `after` seconds, and earlier if it is added.
    """

    def __init__(self, message: str, after: float = 0.0, *, is_gentle: bool = False) -> None:
        super().__init__(message)
        self.after = after
        self.is_gentle = is_gentle


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds to wait after the n-th failure in a row: `first` doubled each time up to `most`, less a random half."""

    first: float = 0.5
    most: float = 300.0

    def delay(self, failures: int, random: Random) -> float:
        """`failures` counts from 1. The jitter keeps keys that failed together from coming back together."""
        whole = min(self.most, self.first * 2.0 ** min(failures - 1, 32))
        return whole * random.uniform(0.5, 1.0)


class WorkQueue(Generic[KeyT]):
    """Keys that wait for a worker. Made and used on one event loop."""

    def __init__(self, backoff: Backoff | None = None, random: Random | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._random = random or Random()
        self._ready: asyncio.Queue[KeyT] = asyncio.Queue()
        self._waiting: set[KeyT] = set()  # what is in _ready
        self._working: set[KeyT] = set()
        self._again: dict[KeyT, bool] = {}  # added while worked on, and whether that was urgent
        self._failures: dict[KeyT, int] = {}
        self._timers: dict[KeyT, asyncio.TimerHandle] = {}
        self._reminders: dict[KeyT, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        """Keys that wait for a worker; those that wait out a backoff are not counted."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether no key waits for a worker and none is worked on."""
        return not self._waiting and not self._working

    def add(self, key: KeyT, *, urgent: bool = False) -> None:
        """Have `key` worked on, as soon as a worker is free; while it waits out a backoff, only if `urgent`.

        Urgent is what may have cured the failure. What a failing key itself causes, its own status for one, is not.
        """
        if key in self._working:
            self._again[key] = urgent or self._again.get(key, False)
        elif key not in self._waiting and (urgent or key not in self._timers):
            self._cancel_timer(key)
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def add_later(self, key: KeyT, delay: float) -> None:
        """Add `key` in `delay` seconds; while a backoff of its own runs, that counts."""
        asyncio.get_running_loop().call_later(delay, self.add, key)

    async def work(self, handle: Callable[[KeyT], Awaitable[None]]) -> None:
        """Be one worker: call `handle` for one key after the other, until cancelled.

        Any exception but a cancellation has the key tried again after its backoff; it ends no worker.
        """
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            self._working.add(key)
            delay: float | None = None
            try:
                await handle(key)
                self._failures.pop(key, None)
            except Retry as retry:
                log.log(logging.DEBUG if retry.is_gentle else logging.INFO, "%s: %s", key, retry)
                if retry.is_gentle:
                    self._failures.pop(key, None)
                    self._remind(key, retry.after)
                else:
                    delay = max(self._next_delay(key), retry.after)
            except Exception:
                log.exception("%s: failed", key)
                delay = self._next_delay(key)
            finally:
                self._working.discard(key)
            self._finish(key, delay)
            # A pass that has all at hand waits for nothing, nor does a queue that is not empty: the Lease has its turn.
            await asyncio.sleep(0)

    def close(self) -> None:
        """Forget every backoff, at the end."""
        for key in list(self._timers):
            self._cancel_timer(key)
        for reminder in self._reminders.values():
            reminder.cancel()

    def _remind(self, key: KeyT, seconds: float) -> None:
        """Add it then, once, however often that is asked for meanwhile."""
        if key in self._reminders:
            self._reminders[key].cancel()
        self._reminders[key] = asyncio.get_running_loop().call_later(seconds, self._after_reminder, key)

    def _after_reminder(self, key: KeyT) -> None:
        del self._reminders[key]
        self.add(key)

    def _next_delay(self, key: KeyT) -> float:
        self._failures[key] = self._failures.get(key, 0) + 1
        return self._backoff.delay(self._failures[key], self._random)

    def _finish(self, key: KeyT, delay: float | None) -> None:
        urgent = self._again.pop(key, None)
        if delay is not None:
            self._timers[key] = asyncio.get_running_loop().call_later(delay, self._after_backoff, key)
        if urgent or (urgent is not None and delay is None):
            self.add(key, urgent=urgent)

    def _after_backoff(self, key: KeyT) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _cancel_timer(self, key: KeyT) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
