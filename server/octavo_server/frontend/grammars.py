"""Grammars, compiled beside the event loop by a process that can be killed: see `text/grammar_worker.py`.

It is there from the first grammar on. What came of a grammar is remembered, good or not.
"""

import asyncio
import dataclasses
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from octavo_server.errors import RequestError
from octavo_server.frontend.structured import GrammarSource
from octavo_server.frontend.text.line_process import LinePool, Stopped

CPU_SECONDS: Final = 0.7
CACHE_BYTES: Final = 32 * 2**20
COMPILERS: Final = 2  # the second while the first is busy
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
        self._under_way: dict[GrammarSource, asyncio.Future[_Outcome]] = {}
        self._found: OrderedDict[GrammarSource, _Outcome] = OrderedDict()
        self._bytes, self._most_bytes = 0, cache_bytes

    async def compile(self, source: GrammarSource) -> str:
        """The text for `SamplingParams.grammar`.

        Raises:
            RequestError: the grammar is wrong, or too much work to compile; `source.param` is the field.
        """
        key = dataclasses.replace(source, param="")
        outcome = self._found.get(key)
        if outcome is None:
            try:
                outcome = await self._compiled(key)
            except Stopped as error:  # not by the grammar's own doing: that is an answer
                raise RequestError(f"{source.param}: it was not compiled: {error}", param=source.param) from error
        else:
            self._found.move_to_end(key)
        if outcome.reason:
            raise RequestError(f"{source.param}: it cannot be served: {outcome.reason}", param=source.param)
        return outcome.grammar

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._processes.close()

    async def _compiled(self, key: GrammarSource) -> _Outcome:
        future = self._under_way.get(key)
        if future is None:
            future = asyncio.get_running_loop().run_in_executor(self._threads, self._ask, key)
            self._under_way[key] = future
            future.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(future)  # others may wait for it, too

    def _ask(self, key: GrammarSource) -> _Outcome:
        reply = self._processes.ask(dataclasses.asdict(key))
        return _Outcome(reply.get("grammar", ""), reply.get("refused", ""))

    def _keep(self, key: GrammarSource, done: "asyncio.Future[_Outcome]") -> None:
        del self._under_way[key]
        if done.cancelled() or done.exception() is not None:
            return
        self._found[key] = done.result()
        self._bytes += _size(key, done.result())
        while self._bytes > self._most_bytes:
            self._bytes -= _size(*self._found.popitem(last=False))


def _size(key: GrammarSource, outcome: _Outcome) -> int:
    """Bytes, as much as they can be: four for a character."""
    return _ENTRY_BYTES + 4 * (len(key.text) + len(outcome.grammar) + len(outcome.reason))
