"""One replica: a KV pool and steps in which prompts and answers share the time.

Steps are followed one by one only while there are prompts to compute. Steps that only decode go on alike until a
request ends, a prompt comes or the pool is full: so many at once have a closed form.

Longer than files here are: every step goes through it, and each call less is a second less of an hour's trace.
"""

from collections import deque
from heapq import heappop, heappush
from math import ceil, inf, sqrt
from typing import Final

from octavo_operator.simulate.hardware import Hardware
from octavo_operator.simulate.job import Job
from octavo_operator.simulate.prefixes import Prefixes

IDLE: Final = 0
DECODING: Final = 1
MIXED: Final = 2
_RECENT: Final = 0.05
"""Weight of the last step in the speeds that a replica tells."""


class Replica:
    """The engine of a replica. Its owner calls `arrive` and, at the time that `next` tells, `proceed`.

    `finished` collects requests that ended, for the owner to take. Times are seconds of one clock.
    """

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.waiting = deque[Job]()
        self.waiting_tokens = 0
        self.finished: list[Job] = []
        self.next = inf
        self.kv_decoding = self.kv_prefilling = 0
        self.decoding = 0
        self.preemptions = 0
        self.computed_tokens = self.generated_tokens = self.hit_tokens = self.queried_tokens = 0
        self.gap_seconds = 0.0
        self.gaps = 0
        self.prefixes = Prefixes(hardware.kv_tokens)
        self._prefilling: list[Job] = []
        self._chunks: list[tuple[Job, int]] = []
        self._ends: list[tuple[int, int, int, Job]] = []
        self._order: list[tuple[int, Job]] = []
        self._pushed = 0
        self._step = 0
        self._mode = IDLE
        self._begun = 0.0
        self._planned = 0
        self._speed = [0.0, 0.0, 0.0, 0.0]

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return self.decoding + len(self._prefilling)

    @property
    def kv_used(self) -> int:
        """Tokens in the KV cache that requests hold."""
        return self.kv_decoding + self.kv_prefilling

    @property
    def speeds(self) -> tuple[float, float]:
        """Prefill and decode tokens a second, over the last steps that had such work."""
        tokens, seconds, decoded, decoding = self._speed
        return tokens / seconds if seconds else 0.0, decoded / decoding if decoding else 0.0

    def arrive(self, job: Job, now: float) -> None:
        """A request comes."""
        job.handed = now
        self.waiting.append(job)
        self.waiting_tokens += job.length
        if self._mode == IDLE:
            self._go_on(now)
        elif self._mode == DECODING:
            self._end_early(now)

    def proceed(self) -> None:
        """What was under way until `next` is done: account for it and begin what follows."""
        now = self.next
        if self._mode == MIXED:
            self._finish_mixed(now)
        elif self._mode == DECODING:
            self._decoded(self._planned, now - self._begun)
            self._pop_finished()
        self._go_on(now)

    def sync(self, now: float) -> None:
        """Account for whole steps up to `now`, for who looks at the figures."""
        if self._mode == DECODING and now < self.next:
            count = min(int(self._steps_in(now - self._begun)), self._planned - 1)
            if count > 0:
                seconds = self._duration(count)
                self._decoded(count, seconds)
                self._begun += seconds
                self._planned -= count

    def lose_all(self) -> list[Job]:
        """The replica dies: its requests, to be continued elsewhere with the tokens that they have."""
        jobs = [*self.waiting, *self._prefilling]
        for _, epoch, _, job in self._ends:
            if job.epoch == epoch:
                self._rewind(job)
                jobs.append(job)
        for job in jobs:
            job.computed = job.cached = 0
        hardware = self.hardware
        self.__init__(hardware)  # type: ignore[misc]
        return jobs

    def _go_on(self, now: float) -> None:
        # While a step with prompts runs, the next one is decided already: who comes meanwhile is in the one after it.
        decided = self._begun if self._mode == MIXED else inf
        self._begun = now
        if self._prefilling or self.waiting:
            self._fill(now, decided)
            if not self._chunks and not self.decoding:
                self._fill(now, inf)
        if self._chunks:
            self._mode = MIXED
        elif self.decoding:
            self._plan_decoding(now)
            if self.waiting and self.waiting[0].handed > decided:
                self._end_early(now)
        else:
            self._mode, self.next = IDLE, inf

    def _end_early(self, now: float) -> None:
        """A prompt came: the step under way is the last of its kind."""
        count = min(max(1, ceil(self._steps_in(now - self._begun) - 1e-9)), self._planned)
        if count < self._planned:
            self._planned = count
            self.next = self._begun + self._duration(count)

    def _fill(self, now: float, decided: float) -> None:
        """Choose the chunks of the next step among those here by `decided`, first come first served."""
        costs, batch = self.hardware, self.decoding
        budget = (
            costs.step_tokens_loaded if self.waiting_tokens >= costs.step_tokens_loaded else costs.step_tokens
        ) - batch
        chunks = self._chunks
        cost = 0.0
        for job in self._prefilling:
            if budget <= 0:
                break
            count = min(budget, job.length - job.computed)
            cost += costs.prompt_seconds(job.computed, job.computed + count)
            chunks.append((job, count))
            budget -= count
        waiting = self.waiting
        while budget > 0 and waiting and waiting[0].handed <= decided and self._admit():
            job = self._prefilling[-1]
            count = min(budget, job.length - job.computed)
            cost += costs.prompt_seconds(job.computed, job.computed + count)
            chunks.append((job, count))
            budget -= count
        if chunks:
            while self.kv_used + batch > costs.kv_tokens and self.decoding > 1:
                self._preempt()
                batch = self.decoding
            seconds = (
                costs.step
                + costs.prompts
                + cost
                + costs.request * (batch + len(chunks))
                + costs.kv_token * self.kv_decoding
            )
            self.next = now + seconds

    def _admit(self) -> bool:
        """Take the first that waits, if its tokens find room."""
        job = self.waiting[0]
        free = self.hardware.kv_tokens - self.kv_used - self.decoding
        full = job.length > free or self.running >= self.hardware.max_requests
        if full and self.running:
            return False
        self.waiting.popleft()
        self.waiting_tokens -= job.length
        job.cached = job.computed = self.prefixes.take(job.blocks, job.length) if job.blocks else 0
        self.queried_tokens += job.length
        self.hit_tokens += job.cached
        self.kv_prefilling += job.length
        self._prefilling.append(job)
        return True

    def _finish_mixed(self, now: float) -> None:
        seconds = now - self._begun
        self._decoded(1, seconds)
        total = 0
        for job, count in self._chunks:
            job.computed += count
            total += count
            if job.computed >= job.length:
                self._start_decoding(job, now)
        self._chunks.clear()
        self._prefilling = [job for job in self._prefilling if job.computed < job.length]
        self.computed_tokens += total
        speed = self._speed
        speed[0] += _RECENT * (total - speed[0])
        speed[1] += _RECENT * (seconds - speed[1])
        self._pop_finished()

    def _start_decoding(self, job: Job, now: float) -> None:
        if job.first < 0:
            job.first = now
        self.kv_prefilling -= job.length
        job.remaining -= 1
        self.generated_tokens += 1
        if job.remaining <= 0:
            self.finished.append(job)
            return
        self.kv_decoding += job.length + 1
        self.decoding += 1
        job.start_step = self._step
        self._pushed += 1
        heappush(self._ends, (self._step + job.remaining, job.epoch, self._pushed, job))
        self._order.append((job.epoch, job))

    def _decoded(self, count: int, seconds: float) -> None:
        """So many steps gave each decoding request a token."""
        self._step += count
        batch = self.decoding
        if batch:
            tokens = batch * count
            self.kv_decoding += tokens
            self.generated_tokens += tokens
            self.gaps += tokens
            self.gap_seconds += batch * seconds
            speed, weight = self._speed, 1 - (1 - _RECENT) ** count
            speed[2] += weight * (batch - speed[2])
            speed[3] += weight * (seconds / count - speed[3])

    def _pop_finished(self) -> None:
        ends, step = self._ends, self._step
        while ends and ends[0][0] <= step:
            _, epoch, _, job = heappop(ends)
            if job.epoch != epoch:
                continue
            self.decoding -= 1
            self.kv_decoding -= job.length + 1 + job.remaining
            job.remaining = 0
            job.epoch += 1
            self.finished.append(job)
        if len(self._order) > 64 and len(self._order) > 4 * self.decoding:
            self._order = [(epoch, job) for epoch, job in self._order if job.epoch == epoch]

    def _plan_decoding(self, now: float) -> None:
        ends = self._ends
        while ends[0][3].epoch != ends[0][1]:
            heappop(ends)
        room = (self.hardware.kv_tokens - self.kv_used) // self.decoding
        while room < 1 and self.decoding > 1:
            self._preempt()
            room = (self.hardware.kv_tokens - self.kv_used) // self.decoding
        while ends[0][3].epoch != ends[0][1]:
            heappop(ends)
        self._mode, self._begun = DECODING, now
        self._planned = max(1, min(ends[0][0] - self._step, max(1, room)))
        self.next = now + self._duration(self._planned)

    def _preempt(self) -> None:
        """The one that came last gives up its pages and waits, to be computed again."""
        while True:
            epoch, job = self._order.pop()
            if job.epoch == epoch:
                break
        self.kv_decoding -= job.length + 1 + (self._step - job.start_step)
        self._rewind(job)
        job.computed = job.cached = 0
        self.decoding -= 1
        self.preemptions += 1
        self.waiting.appendleft(job)
        self.waiting_tokens += job.length

    def _rewind(self, job: Job) -> None:
        """What it has generated becomes part of what is to be computed."""
        done = self._step - job.start_step
        job.remaining -= done
        job.length += 1 + done
        job.epoch += 1

    def _duration(self, count: int) -> float:
        costs, batch = self.hardware, self.decoding
        first = costs.step + costs.request * batch + costs.kv_token * self.kv_decoding
        return count * first + costs.kv_token * batch * count * (count - 1) / 2

    def _steps_in(self, seconds: float) -> float:
        """The number of steps, with its fraction, that take so long."""
        costs, batch = self.hardware, self.decoding
        first = costs.step + costs.request * batch + costs.kv_token * self.kv_decoding
        growth = costs.kv_token * batch / 2
        if growth <= 0:
            return seconds / first if first > 0 else inf
        linear = first - growth
        return (sqrt(linear * linear + 4 * growth * seconds) - linear) / (2 * growth)
