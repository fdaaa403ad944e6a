"""The engine: scheduler and runner put together. A step is schedule, launch, wait, update.

With overlap a step is scheduled and launched while the one before it runs. Its rows' newest tokens are not known then:
the runner takes them from where the step before leaves them on the device. What comes of it: a request that ends by a
token of its own is found out one step late, and what that step made of it is dropped.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from octavo_server.engine.request import Request
from octavo_server.engine.scheduler import Scheduler
from octavo_server.errors import EngineError
from octavo_server.ipc import AddRequest, EngineStats, RequestOutput
from octavo_server.page_hash import split_hashes
from octavo_server.step import Runner, SampledRow, SchedulerOutput, StepHandle
from octavo_server.step_meter import StepMeter
from octavo_server.step_ring import StepRing, describe

log = logging.getLogger(__name__)

_WAIT_SECONDS: Final = 0.1  # after which a step that runs is asked whether it gets on


@dataclass(slots=True)
class _Flight:
    """A step that was launched. `num_prefill_tokens`: of its tokens. `record`: what the step ring says of it."""

    output: SchedulerOutput
    handle: StepHandle
    num_prefill_tokens: int
    record: str


class EngineCore:
    """Owns the requests from their arrival to their last token. Not thread-safe: one loop calls it.

    `overlap`: at most one step is under way while the next is scheduled. `clock`: seconds of CLOCK_MONOTONIC, in which
    deadlines are given. `meter` and `ring` measure and tell of each step.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        *,
        overlap: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.overlap = overlap
        self.meter = StepMeter()
        self.ring = StepRing()
        self.is_stalled = False  # all requests wait for something beside the steps, as the disk
        self._clock = clock
        self._flights: deque[_Flight] = deque()
        scheduler.rates.bytes_per_page = runner.bytes_per_page
        scheduler.kv_cache.tiers.in_flight = int(overlap)

    @property
    def has_work(self) -> bool:
        """Whether there is a request, or a step under way."""
        return bool(self.scheduler.requests or self._flights)

    def add(self, message: AddRequest) -> list[RequestOutput]:
        """Takes a request in; the result is its refusal, if it cannot be served. Raises ValueError for an id in use."""
        request = Request(
            message.request_id,
            message.prompt_token_ids + message.output_token_ids,
            message.sampling,
            self.scheduler.limits.max_model_len,
            arrival=message.arrival,
            priority=message.priority,
            deadline=message.deadline,
            page_hashes=split_hashes(message.page_hashes),
            salt=message.salt,
            pooling=message.pooling,
            num_replayed=len(message.output_token_ids),
        )
        return self.scheduler.add(request)

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """Ends requests at whatever stage; ids that are not here are ignored."""
        return self.scheduler.abort(request_ids)

    def step(self, on_progress: Callable[[], None] = lambda: None) -> list[RequestOutput]:
        """Launches the next step, waits for the one whose turn it is, and says what came of that.

        Calls `on_progress` whenever a part of a step is done. Raises EngineError if the device is of no use any more.
        """
        started = self._clock()
        results = self.scheduler.expire(started)
        self._take_events()
        output = self.scheduler.schedule()
        for request in [self.scheduler.requests[joined.request_id] for joined in output.new_requests]:
            request.first_scheduled = request.first_scheduled or started
        self.meter.schedule_seconds = self._clock() - started
        if not output.is_empty:
            self._launch(output, on_progress)
        self.is_stalled = output.is_empty and not self._flights
        if self._flights and (output.is_empty or len(self._flights) > self.overlap):
            results += self._land(on_progress)
        return results

    def idle(self) -> bool:
        """To be called when there is nothing else to do, or rarely; whether there is more of such work."""
        self._take_events()
        return self.runner.idle()

    def stats(self) -> EngineStats:
        """The state now."""
        scheduler, kv_cache = self.scheduler, self.scheduler.kv_cache
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            waiting_prompt_tokens=scheduler.num_waiting_tokens,
            kv_blocks_total=kv_cache.pool.num_blocks,
            block_size=kv_cache.block_size,
            **scheduler.counts,
            **self.meter.stats(),
            **kv_cache.stats,
        )

    def close(self, seconds: float) -> None:
        """Ends all requests and waits for the step under way; then as many cached pages go to disk as time allows."""
        scheduler, deadline = self.scheduler, time.monotonic() + seconds
        scheduler.abort(list(scheduler.requests))
        try:
            while self._flights:
                rows = self._flights[0].handle.wait(max(0.0, deadline - time.monotonic()))
                if rows is None:
                    break
                scheduler.update(self._flights.popleft().output, rows)
        except Exception:
            log.exception("the last step failed")
        pages = [] if self._flights else scheduler.kv_cache.cached_pages()  # of no use if a step did not end well
        if stored := self.runner.flush(pages, max(0.0, deadline - time.monotonic())):
            log.info("wrote %d cached pages to disk", stored)
        self.runner.close()

    def _take_events(self) -> None:
        for event in self.runner.poll_events():
            self.scheduler.kv_cache.handle(event)

    def _launch(self, output: SchedulerOutput, on_progress: Callable[[], None]) -> None:
        scheduler, free = self.scheduler, self.scheduler.kv_cache.pool.num_free
        record = describe(output, scheduler.num_prefill_tokens, len(scheduler.running), len(scheduler.waiting), free)
        self.ring.write(output.step, f"{record}: scheduled")
        self.meter.begin(self._clock(), output.total_tokens, scheduler.num_prefill_tokens)
        handle = self.runner.launch(output, on_progress)
        self.meter.launched(self._clock())
        self._flights.append(_Flight(output, handle, scheduler.num_prefill_tokens, record))

    def _land(self, on_progress: Callable[[], None]) -> list[RequestOutput]:
        """Takes in the oldest step under way; one that breaks ends the requests in it and behind it, and no others.

        Raises EngineError if it leaves pages of which nobody knows what they hold.
        """
        flight = self._flights.popleft()
        try:
            rows = self._wait(flight.handle, on_progress)
        except EngineError:
            raise
        except Exception as error:
            return self._fail(flight, error)
        now = self._clock()
        self.meter.add(now, flight.output.total_tokens, flight.num_prefill_tokens)
        self.scheduler.rates.prefill_tokens_per_second = self.meter.prefill.value
        self.scheduler.rates.copy_bytes_per_second = self.runner.copy_bytes_per_second
        results = self.scheduler.update(flight.output, rows)
        self.meter.schedule_seconds += self._clock() - now
        self.ring.write(flight.output.step, f"{flight.record}: done in {self.meter.step_seconds:.4f} s")
        return results

    def _wait(self, handle: StepHandle, on_progress: Callable[[], None]) -> list[SampledRow]:
        progress = handle.progress
        while (rows := handle.wait(_WAIT_SECONDS)) is None:
            if handle.progress != progress:
                progress = handle.progress
                on_progress()
        return rows

    def _fail(self, flight: _Flight, error: Exception) -> list[RequestOutput]:
        flights = [flight, *self._flights]
        self._flights.clear()
        self.meter.forget()
        for each in flights:
            self.ring.write(each.output.step, f"{each.record}: failed: {type(error).__name__}")
        told = (flight.output.step, len(flights) - 1, flight.output.some_ids)
        log.error("step %d failed, with %d behind it; in it: %s", *told, exc_info=error)
        log.error("the last steps:\n%s", "\n".join(self.ring.read()[-10:]))
        self.runner.recover()
        memory = self.runner.is_out_of_memory(error)
        why = f"the engine {'ran out of memory' if memory else 'failed'} in the step that this request was part of"
        return self.scheduler.fail([each.output for each in flights], why, "out_of_memory" if memory else "internal")
