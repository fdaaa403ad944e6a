"""A step under way: what was launched, and how to wait for it."""

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from octavo_server.errors import EngineError
from octavo_server.ipc import ErrorKind, TokenLogprobs
from octavo_server.step import SampledRow
from octavo_server.worker.input_batch import RequestState, ScheduledRow
from octavo_server.worker.logprobs import LogprobTensors
from octavo_server.worker.pooling import PooledTensors
from octavo_server.worker.sampler import SampledTensors

NO_DISTRIBUTION: Final = "the model gave no probabilities for the next token (its logits are not finite numbers)"
NOTHING_LEFT: Final = "every token that the grammar allows here is excluded by "  # what does it follows
_LONGEST_PAUSE: Final = 5e-5  # seconds
_PAUSES: Final = 500


class StepBehindFailed(RuntimeError):
    """The step was launched behind one that failed, so its inputs cannot be trusted."""


@dataclass(frozen=True, slots=True)
class Launched:
    """What a step has enqueued: tensors in host memory, which are written once `event` has come (None: they are).

    sampled: of each chunk of the rows that sample. prompts: the chunks of a row's prompt log-probabilities. pooled: of
    the rows whose prompt is through and that want no token. release: to be called once all of it was read.
    """

    rows: Sequence[ScheduledRow] = ()
    sampled: Sequence[tuple[Sequence[ScheduledRow], SampledTensors]] = ()
    prompts: dict[str, list[LogprobTensors]] = field(default_factory=dict)
    event: torch.cuda.Event | None = None
    pooled: PooledTensors | None = None
    release: Callable[[], None] = lambda: None

    def is_through(self, timeout: float | None) -> bool:
        """Whether the device is through with it, waiting for it up to `timeout` seconds (None: as long as it takes)."""
        if self.event is None or _has_come(self.event):
            return True
        if timeout is None:
            self.event.synchronize()
            return True
        begin = now = time.monotonic()
        while now < begin + timeout:
            pause(now - begin)
            if _has_come(self.event):
                return True
            now = time.monotonic()
        return False

    def collect(self) -> list[SampledRow]:
        """Reads the tensors, tells the requests' states their tokens, and makes the rows that say something."""
        prompts = {row.state.request_id: self._prompt_logprobs(row) for row in self.rows if row.wants_prompt_logprobs}
        result = [] if self.pooled is None else self.pooled.results()
        for rows, tensors in self.sampled:
            logprobs = tensors.logprobs_by_row()
            for index, (row, token) in enumerate(zip(rows, tensors.token_ids(), strict=True)):
                state, end = row.state, row.end
                state.token_ids[end], state.num_known = max(token, 0), end + 1
                if token < 0 or state.failed:  # what is computed from a token that means nothing does not, either
                    state.failed = True
                    prompts.pop(state.request_id, None)
                    error, kind = _why_failed(state)
                    result.append(SampledRow(state.request_id, error=error, error_kind=kind))
                elif logprobs or prompts:
                    prompt = prompts.pop(state.request_id, None)
                    result.append(SampledRow(state.request_id, token, logprobs.get(index), prompt))
                else:
                    result.append(SampledRow(state.request_id, token))
        self.release()
        return result + [SampledRow(request_id, prompt_logprobs=found) for request_id, found in prompts.items()]

    def _prompt_logprobs(self, row: ScheduledRow) -> list[TokenLogprobs | None]:
        """Of the prompt tokens that this step's tokens predict; the very first token is predicted by none."""
        found: list[TokenLogprobs | None] = [None] if row.start == 0 else []
        for chunk in self.prompts[row.state.request_id]:
            found += chunk.results()
        return found


