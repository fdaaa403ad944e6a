"""Grammars, compiled beside the event loop by a process that can be killed: see `text/grammar_worker.py`.

It is there from the first grammar on. What came of a grammar is remembered, good or not. Callers take turns.
"""

import asyncio
import dataclasses
import math
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final

from octavo_server.errors import EngineError, RequestError
from octavo_server.frontend.admission import RETRY_LEAST_SECONDS, RETRY_MOST_SECONDS
from octavo_server.frontend.structured import GrammarSource
from octavo_server.frontend.text.line_process import LinePool, Stopped
from octavo_server.frontend.turns import Full, Turns

CPU_SECONDS: Final = 0.7
CACHE_BYTES: Final = 32 * 2**20
COMPILERS: Final = 2  # the second while the first is busy
MOST_WAITING: Final = 256  # grammars, of 256 KiB at most
MOST_OF_CALLER: Final = 64  # of these
_PATIENCE_SECONDS: Final = 20.0  # for the start, and where the machine is busy
_WORKER: Final = "octavo_server.frontend.text.grammar_worker"
_ENTRY_BYTES: Final = 512  # that an entry takes besides its texts


@dataclasses.dataclass(frozen=True, slots=True)
class _Outcome:
    """grammar: for the engine, empty if it was refused. reason: then why."""

    grammar: str
    reason: str


class Grammars:
    """Compiles grammars to see whether they can be served. Used by the event loop alone."""

    def __init__(self, model: Path, cpu_seconds: float = CPU_SECONDS, cache_bytes: int = CACHE_BYTES) -> None:
        """model: the directory, whose tokenizer grammars are compiled for. cpu_seconds: for each of them."""
        start = {"model": str(model), "cpu_seconds": cpu_seconds}
        self._processes = LinePool(_WORKER, start, _PATIENCE_SECONDS)
        self._threads = ThreadPoolExecutor(COMPILERS, thread_name_prefix="grammar")
        self._turns = Turns(self._compiled, COMPILERS, MOST_WAITING, MOST_OF_CALLER)
        self._found: OrderedDict[GrammarSource, _Outcome] = OrderedDict()
        self._bytes, self._most_bytes = 0, cache_bytes

    async def compile(self, source: GrammarSource, caller: bytes = b"", deadline: float | None = None) -> str:
        """The text for `SamplingParams.grammar`. caller: who takes turns with others. deadline: of CLOCK_MONOTONIC.

        Raises:
            RequestError: the grammar is wrong, or too much work to compile, `source.param` is the field; 429: too many
                wait already; 503: it could not be compiled, by no fault of its own.
            EngineError: the time is up, or the server is shutting down.
        """
        key = dataclasses.replace(source, param="")
        outcome = self._found.get(key)
        if outcome is None:
            outcome = await self._waited_for(key, caller, deadline)
        else:
            self._found.move_to_end(key)
        if outcome.reason:
            raise RequestError(f"{source.param}: it cannot be served: {outcome.reason}", param=source.param)
        return outcome.grammar

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._processes.close()

    def end_waiting(self, reason: str) -> None:
        """Ends every request that waits here, as the engine's are ended."""
        self._turns.close(EngineError(reason))

    async def _waited_for(self, key: GrammarSource, caller: bytes, deadline: float | None) -> _Outcome:
        seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return await asyncio.wait_for(self._turns.result(key, caller), seconds)
        except TimeoutError as error:
            raise EngineError("the request's time was up before it was through", "timeout") from error
        except Full as error:
            raise RequestError(
                f"the server is full: {error.waiting} grammars wait to be compiled; try again",
                code="queue_full",
                status=HTTPStatus.TOO_MANY_REQUESTS,
                type="rate_limit_error",
                retry_after=_retry_after(error.waiting),
            ) from error
        except Stopped as error:  # not by the grammar's own doing: that is an answer
            raise RequestError(
                f"the grammar could not be compiled now, try again: {error}",
                code="unavailable",
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                type="server_error",
            ) from error

    async def _compiled(self, key: GrammarSource) -> _Outcome:
        ask = partial(self._processes.ask, dataclasses.asdict(key))
        reply = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        if "failed" in reply:
            raise Stopped(reply["failed"])
        outcome = self._found[key] = _Outcome(reply.get("grammar", ""), reply.get("refused", ""))
        self._bytes += _size(key, outcome)
        while self._bytes > self._most_bytes:
            self._bytes -= _size(*self._found.popitem(last=False))
        return outcome


def _retry_after(waiting: int) -> int:
    """Whole seconds in which as many are compiled, at worst."""
    return min(max(math.ceil(waiting * CPU_SECONDS / COMPILERS), RETRY_LEAST_SECONDS), RETRY_MOST_SECONDS)


def _size(key: GrammarSource, outcome: _Outcome) -> int:
    """Bytes, as much as they can be: four for a character."""
    return _ENTRY_BYTES + 4 * (len(key.text) + len(outcome.grammar) + len(outcome.reason))
