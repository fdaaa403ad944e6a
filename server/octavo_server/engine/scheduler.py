"""Which tokens are computed in the next step, and what follows from the tokens that come back.

Continuous batching after Orca (Yu et al., OSDI 2022) over pages as in PagedAttention (Kwon et al., SOSP 2023), with
prefill cut into chunks that share a step with decodes (Sarathi-Serve, Agrawal et al., OSDI 2024).

Pure: no clock, no randomness, no tensor; the same calls give the same decisions. `schedule` already counts what it
hands out as computed, so that a next step can be scheduled before the tokens of this one are known.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.request import Request, RequestStatus
from octavo_server.engine.step import NewRequest, SampledRow, SchedulerOutput
from octavo_server.ipc import RequestOutput, TokenLogprobs


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of a step and of a request. `max_model_len` counts prompt and answer together."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int] = frozenset()


class Scheduler:
    """The queue, the running batch and the rules between them.

    First come, first served: `running` followed by `waiting` is always in order of arrival. New requests join at every
    step. If pages run out, the youngest running request gives its own back and waits at the queue's head; its tokens
    are kept, and computed again later (preemption by recompute). The oldest one therefore always gets on.
    """

    def __init__(self, limits: SchedulerLimits, kv_cache: KVCacheManager) -> None:
        if limits.max_model_len > kv_cache.num_tokens_total:
            raise ValueError(
                f"max_model_len is {limits.max_model_len}, the pages hold {kv_cache.num_tokens_total} tokens: "
                "a request could grow too long to ever finish"
            )
        self.limits = limits
        self.kv_cache = kv_cache
        self.waiting: OrderedDict[str, Request] = OrderedDict()
        self.running: list[Request] = []
        self.requests: dict[str, Request] = {}  # running and waiting
        self.num_preemptions = 0
        self.num_prompt_tokens = 0  # of requests whose prompt is through
        self.num_generation_tokens = 0
        self.num_waiting_tokens = 0
        self.num_steps = 0
        self._finished_ids: list[str] = []  # that the worker has not been told of yet

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return bool(self.requests)

    def add(self, request: Request) -> RequestOutput | None:
        """Puts a request at the queue's end, or returns the error with which it is refused.

        Raises ValueError if a request of that id is already here.
        """
        if request.request_id in self.requests:
            raise ValueError(f"request id {request.request_id!r} is already in use")
        if error := self._reason_to_refuse(request):
            request.status = RequestStatus.FINISHED
            return RequestOutput(request.request_id, [], finish_reason="error", error=error)
        self.requests[request.request_id] = request
        self._enqueue(request, first=False)
        return None

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """Ends requests at whatever stage they are; their pages are free at once. Unknown ids are ignored."""
        found = [self.requests[request_id] for request_id in dict.fromkeys(request_ids) if request_id in self.requests]
        for request in found:
            self._finish(request)
        self._drop_finished()
        return [RequestOutput(request.request_id, [], finish_reason="abort") for request in found]

    def schedule(self) -> SchedulerOutput:
        """Decides the next step: who is running first, in order of arrival, then who can join."""
        self.num_steps += 1
        finished, self._finished_ids = self._finished_ids, []
        output = SchedulerOutput(step=self.num_steps, finished_ids=finished)
        budget = self._schedule_running(output, self.limits.max_num_batched_tokens)
        self._schedule_waiting(output, budget)
        for request_id, count in output.num_scheduled_tokens.items():
            self.requests[request_id].num_computed_tokens += count
        return output

    def update(self, output: SchedulerOutput, rows: Iterable[SampledRow]) -> list[RequestOutput]:
        """Takes in what the worker made of a step. Rows of requests that ended meanwhile are dropped."""
        results = [
            self._update_row(self.requests[row.request_id], row) for row in rows if row.request_id in self.requests
        ]
        self._drop_finished()
        return [result for result in results if result is not None]

    def _reason_to_refuse(self, request: Request) -> str | None:
        if request.num_prompt_tokens == 0:
            return "the prompt is empty; it needs at least one token"
        if request.num_prompt_tokens >= self.limits.max_model_len:
            return (
                f"the prompt has {request.num_prompt_tokens} tokens and leaves no room for an answer: "
                f"prompt and answer together may have {self.limits.max_model_len}"
            )
        low, high = min(request.token_ids), max(request.token_ids)
        if low < 0 or high >= self.limits.vocab_size:
            wrong = low if low < 0 else high
            return f"the prompt contains token id {wrong}; allowed are 0 to {self.limits.vocab_size - 1}"
        return None

    def _schedule_running(self, output: SchedulerOutput, budget: int) -> int:
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            count = min(request.num_tokens_to_compute, budget)
            added = self._allocate_or_preempt(request, count, output)
            if added is None:
                break  # it was the youngest, and has given way itself
            if added:
                output.new_block_ids[request.request_id] = added
            output.num_scheduled_tokens[request.request_id] = count
            budget -= count
            index += 1
        return budget

    def _allocate_or_preempt(self, request: Request, count: int, output: SchedulerOutput) -> list[int] | None:
        """Pages for the next tokens, taken from the youngest if need be; None if that is the request itself.

        The victim stands behind the request, so nothing is scheduled for it in this step yet.
        """
        while (added := self.kv_cache.allocate_slots(request, count)) is None:
            victim = self.running.pop()
            self._preempt(victim)
            output.preempted_ids.append(victim.request_id)
            if victim is request:
                return None
        return added

    def _preempt(self, request: Request) -> None:
        self.kv_cache.free(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        if request.num_output_tokens == 0:
            request.prompt_logprobs.clear()  # not sent yet; they come again
        self.num_preemptions += 1
        self._enqueue(request, first=True)

    def _schedule_waiting(self, output: SchedulerOutput, budget: int) -> None:
        """Lets requests join. One that does not fit holds up those behind it: otherwise long ones would starve."""
        # All of a prompt and a first token must fit, though only a chunk is computed now: half a prefill that is
        # preempted is work for nothing. Nor is a page free that the next token of one before it needs. (Their prompts
        # have all of their pages by now: as long as one is under way, it leaves no budget.)
        reserved = sum(self._blocks_to_come(request) for request in self.running) if self.waiting else 0
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs:
            request = next(iter(self.waiting.values()))
            if self._blocks_to_come(request) > self.kv_cache.pool.num_free - reserved:
                return
            count = min(request.num_tokens_to_compute, budget)
            self.kv_cache.allocate_slots(request, count)
            reserved += self._blocks_to_come(request)
            self._dequeue(request)
            request.status = RequestStatus.RUNNING
            self.running.append(request)
            output.new_requests.append(self._introduce(request))
            output.num_scheduled_tokens[request.request_id] = count
            budget -= count

    def _blocks_to_come(self, request: Request) -> int:
        """Pages that a request takes until all tokens it has, and the next one, have their slots."""
        return self.kv_cache.blocks_needed(request, request.num_tokens + 1)

    def _introduce(self, request: Request) -> NewRequest:
        return NewRequest(
            request_id=request.request_id,
            token_ids=list(request.token_ids),
            num_prompt_tokens=request.num_prompt_tokens,
            max_tokens_in_all=request.max_tokens_in_all,
            sampling=request.sampling,
            block_ids=self.kv_cache.block_ids(request),
            num_computed_tokens=request.num_computed_tokens,
        )

    def _update_row(self, request: Request, row: SampledRow) -> RequestOutput | None:
        if row.prompt_logprobs:
            request.prompt_logprobs.extend(row.prompt_logprobs)
        if row.error is not None:
            self._finish(request)
            return RequestOutput(request.request_id, [], finish_reason="error", error=row.error)
        if row.token_id is None:
            return None
        if request.num_output_tokens == 0:
            self.num_prompt_tokens += request.num_prompt_tokens
        prompt_logprobs = self._take_prompt_logprobs(request)
        if request.sampling.max_tokens == 0:  # only the prompt was wanted
            self._finish(request)
            return RequestOutput(request.request_id, [], finish_reason="length", prompt_logprobs=prompt_logprobs)
        request.token_ids.append(row.token_id)
        self.num_generation_tokens += 1
        finish_reason, stop_reason = self._stop(request, row.token_id)
        if finish_reason is not None:
            self._finish(request)
        return RequestOutput(
            request_id=request.request_id,
            token_ids=[row.token_id],
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            logprobs=None if row.logprobs is None else [row.logprobs],
            prompt_logprobs=prompt_logprobs,
        )

    def _take_prompt_logprobs(self, request: Request) -> list[TokenLogprobs | None] | None:
        """With the first token, and only then."""
        if request.sampling.prompt_logprobs is None or request.num_output_tokens > 0:
            return None
        taken, request.prompt_logprobs = request.prompt_logprobs, []
        return taken

    def _stop(self, request: Request, token_id: int) -> tuple[str | None, int | None]:
        """(finish_reason, stop_reason) after `token_id`, which is already among the request's tokens."""
        if token_id in self.limits.eos_token_ids and not request.sampling.ignore_eos:
            return "stop", None
        if token_id in request.sampling.stop_token_ids:
            return "stop", token_id
        if request.num_tokens >= request.max_tokens_in_all:
            return "length", None
        return None, None

    def _finish(self, request: Request) -> None:
        """Lets a request go, but for its place in `running`, which `_drop_finished` clears for all at once."""
        if request.status is RequestStatus.WAITING:
            self._dequeue(request)
        request.status = RequestStatus.FINISHED
        self.kv_cache.free(request)
        del self.requests[request.request_id]
        self._finished_ids.append(request.request_id)

    def _drop_finished(self) -> None:
        self.running = [request for request in self.running if request.status is RequestStatus.RUNNING]

    def _enqueue(self, request: Request, *, first: bool) -> None:
        request.status = RequestStatus.WAITING
        self.waiting[request.request_id] = request
        self.waiting.move_to_end(request.request_id, last=not first)
        self.num_waiting_tokens += request.num_tokens

    def _dequeue(self, request: Request) -> None:
        del self.waiting[request.request_id]
        self.num_waiting_tokens -= request.num_tokens
