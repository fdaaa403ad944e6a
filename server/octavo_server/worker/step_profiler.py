"""What `--profile-dir DIR` does: names the steps for profilers, and records some of them when it is asked to.

Every step is an NVTX range, which Nsight Systems shows (`nsys profile --trace=cuda,nvtx octavo serve …`). Recording
needs no tool: once a file `DIR/start` appears (`touch`, in a container by `kubectl exec`), the next steps are recorded
by torch's profiler, launches on the host and kernels on the device, and written to `DIR/steps-FIRST-LAST.json.gz` for
https://ui.perfetto.dev. The file `start` is gone once that begins. Requests wait while the record is written.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch

from octavo_server.errors import ConfigError
from octavo_server.step import SchedulerOutput

log = logging.getLogger(__name__)

RECORDED_STEPS: Final = 50


class StepProfiler:
    """Steps go through `step`, one after the other on one thread."""

    def __init__(self, directory: Path, device: torch.device) -> None:
        """Raises ConfigError if the directory cannot be made."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--profile-dir {directory}: {error.strerror or error}") from error
        self._directory = directory
        self._cuda = device.type == "cuda"
        self._profile: torch.profiler.profile | None = None
        self._first = self._last = 0

    @contextmanager
    def step(self, output: SchedulerOutput) -> Iterator[None]:
        """Around the host's part of a step; here a recording begins and ends."""
        if self._profile is not None and output.step > self._last:
            self.end()
        if self._profile is None and self._is_asked():
            self._begin(output.step)
        prefills = sum(count > 1 for count in output.num_scheduled_tokens.values())
        decodes = len(output.num_scheduled_tokens) - prefills
        name = f"step {output.step}: {decodes} decodes, {prefills} prefills, {output.total_tokens} tokens"
        if self._cuda:
            torch.cuda.nvtx.range_push(name)  # type: ignore[no-untyped-call]
        try:
            with torch.profiler.record_function(name):
                yield
        finally:
            if self._cuda:
                torch.cuda.nvtx.range_pop()  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Writes what was recorded, if there is a recording."""
        if self._profile is None:
            return
        profile, self._profile = self._profile, None
        path = self._directory / f"steps-{self._first}-{self._last}.json.gz"
        try:
            profile.stop()
            profile.export_chrome_trace(str(path))
            log.info("recorded steps %d to %d in %s", self._first, self._last, path)
        except (OSError, RuntimeError):
            log.exception("what was recorded could not be written to %s", path)

    def _is_asked(self) -> bool:
        asked = self._directory / "start"
        if not asked.exists():
            return False
        try:
            asked.unlink()
        except OSError as error:
            log.warning("%s cannot be removed, so nothing is recorded: %s", asked, error)
            return False
        return True

    def _begin(self, step: int) -> None:
        self._first, self._last = step, step + RECORDED_STEPS - 1
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._cuda:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=activities)
        self._profile.start()
