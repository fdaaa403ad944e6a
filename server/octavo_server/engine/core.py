"""The engine: scheduler and runner put together. A step is schedule, execute, update."""

import logging
from collections.abc import Callable, Iterable

import torch

from octavo_server.engine.request import Request
from octavo_server.engine.scheduler import Scheduler
from octavo_server.engine.step import SampledRow, SchedulerOutput
from octavo_server.ipc import AddRequest, EngineStats, RequestOutput
from octavo_server.worker.model_runner import ModelRunner

log = logging.getLogger(__name__)

OUT_OF_MEMORY = "the engine ran out of memory in the step that this request was part of"
STEP_FAILED = "the engine failed in the step that this request was part of"


class EngineCore:
    """Owns the requests from their arrival to their last token. Not thread-safe: one loop calls it."""

    def __init__(self, scheduler: Scheduler, runner: ModelRunner) -> None:
        self.scheduler = scheduler
        self.runner = runner

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return self.scheduler.has_work

    def add(self, message: AddRequest) -> list[RequestOutput]:
        """Takes a request in; the result is its refusal, if it cannot be served. Raises ValueError for an id in use."""
        limit = self.scheduler.limits.max_model_len
        refusal = self.scheduler.add(Request(message.request_id, message.prompt_token_ids, message.sampling, limit))
        return [] if refusal is None else [refusal]

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """Ends requests at whatever stage; ids that are not here are ignored."""
        return self.scheduler.abort(request_ids)

    def step(self, on_progress: Callable[[], None] = lambda: None) -> list[RequestOutput]:
        """Computes the next tokens of the running batch, and says what came of it.

        Calls `on_progress` whenever a part of the step is done.
        """
        output = self.scheduler.schedule()
        rows = self._execute(output, on_progress)
        return self.scheduler.update(output, rows)

    def stats(self, step_seconds: float) -> EngineStats:
        """The state after a step that took `step_seconds`."""
        scheduler, kv_cache = self.scheduler, self.scheduler.kv_cache
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            waiting_prompt_tokens=scheduler.num_waiting_tokens,
            kv_blocks_used=kv_cache.num_blocks_used,
            kv_blocks_total=kv_cache.pool.num_blocks,
            block_size=kv_cache.block_size,
            preemptions=scheduler.num_preemptions,
            prompt_tokens=scheduler.num_prompt_tokens,
            generation_tokens=scheduler.num_generation_tokens,
            steps=scheduler.num_steps,
            step_seconds=step_seconds,
        )

    def _execute(self, output: SchedulerOutput, on_progress: Callable[[], None]) -> list[SampledRow]:
        """Runs a step. One that breaks ends, with an error, the requests that were in it, and no others.

        Raises EngineError if the device is of no use any more.
        """
        try:
            return self.runner.execute(output, on_progress)
        except Exception as error:
            log.exception("step %d failed, with %d requests", output.step, len(output.num_scheduled_tokens))
            message = OUT_OF_MEMORY if _is_out_of_memory(error) else STEP_FAILED
        self.runner.recover()
        return [SampledRow(request_id, error=message) for request_id in output.num_scheduled_tokens]


def _is_out_of_memory(error: Exception) -> bool:
    """CUDA's allocator has an exception of its own, the CPU's has not."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
