"""Where requests with a grammar wait until it is compiled, before they join the scheduler.

They may be aborted and their time may be up here, too. The API process has compiled each grammar before: what fails
here all the same ends the requests that have it, and nothing else. A grammar is never compiled within a step.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import msgspec

from octavo_server.grammar_store import GrammarStore
from octavo_server.ipc import AddRequest, ErrorKind, RequestOutput

if TYPE_CHECKING:
    from llguidance import LLMatcher

log = logging.getLogger(__name__)


class GrammarGate:
    """Used by the engine's loop alone."""

    def __init__(self, store: GrammarStore | None) -> None:
        """store: None refuses every grammar."""
        self._store = store
        self._waiting: dict[str, AddRequest] = {}
        self._held: dict[str, str] = {}  # request → grammar, of those that went on
        self._tokens: Counter[str] = Counter()  # of their answers so far
        self._job: tuple[str, Future[LLMatcher]] | None = None

    @property
    def num_waiting(self) -> int:
        """Requests that wait here."""
        return len(self._waiting)

    def add(self, request: AddRequest) -> list[RequestOutput]:
        """A request with a grammar comes; the result is its refusal. Raises ValueError for an id that waits here."""
        if request.request_id in self._waiting:
            raise ValueError(f"request id {request.request_id!r} is already in use")
        if self._store is None:
            return [_error(request.request_id, "this engine has no tokenizer to compile grammars with", "invalid")]
        self._waiting[request.request_id] = request
        return []

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """Ends requests that wait here; other ids are ignored."""
        found = [request_id for request_id in dict.fromkeys(request_ids) if self._waiting.pop(request_id, None)]
        return [RequestOutput(request_id, [], "abort") for request_id in found]

    def poll(self, now: float) -> tuple[list[AddRequest], list[RequestOutput]]:
        """Requests that may go on, and the ends of others. now: seconds of CLOCK_MONOTONIC."""
        if not self._waiting or self._store is None:
            return [], []
        ended = self._take_job(self._store)
        ready: list[AddRequest] = []
        for request in list(self._waiting.values()):
            grammar = request.sampling.grammar
            if request.deadline is not None and request.deadline <= now:
                del self._waiting[request.request_id]
                late = "the request's time was up before it was through"
                ended.append(_error(request.request_id, late, "timeout"))
            elif self._store.has(grammar):
                del self._waiting[request.request_id]
                ready.append(self._hold(request, self._store))
            elif self._job is None and self._store.has_room:
                self._job = grammar, self._store.compile(grammar)
        return ready, ended

    def forget(self, outputs: Iterable[RequestOutput]) -> None:
        """Some requests may have ended, by what is told of them all: their grammars are not held any more."""
        for output in outputs if self._held else ():
            if output.request_id not in self._held or self._store is None:
                continue
            self._tokens[output.request_id] += len(output.token_ids)
            if output.finish_reason is not None:
                self._store.release(self._held.pop(output.request_id), self._tokens.pop(output.request_id))

    def _hold(self, request: AddRequest, store: GrammarStore) -> AddRequest:
        grammar = self._held[request.request_id] = store.hold(request.sampling.grammar)
        # An answer ends where its grammar ends, and cannot go on behind its end.
        sampling = msgspec.structs.replace(request.sampling, grammar=grammar, ignore_eos=False)
        return msgspec.structs.replace(request, sampling=sampling)

    def _take_job(self, store: GrammarStore) -> list[RequestOutput]:
        if self._job is None or not self._job[1].done():
            return []
        (grammar, job), self._job = self._job, None
        try:
            store.keep(grammar, job.result())
            return []
        except Exception as error:
            # Nobody's fault but ours, whatever it is: the API process found that it can be served.
            log.error("a grammar does not compile here: %s: %s", type(error).__name__, error)
            found = [one.request_id for one in self._waiting.values() if one.sampling.grammar == grammar]
            for request_id in found:
                del self._waiting[request_id]
            return [_error(request_id, f"the grammar cannot be served: {error}", "internal") for request_id in found]


def _error(request_id: str, message: str, kind: ErrorKind) -> RequestOutput:
    return RequestOutput(request_id, [], finish_reason="error", error=message, error_kind=kind)
