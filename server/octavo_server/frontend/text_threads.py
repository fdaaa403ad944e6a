"""Threads for work on texts, beside the event loop: long texts have threads of their own, and a bound together.

Tokenizing takes more than a hundred bytes of memory for each of a text's, and seconds for the longest. So what is short
never waits for what is long, and long texts take turns in their order.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
SHORT_TEXT: Final = 64 * 1024  # characters
LONG_TEXTS_AT_ONCE: Final = 4 * 2**20  # characters together; a text that is longer goes alone


class TextThreads:
    """Used by the event loop alone."""

    def __init__(self, long_texts_at_once: int = LONG_TEXTS_AT_ONCE) -> None:
        count = min(4, os.cpu_count() or 1)
        self._short = ThreadPoolExecutor(max_workers=count, thread_name_prefix="text")
        self._long = ThreadPoolExecutor(max_workers=count, thread_name_prefix="long text")
        self._limit = long_texts_at_once
        self._held = 0  # characters of the long texts that are worked on
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Work that is short, or bounded otherwise."""
        return await asyncio.get_running_loop().run_in_executor(self._short, lambda: function(*args, **kwargs))

    async def run_on_text(self, length: int, function: Callable[[], R]) -> R:
        """Work on texts of `length` characters together, once there is room for them."""
        if length <= SHORT_TEXT:
            return await self.run(function)
        await self._enter(length)
        loop, future = asyncio.get_running_loop(), self._long.submit(function)

        def leave(_: object) -> None:
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(self._leave, length)

        future.add_done_callback(leave)  # and not when nobody waits any more: the thread still works
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """What has not begun never will."""
        for threads in (self._short, self._long):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _enter(self, length: int) -> None:
        if not self._waiting and self._fits(length):
            self._held += length
            return
        turn = asyncio.get_running_loop().create_future()
        entry = (length, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(length)
            else:
                with suppress(ValueError):  # passed over by `_admit` since
                    self._waiting.remove(entry)
                self._admit()  # those behind it may fit
            raise

    def _leave(self, length: int) -> None:
        self._held -= length
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            length, turn = self._waiting.popleft()
            if not turn.done():
                self._held += length
                turn.set_result(None)

    def _fits(self, length: int) -> bool:
        return self._held == 0 or self._held + length <= self._limit
