"""Which tokens are computed in the next step, and what follows from the tokens that come back.

Continuous batching after Orca (Yu et al., OSDI 2022) over pages as in PagedAttention (Kwon et al., SOSP 2023), with
prefill cut into chunks that share a step with decodes (Sarathi-Serve, Agrawal et al., OSDI 2024).

Pure: no clock, no randomness, no tensor; the same calls give the same decisions. `schedule` already counts what it
hands out as computed, so that a next step can be scheduled before the tokens of this one are known.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Final, Literal

import msgspec

from octavo_server.engine.kv_cache_manager import KVCacheManager, PrefixHit
from octavo_server.engine.request import Request, RequestStatus
from octavo_server.ipc import ErrorKind, RequestOutput, TokenLogprobs
from octavo_server.step import NewRequest, SampledRow, SchedulerOutput
from octavo_server.step_meter import Rates

SCAN: Final = 32  # waiting requests that are looked at in a step at most, beside those that wait for the disk
LOOK_EVERY: Final = 8  # steps after which the prefix of each of them is looked up anew
WATERMARK: Final = 0.01  # of the pages, kept free when a request joins others
SHORT_STEP: Final = 2048  # tokens; answers wait for each step's end, so longer ones are for when many wait

_by_key = attrgetter("key")
_WAITING, _RUNNING, _FINISHED = RequestStatus  # looked up for each token otherwise, which takes as long as the rest


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of a step and of a request. `max_model_len` counts prompt and answer together."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int] = frozenset()
    preemption_mode: Literal["auto", "swap", "recompute"] = "auto"


@dataclass(slots=True)
class _Batch:
    """A step while it is being put together."""

    output: SchedulerOutput
    budget: int  # tokens left
    requests: dict[str, Request] = field(default_factory=dict)  # those that have tokens in it
    prefills: list[Request] = field(default_factory=list)  # running ones that are not through
    unserved: list[Request] = field(default_factory=list)  # decodes whose turn it is not
    blocked: list[Request] = field(default_factory=list)  # waiting ones for which there are not the pages
    room: int = 0  # pages that are free and not spoken for

    def put(self, request: Request, count: int) -> None:
        """Counts the tokens as computed; if they are its last ones, the step samples the next."""
        request.num_computed_tokens += count
        request.num_in_flight += 1
        if request.num_computed_tokens >= request.num_prefill_tokens:
            request.num_pending_tokens += 1
        self.output.num_scheduled_tokens[request.request_id] = count
        self.requests[request.request_id] = request
        self.budget -= count


class Scheduler:
    """The queue, the running batch and the rules between them.

    `running` and `waiting` are each in the order of `Request.key`. New requests join at every step. If pages run out,
    the last that runs gives way, by swap or recompute, and waits again before all later ones: the first always gets on.
    """

    def __init__(self, limits: SchedulerLimits, kv_cache: KVCacheManager) -> None:
        self.limits = limits
        self.kv_cache = kv_cache
        self.rates = Rates()
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.requests: dict[str, Request] = {}  # running and waiting
        self.counts = Counter(preemptions=0, prompt_tokens=0, generation_tokens=0)  # named as in `ipc.EngineStats`
        self.num_waiting_tokens = 0
        self.num_steps = 0
        self.num_prefill_tokens = 0  # of the last step
        self._num_added, self._crowded = 0, False  # two long steps' tokens waited behind another, and one's still do
        self._launched: dict[int, dict[str, Request]] = {}  # the requests of each step whose results are not in
        self._ending: dict[str, Request] = {}  # finished while a step with them is under way: they hold their pages
        self._hits: dict[str, PrefixHit] = {}  # what waiting requests would find in the cache, or would have of late
        self._finished_ids: list[str] = []  # that the worker has not been told of yet
        self._deadlines: list[tuple[float, tuple[float, int], str]] = []  # of `requests`, in their order
        self._last_turn = (0.0, 0)  # key of the last decode that was served when there was not a token for each

    def add(self, request: Request) -> list[RequestOutput]:
        """Puts a request into the queue; the result is the error with which it is refused, if it is.

        Raises ValueError if a request of that id is already here.
        """
        if request.request_id in self.requests:
            raise ValueError(f"request id {request.request_id!r} is already in use")
        if error := self._reason_to_refuse(request):
            request.status = _FINISHED
            return [RequestOutput(request.request_id, [], finish_reason="error", error=error, error_kind="invalid")]
        if predecessor := self._ending.pop(request.request_id, None):
            self.kv_cache.free(predecessor)  # steps run in order: what its last one writes is overwritten later
        self._num_added += 1
        request.key = (request.key[0], self._num_added)
        stop_ids = frozenset() if request.sampling.ignore_eos else self.limits.eos_token_ids
        request.stop_ids = stop_ids.union(request.sampling.stop_token_ids)
        self.requests[request.request_id] = request
        if request.deadline is not None:
            insort(self._deadlines, (request.deadline, request.key, request.request_id))
        self._enqueue(request)
        return []

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """Ends requests at whatever stage they are; ids that are not here are ignored."""
        return [self._end(self.requests[each], "abort") for each in dict.fromkeys(request_ids) if each in self.requests]

    def expire(self, now: float) -> list[RequestOutput]:
        """Ends the requests whose deadline has come, at whatever stage they are."""
        results = []
        while self._deadlines and self._deadlines[0][0] <= now:
            late, why = self.requests[self._deadlines[0][2]], "the request's time was up before it was through"
            results.append(self._end(late, "error", why, "timeout"))
        return results

    def schedule(self) -> SchedulerOutput:
        """Decides the next step: a token for each running decode, then prefills, both running ones and such as join.

        An output that `is_empty` is no step.
        """
        output = SchedulerOutput(self.num_steps + 1, finished_ids=self._finished_ids)
        self._finished_ids = []
        longest, short = self.limits.max_num_batched_tokens, max(SHORT_STEP, 2 * len(self.running))
        self._crowded = bool(self._launched) and self.num_waiting_tokens >= (2 - self._crowded) * longest
        batch = _Batch(output, longest if self._crowded else min(longest, short))
        self._schedule_decodes(batch)
        left = batch.budget
        while batch.budget > 0 and (batch.prefills or self.waiting) and self._schedule_prefills(batch):
            self._hits.clear()  # what those who joined compute may be hit by others, in this very step
        self.num_prefill_tokens = max(0, left - batch.budget)
        for request in batch.unserved:  # what prefills left, as long as nobody has to give way for it
            if batch.budget > 0 and request.status is _RUNNING:
                self._put_with_pages(request, 1, batch, preempt=False)
        self.kv_cache.tiers.take_moves(output)
        if not output.is_empty:
            self.num_steps += 1
            self._launched[self.num_steps] = batch.requests
        return output

    def update(self, output: SchedulerOutput, rows: Iterable[SampledRow]) -> list[RequestOutput]:
        """Takes in what the worker made of a step. Rows of requests that ended meanwhile are dropped."""
        requests = self._launched.pop(output.step, {})
        results = []
        for row in rows:
            request = requests[row.request_id]
            if request.status is _FINISHED:
                continue
            if row.token_id is not None and len(request.token_ids) > request.num_given_tokens:
                results.append(self._next_token(request, row.token_id, row.logprobs))
            elif row.error is not None:
                self.kv_cache.forget_step([request], all_steps=True)
                results.append(self._end(request, "error", row.error, row.error_kind))
            else:
                results += self._update_prompt(request, row)
        self.counts["generation_tokens"] += sum([len(result.token_ids) for result in results])
        self._land(requests)
        return results

    def fail(self, outputs: Iterable[SchedulerOutput], error: str, kind: ErrorKind) -> list[RequestOutput]:
        """After a step that broke, and with it those launched behind it: all of their requests end with an error.

        What these steps were to compute is hit by nobody; the worker has moved the pages all the same.
        """
        results = []
        for output in outputs:
            requests = self._launched.pop(output.step, {})
            self.kv_cache.forget_step(requests.values())
            left = [request for request in requests.values() if request.status is not _FINISHED]
            results += [self._end(request, "error", error, kind) for request in left]
            self._land(requests)
            # The worker may have broken before it came to these. Forgetting twice does no harm.
            self._finished_ids += (*output.finished_ids, *output.preempted_ids)
        return results

    def _schedule_decodes(self, batch: _Batch) -> None:
        """One token each, as far as the budget goes; they take turns if it does not go round."""
        order, left = self.running, self._budget_of_decodes(batch.budget)
        if len(order) > left:
            start = bisect_right(order, self._last_turn, key=_by_key)
            order = order[start:] + order[:start]
        block_size, put, at_border = self.kv_cache.block_size, batch.put, list[Request]()
        for request in order:
            computed = request.num_computed_tokens
            if computed < request.num_prefill_tokens:
                batch.prefills.append(request)
            elif computed + 1 >= request.max_tokens_in_all:
                continue  # its last token is being sampled
            elif left == 0:
                batch.unserved.append(request)
            else:
                left -= 1
                self._last_turn = request.key
                if computed % block_size:  # its page has room
                    put(request, 1)
                elif not self._put_with_pages(request, 1, batch, preempt=False):
                    at_border.append(request)
        for request in at_border:  # others give way for it
            if request.status is _RUNNING:  # none of those before it took its pages
                self._put_with_pages(request, 1, batch)

    def _budget_of_decodes(self, budget: int) -> int:
        """All of it, but for a quarter if the decodes could leave nothing to prefills; a token at least."""
        decodes = max(1, budget * 3 // 4)
        prefilling = (request.num_computed_tokens < request.num_prefill_tokens for request in self.running)
        some_are_left = len(self.running) > decodes and (self.waiting or any(prefilling))
        return decodes if some_are_left else budget

    def _put_with_pages(self, request: Request, count: int, batch: _Batch, *, preempt: bool = True) -> bool:
        """Schedules tokens, and says so, if there are pages for them, taken from the last running one if need be.

        That one has no prefill in this step: prefills come after all decodes, in their order, and the names of the
        pages that they complete are given out with them. A decode that is the last one gives way itself; a prefill
        keeps its pages, and waits for others.
        """
        while (added := self.kv_cache.allocate_slots(request, count)) is None:
            victim = self.running[-1]
            if not preempt or (victim is request and request.num_computed_tokens < request.num_prefill_tokens):
                return False
            self._preempt(victim, batch)
            if victim is request:
                return False
        if added:
            batch.output.new_block_ids[request.request_id] = added
        batch.put(request, count)
        return True

    def _preempt(self, victim: Request, batch: _Batch) -> None:
        if batch.requests.pop(victim.request_id, None) is not None:  # a decode, one token
            victim.num_computed_tokens -= 1
            victim.num_in_flight -= 1
            victim.num_pending_tokens -= 1
            del batch.output.num_scheduled_tokens[victim.request_id]
            batch.output.new_block_ids.pop(victim.request_id, None)
            batch.budget += 1
        self.running.remove(victim)
        # The prompt's log-probabilities come from one pass through all of it.
        in_one_pass = victim.skip_prefix and victim.num_pending_tokens == 0
        mode, tokens = self.limits.preemption_mode, victim.num_computed_tokens
        swap = mode == "swap" or (mode == "auto" and self.rates.swap_is_faster(tokens, self.kv_cache.block_size))
        if swap and not in_one_pass and self.kv_cache.swap_out(victim):
            self.counts["preemptions_by_swap"] += 1
        else:
            self.kv_cache.free(victim)
            victim.num_computed_tokens = 0
            if victim.num_pending_tokens == 0:
                victim.prompt_logprobs.clear()  # not sent yet; they come again
        victim.num_preemptions += 1
        self.counts["preemptions"] += 1
        batch.output.preempted_ids.append(victim.request_id)
        self._enqueue(victim)

    def _schedule_prefills(self, batch: _Batch) -> bool:
        """Shares what is left of the budget between prefills without a part and requests that can join; if any did."""
        given, prefills, joined = batch.requests, batch.prefills, len(batch.output.new_requests)
        unserved = [r for r in prefills if r.request_id not in given]
        claims = {r: r.num_tokens_to_compute for r in unserved if r.status is _RUNNING}
        if self.waiting and len(self.running) < self.limits.max_num_seqs and not batch.output.preempted_ids:
            claims |= self._candidates(batch)
        shares, followers = _fair_shares(claims, batch.budget), dict[Request, int]()
        while found := self._followers(shares, claims):  # who gets their shares may follow somebody, too
            followers |= found
            shares = _fair_shares({r: count for r, count in claims.items() if r not in followers}, batch.budget)
        for request, share in shares.items():
            if request.status is _RUNNING:
                self._put_with_pages(request, share, batch, preempt=not joined)
        coming = {self._next_page(r, r.num_computed_tokens): r.key for r in reversed(prefills) if r.request_id in given}
        for request in (*shares, *followers):
            share = min(shares.get(request) or followers[request], batch.budget)
            if share and request.status is _WAITING and not batch.output.preempted_ids:
                self._join(request, share, coming, batch)
        return len(batch.output.new_requests) > joined

    def _followers(self, shares: dict[Request, int], claims: dict[Request, int]) -> dict[Request, int]:
        """Waiting requests that share what one before them computes next, and still would behind its share.

        If they leave it theirs, they hit what it computes. They lose a few steps at most: besides the oldest only one
        gets a part of what it lacks, and all that lack less than that one get it.
        """
        leaders, found = list[tuple[int, bytes]](), {}
        for request, share in shares.items():
            start = request.num_tokens - claims[request]
            follows = (at >= start and self._next_page(request, at) == name for at, name in leaders)
            if request.status is _WAITING and any(follows):
                found[request] = share
            elif name := self._next_page(request, start + share):
                leaders.append((start + share, name))
        return found

    def _candidates(self, batch: _Batch) -> dict[Request, int]:
        """Waiting requests that could join, and the tokens of each that are to be computed, by what was last known.

        One for which the pages do not suffice is passed over, so that short ones get on; but once those that passed it
        are together as long as it is, it is not passed any more: what becomes free is kept for it.
        """
        found: dict[Request, int] = {}
        # What the prompts under way need stays free, and a page for the next token of each decode.
        to_come = sum(self.kv_cache.blocks_needed(request, request.num_tokens + 1) for request in batch.prefills)
        watermark = int(WATERMARK * self.kv_cache.pool.num_blocks)
        kept = to_come + max(watermark, len(self.running) - len(batch.prefills))
        batch.room, batch.blocked = self.kv_cache.pool.num_free - kept, []
        if batch.room <= 0 and self.running:
            return found
        looked_at, seats = 0, self.limits.max_num_seqs - len(self.running)
        for request in islice(self.waiting, 8 * SCAN):
            if looked_at == SCAN or len(found) == seats:
                break
            hit = self._hits.get(request.request_id)
            is_due = (self.kv_cache.tiers.schedule + request.key[1]) % LOOK_EVERY == 0
            if hit is None or (is_due and not hit.loading):
                hit = self._hits[request.request_id] = self.kv_cache.lookup(request)
            fits = self._fits(request, hit, batch)
            if (fits or not batch.blocked) and self._must_wait(request, hit):  # loads far ahead push each other out
                continue
            looked_at += 1
            if not fits:
                batch.blocked.append(request)
                if request.tokens_passed_by >= request.num_tokens:
                    break
                continue
            found[request] = request.num_tokens - hit.num_tokens
        return found

    def _must_wait(self, request: Request, hit: PrefixHit) -> bool:
        """For its own last token, just after it gave way, or for the disk."""
        return request.num_in_flight > 0 or (hit.loading and self.kv_cache.begin_loads(request))

    def _next_page(self, request: Request, num_tokens: int) -> bytes | None:
        """The name of the page that follows `num_tokens` computed ones, if it is a full one and others could use it."""
        block_size = self.kv_cache.block_size
        index = num_tokens // block_size
        if index >= len(request.page_hashes) or (index + 1) * block_size >= request.num_tokens or request.skip_prefix:
            return None
        return request.page_hashes[index]

    def _fits(self, request: Request, hit: PrefixHit, batch: _Batch) -> bool:
        """Whether all of its tokens and the next one do: half a prefill that is preempted is work for nothing."""
        needed = hit.blocks_needed(min(request.num_tokens + 1, request.max_tokens_in_all))
        return needed <= (batch.room if self.running else self.kv_cache.pool.num_free)

    def _join(self, request: Request, share: int, coming: dict[bytes | None, tuple[float, int]], batch: _Batch) -> None:
        """Lets a waiting request run, unless one before it is just about to compute its next page."""
        hit = self._hits[request.request_id] = self.kv_cache.lookup(request)
        name = self._next_page(request, hit.num_tokens)
        passed = [blocked for blocked in batch.blocked if blocked.key < request.key]
        if (
            any(blocked.tokens_passed_by >= blocked.num_tokens for blocked in passed)
            or (name and coming.get(name, request.key) < request.key)
            or self._must_wait(request, hit)
            or not self._fits(request, hit, batch)
        ):
            return
        count, needed = min(share, request.num_tokens - hit.num_tokens), hit.blocks_needed(request.num_tokens + 1)
        if not self.kv_cache.admit(request, hit, count):
            return
        batch.room -= needed
        for blocked in passed:
            blocked.tokens_passed_by += request.num_tokens
        self._dequeue(request)
        request.status = _RUNNING
        request.num_prefill_tokens = request.num_tokens
        insort(self.running, request, key=_by_key)
        batch.output.new_requests.append(
            NewRequest(
                request_id=request.request_id,
                token_ids=list(request.token_ids),
                num_prompt_tokens=request.num_prompt_tokens,
                max_tokens_in_all=request.max_tokens_in_all,
                sampling=request.sampling,
                block_ids=self.kv_cache.block_ids(request),
                num_computed_tokens=request.num_computed_tokens,
                pooling=request.pooling,
            )
        )
        batch.put(request, count)
        batch.prefills.append(request)
        coming.setdefault(self._next_page(request, request.num_computed_tokens), request.key)

    def _update_prompt(self, request: Request, row: SampledRow) -> list[RequestOutput]:
        """Once the prompt is through, the answer to it begins with what was found out about it; nothing until then."""
        if row.prompt_logprobs and (row.token_id is not None or request.status is _RUNNING):
            request.prompt_logprobs.extend(row.prompt_logprobs)  # else it gave way, and computes them again
        if row.token_id is None and not row.embedding:
            return []
        self.counts["prompt_tokens"] += request.num_prompt_tokens
        request.skip_prefix = False
        if row.token_id is None or request.sampling.max_tokens == 0:  # only the prompt was wanted
            request.num_pending_tokens -= 1
            output = self._end(request, "stop" if row.embedding else "length")
        else:
            output = self._next_token(request, row.token_id, row.logprobs)
        output = msgspec.structs.replace(
            output,
            prompt_logprobs=None if request.sampling.prompt_logprobs is None else request.prompt_logprobs,
            num_cached_tokens=request.num_cached_tokens,
            num_external_tokens=request.num_external_tokens,
            first_scheduled=request.first_scheduled,
            embedding=row.embedding,
        )
        request.prompt_logprobs = []
        return [output]

    def _next_token(self, request: Request, token_id: int, logprobs: TokenLogprobs | None) -> RequestOutput:
        tokens = request.token_ids
        tokens.append(token_id)
        request.num_pending_tokens -= 1
        if request.status is _WAITING:
            self.num_waiting_tokens += 1  # it gave way while this was computed
        elif len(tokens) % self.kv_cache.block_size == 1:
            self.kv_cache.cache_pages(request)
        reason, stop_id = None, None
        if token_id in request.stop_ids:
            # The model's own ends are not named, unless the request does not ask for them as such.
            by_model = token_id in self.limits.eos_token_ids and not request.sampling.ignore_eos
            reason, stop_id = "stop", None if by_model else token_id
        elif len(tokens) >= request.max_tokens_in_all:
            reason = "length"
        if reason is not None:
            self._finish(request)
        found, times = None if logprobs is None else [logprobs], request.num_preemptions
        return RequestOutput(request.request_id, [token_id], reason, stop_id, found, num_preemptions=times)

    def _reason_to_refuse(self, request: Request) -> str | None:
        if request.num_prompt_tokens == 0:
            return "the prompt is empty; it needs at least one token"
        longest, answers = self.limits.max_model_len, not request.pooling and request.sampling.max_tokens > 0
        if request.num_prompt_tokens + answers > longest:
            return f"the prompt has {request.num_prompt_tokens} tokens; prompt and answer together may have {longest}"
        if request.num_given_tokens > request.num_prompt_tokens and request.num_tokens >= request.max_tokens_in_all:
            return "the answer so far is as long as it may be: there is nothing to add to it"
        if not 0 <= (wrong := min(request.token_ids)) <= (wrong := max(request.token_ids)) < self.limits.vocab_size:
            return f"the prompt contains token id {wrong}; allowed are 0 to {self.limits.vocab_size - 1}"
        return None

    def _enqueue(self, request: Request) -> None:
        request.status = _WAITING
        insort(self.waiting, request, key=_by_key)
        self.num_waiting_tokens += request.num_tokens

    def _dequeue(self, request: Request) -> None:
        del self.waiting[bisect_left(self.waiting, request.key, key=_by_key)]
        self._hits.pop(request.request_id, None)
        self.num_waiting_tokens -= request.num_tokens

    def _end(self, request: Request, how: str, why: str | None = None, kind: ErrorKind = "internal") -> RequestOutput:
        self._finish(request)
        return RequestOutput(request.request_id, [], how, error=why, error_kind=kind)

    def _finish(self, request: Request) -> None:
        if request.status is _WAITING:
            self._dequeue(request)
        else:
            del self.running[bisect_left(self.running, request.key, key=_by_key)]
        request.status = _FINISHED
        del self.requests[request.request_id]
        if request.deadline is not None:
            del self._deadlines[bisect_left(self._deadlines, (request.deadline, request.key, request.request_id))]
        self._finished_ids.append(request.request_id)
        if request.num_in_flight:
            self._ending[request.request_id] = request
        else:
            self.kv_cache.free(request)

    def _land(self, requests: dict[str, Request]) -> None:
        """Their step is over: those that ended during it need their pages no more."""
        for request in requests.values():
            request.num_in_flight -= 1
            if request.num_in_flight == 0 and self._ending.get(request.request_id) is request:
                del self._ending[request.request_id]
                self.kv_cache.free(request)


def _fair_shares(claims: dict[Request, int], budget: int) -> dict[Request, int]:
    """Of prefills and how many tokens they lack: those that get some now, the oldest first, and how many.

    The oldest has a quarter of the budget, so that none waits forever; the rest goes to the shortest first, equal ones
    by age, so that a short prompt does not wait for long ones.
    """
    shares = dict.fromkeys(sorted(claims, key=_by_key), 0)
    for request in islice(shares, 1):
        shares[request] = min(claims[request], -(-budget // 4))
        budget -= shares[request]
    for request in sorted(shares, key=claims.__getitem__):
        more = min(claims[request] - shares[request], budget)
        shares[request] += more
        budget -= more
    return {request: share for request, share in shares.items() if share}
