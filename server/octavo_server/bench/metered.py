"""A runner that also tells how long the engine waited for the device: what is left of a step is the host's work."""

import time
from collections.abc import Callable
from typing import Any, Literal

from octavo_server.step import PageEvent, PageKey, SampledRow, SchedulerOutput, StepHandle
from octavo_server.worker.model_runner import ModelRunner
from octavo_server.worker.step_handle import pause


class MeteredHandle:
    """A step under way. The time in which its device is not through is added to the runner's `waited`."""

    def __init__(self, handle: Any, runner: "MeteredRunner") -> None:
        self._handle = handle
        self._runner = runner

    @property
    def progress(self) -> int:
        """Grows as parts of the step get done."""
        return int(self._handle.progress)

    @progress.setter
    def progress(self, value: int) -> None:
        self._handle.progress = value

    def wait(self, timeout: float | None = None) -> list[SampledRow] | None:
        """As the handle's own; but what it then still takes is reading the tokens, which is the host's work."""
        begin = time.perf_counter()
        end = float("inf") if timeout is None else begin + timeout
        # A step that broke always "may be computing": with a timeout that ends, and the engine gives one.
        while self._handle.may_be_computing and (now := time.perf_counter()) < end:
            pause(now - begin)
        self._runner.waited += time.perf_counter() - begin
        rows: list[SampledRow] | None = self._handle.wait(timeout)
        return rows


class MeteredRunner:
    """A `step.Runner` before a `ModelRunner`. `waited`: seconds for the device so far.

    `moves`: called with each step that is handed over, may add pages to be moved beside it.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.inner = runner
        self.grammars = runner.grammars
        self.waited = 0.0
        self.moves: Callable[[SchedulerOutput], None] = lambda _output: None

    @property
    def bytes_per_page(self) -> int:
        """K and V of a page in all layers."""
        return self.inner.bytes_per_page

    @property
    def copy_bytes_per_second(self) -> float:
        """Measured between device and host memory, one way; 0: not known."""
        return self.inner.copy_bytes_per_second

    def launch(self, output: SchedulerOutput, on_progress: Callable[[], None]) -> StepHandle:
        """Hands a step over."""
        self.moves(output)
        return MeteredHandle(self.inner.launch(output, on_progress), self)

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether a step that raised this broke for want of memory."""
        return self.inner.is_out_of_memory(error)

    def recover(self) -> None:
        """After a step that broke, and those behind it."""
        self.inner.recover()

    def poll_events(self) -> list[PageEvent]:
        """What was done beside the steps since the last call."""
        return self.inner.poll_events()

    def idle(self) -> bool:
        """Does some of the work that is left for idle moments; whether there is more."""
        return self.inner.idle()

    def flush(self, pages: list[tuple[Literal["device", "host"], int, PageKey]], seconds: float) -> int:
        """Writes cached pages to disk, if there is such a tier; how many."""
        return self.inner.flush(pages, seconds)

    def close(self) -> None:
        """Nothing: the runner serves one engine after the other, `BenchEngine.close` ends it."""
