"""The results of one HTTP request on their way from the engine's messages to whoever answers it.

Tokens become text as they come, and add up until the reader takes them. One that is slow finds more the next time:
nothing waits for it, and what is kept for it is its answer. A reader that waits may be passed by: `at_once` gets what
came, without the turn of a task that costs as much as all else there is to do for a token.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from octavo_server import ipc
from octavo_server.errors import EngineError
from octavo_server.frontend.answer import Answer, Delta

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer that is wanted. `frame` is the encoded message that asks for it, for the engine of `epoch` alone.

    None where the frame of a choice before it asks for this one too. `request_id` is unique among all open requests.
    """

    request_id: str
    epoch: int
    frame: bytes | None
    answer: Answer


class OutputStream:
    """Results of the choices of one HTTP request. Leaving it as a context aborts what is unfinished.

    An answer is changed only while its choice is open.
    """

    def __init__(self, choices: Sequence[Choice], give_up: Callable[[Iterable[str]], None], *, whole: bool) -> None:
        """`give_up` tells the engine of choices that are left; `whole`: the reader wants nothing before the end."""
        self._answers = {choice.request_id: choice.answer for choice in choices}
        self._open = set(self._answers)
        self._give_up = give_up
        self._whole = whole
        self._news = False
        self._reader: asyncio.Future[None] | None = None
        self._context = copy_context()  # the request's: what is logged of it belongs to it
        self._pending: dict[str, Delta] = {}
        self._error: EngineError | None = None
        self.at_once: Callable[[list[tuple[Answer, Delta]]], bool] | None = None  # whether it took what came

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left, self._open = self._open, set()
        self._give_up(left)

    def take(self, output: ipc.RequestOutput) -> bool:
        """A result of the engine. Whether its choice has ended, here if not in the engine."""
        request_id = output.request_id
        if request_id not in self._open:
            return True
        if output.finish_reason == "error":
            return self._end(request_id, EngineError(output.error or "it failed in the engine", output.error_kind))
        if (delta := self._pending.get(request_id)) is None:
            delta = self._pending[request_id] = Delta()
        answer = self._answers[request_id]
        try:
            answer.take(output, delta)
        except Exception:
            self._context.run(log.exception, "a result of the engine could not be turned into text")
            return self._end(request_id, EngineError("the server failed; its log says why", "internal"))
        if answer.finished:
            self._open.discard(request_id)
        return answer.finished

    def fail(self, error: EngineError) -> None:
        """No choice that is open will end otherwise."""
        self._error = self._error or error
        self._open.clear()
        self.tell()

    def tell(self) -> None:
        """There may be something to read: wakes the reader if it waits for that."""
        if self._whole and self._open and self._error is None:
            return
        if self._reader is not None and not self._reader.done():
            if self._passed_by():
                return
            self._reader.set_result(None)
        self._news = True

    def _passed_by(self) -> bool:
        """Whether the reader, which waits and so has seen all before, need not be woken."""
        if self.at_once is None or not self._open or self._error is not None:
            return False  # the end is the reader's
        try:
            taken = self.at_once(self._changes())
        except Exception:
            self._context.run(log.exception, "what the engine sent could not be given out")
            self._error = EngineError("the server failed; its log says why", "internal")
            return False
        if taken:
            self._pending = {}
        return taken

    def _changes(self) -> list[tuple[Answer, Delta]]:
        return [(self._answers[request_id], delta) for request_id, delta in self._pending.items()]

    async def deltas(self) -> AsyncGenerator[list[tuple[Answer, Delta]], None]:
        """What the choices got since the last time, until all have ended.

        Raises:
            EngineError: the engine died, or could not finish one of the choices.
        """
        ended = False
        while not ended:
            if not self._news:
                self._reader = asyncio.get_running_loop().create_future()
                await self._reader
            self._news = False
            changes, self._pending = self._changes(), {}
            error, ended = self._error, not self._open
            if changes:
                yield changes
            if error is not None:
                raise error

    def _end(self, request_id: str, error: EngineError) -> bool:
        self._open.discard(request_id)
        self._error = self._error or error
        return True