class StepHandle:
    """A step that was launched. `wait` for it in the order of the launches, on the thread that launched it."""

    def __init__(self, behind: "StepHandle | None") -> None:
        """behind: the step before it, if `wait` has not said yet what came of that."""
        self.progress = 0  # grows as parts of the step get done
        self.states: list[RequestState] = []  # of its requests, whose pages it reads and writes
        self._behind = behind
        self._ran = threading.Event()  # everything is enqueued, or on the CPU computed
        self._launched = Launched()
        self._rows: list[SampledRow] | None = None
        self._error: Exception | None = None
        self.is_reported = False  # `wait` has returned its rows, or raised

    @property
    def may_be_computing(self) -> bool:
        """Whether it may still read and write its pages; of a step that broke off nobody knows."""
        if not self._ran.is_set() or self._error is not None:
            return True
        try:
            return self._rows is None and not self._launched.is_through(0.0)
        except RuntimeError:  # `wait` will say what the device reports
            return True

    def run(self, compute: Callable[[], Launched], move: Callable[[], None] = lambda: None) -> None:
        """Does the host's part, on whatever thread; what it raises is raised by `wait`.

        `move` comes first, whatever became of the step before: the scheduler counts on it that pages were moved.
        """
        try:
            _move_or_end(move)
            if self._behind is not None and self._behind._error is not None:
                raise StepBehindFailed("the step before this one failed") from self._behind._error
            self._launched = compute()
            if self._launched.event is None:
                self._rows = self._launched.collect()
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold the step's tensors
            self._error = error
        if self._error is not None or self._rows is not None:
            self._behind = None
        self._ran.set()

    def join(self) -> None:
        """Waits until the host's part is over, however it ends. Raises EngineError if pages could not be moved."""
        self._ran.wait()
        if isinstance(self._error, EngineError):
            raise self._error

    def wait(self, timeout: float | None = None) -> list[SampledRow] | None:
        """The step's rows: of the requests about which there is something to say. None if it is not through in time.

        timeout: seconds; None waits as long as it takes. Raises what the step raised, and StepBehindFailed if the step
        that was under way at its launch failed.
        """
        if not self._ran.wait(timeout):
            return None
        if self._error is None and self._rows is None:
            try:
                if not self._launched.is_through(timeout):
                    return None
                self.settle()
            except Exception as error:  # CUDA reports what a kernel did wrong wherever it is asked next
                self._error = error
        self.is_reported = True
        if self._error is not None:
            raise self._error
        return self._rows

    def result(self) -> list[SampledRow]:
        """`wait` for as long as it takes."""
        return self.wait() or []

    def settle(self) -> None:
        """Waits until its tokens, and those of the steps before it, are known on the host. Raises as `wait` does."""
        self.settle_before()
        if self._error is not None:
            raise self._error
        if self._rows is None:
            self._launched.is_through(None)
            self._rows = self._launched.collect()

    def settle_before(self) -> None:
        """The same of the steps before it alone."""
        if self._behind is not None:
            self._behind.settle()
            self._behind = None


def _why_failed(state: RequestState) -> tuple[str, ErrorKind]:
    if state.grammar is None:
        return NO_DISTRIBUTION, "internal"
    if state.grammar.error is not None:
        return state.grammar.error, state.grammar.error_kind
    params = state.sampling
    given = (("bad_words", params.bad_words), ("min_tokens, with stop_token_ids", params.min_tokens))
    excluding = " or ".join(name for name, value in given if value)
    return (NOTHING_LEFT + excluding, "invalid") if excluding else (NO_DISTRIBUTION, "internal")


def pause(waited: float) -> None:
    """Sleeps until the device is worth asking again, by the seconds waited so far.

    A part of these: short waits are not made longer by a sleep, whose processor would go idle and wake up slowly, and
    long ones cost little of it.
    """
    time.sleep(min(waited / _PAUSES, _LONGEST_PAUSE))


def _has_come(event: torch.cuda.Event) -> bool:
    """Raises what the device reports, of whatever work it did before."""
    return bool(event.query())  # type: ignore[no-untyped-call]


def _move_or_end(move: Callable[[], None]) -> None:
    try:
        move()
    except Exception as error:  # what is in which page is not known any more: the next hit could give wrong tokens
        raise EngineError("pages could not be moved between the device, host memory and disk") from error
