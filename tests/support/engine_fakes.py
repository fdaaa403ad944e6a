"""A worker without a model: block tables over a cache of values, and a next token that depends on all of them.

What is stored for a token depends on it and on what is stored for the token before it, as K and V depend on the whole
prefix. So a page that is lost, shared by mistake, overwritten or moved too late changes what comes out.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo_server import page_hash
from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.core import EngineCore
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.scheduler import Scheduler, SchedulerLimits
from octavo_server.ipc import AddRequest, RequestOutput, SamplingParams
from octavo_server.step import PageEvent, PageKey, SampledRow, SchedulerOutput

VOCAB = 1000
When = Literal["early", "late"]


def value(before: int, token: int) -> int:
    """What is stored for a token behind one for which `before` is stored."""
    return (before * 31 + token + 1) % 1_000_003


def token_after(values: list[int]) -> int:
    """The fake model: a token that depends on all that is stored; never below 10."""
    mixed = 7
    for each in values:
        mixed = (mixed * 37 + each) % 998_244_353
    return 10 + mixed % (VOCAB - 10)


def alone(prompt: list[int], count: int) -> list[int]:
    """What the fake model says, computed without engine or pages."""
    tokens, values = list(prompt), [7]
    for position in range(len(prompt) + count):
        if position >= len(prompt):
            tokens.append(token_after(values[1:]))
        values.append(value(values[-1], tokens[position]))
    return tokens[len(prompt) :]


@dataclass
class FakeHandle:
    """A step under way on the fake worker."""

    runner: "FakeRunner"
    step: int
    progress: int = 0
    rows: list[SampledRow] | None = None
    error: Exception | None = None

    def wait(self, timeout: float | None = None) -> list[SampledRow] | None:
        self.runner.compute_until(self)
        if self.error is not None:
            raise self.error
        return self.rows


@dataclass
class _State:
    tokens: list[int]
    blocks: list[int]
    computed: int


@dataclass
class _Job:
    """A step as it was launched: what it does is fixed, whatever comes after it."""

    handle: FakeHandle
    moves: list[tuple[str, Any, Any]]
    rows: list[tuple[_State, int, int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    failure: Exception | None = None


class FakeRunner:
    """Stores values in pages, as a model stores K and V, and reads them back through the block tables.

    `compute`, `copies`: when it does what it is told, "early" (in `launch`) or as "late" as it may: steps when they
    are waited for, copies with their step. Early copies overtake the step under way, unless they touch its pages or
    follow a copy that does. `fails`: steps that break; `misses`: names of pages that cannot be read from disk.
    """

    bytes_per_page = 1000
    copy_bytes_per_second = 1e6

    def __init__(
        self, num_blocks: int, block_size: int, *, compute: When = "early", copies: When = "early", host_slots: int = 0
    ) -> None:
        self.block_size = block_size
        self.compute_when, self.copies_when = compute, copies
        self.device: dict[int, list[int]] = {block: [-1] * block_size for block in range(num_blocks)}
        self.host: dict[int, list[int]] = {}
        self.disk: dict[bytes, tuple[PageKey, list[int]]] = {}
        self.states: dict[str, _State] = {}
        self.steps: list[SchedulerOutput] = []
        self.jobs: deque[_Job] = deque()
        self.events: list[PageEvent] = [PageEvent("slots", count=host_slots)] if host_slots else []
        self.fails: dict[int, Exception] = {}
        self.misses: set[bytes] = set()
        self.is_broken = False  # until it recovers
        self.recovered = 0
        self.closed = False

    def launch(self, output: SchedulerOutput, on_progress: Callable[[], None] = lambda: None) -> FakeHandle:
        self.steps.append(output)
        handle = FakeHandle(self, output.step)
        job = _Job(handle, self._moves(output), failure=self.fails.pop(output.step, None))
        if self.copies_when == "early":
            self._overtake(job)
        for request_id in (*output.finished_ids, *output.preempted_ids):
            self.states.pop(request_id, None)
        for new in output.new_requests:
            assert new.request_id not in self.states
            self.states[new.request_id] = _State(list(new.token_ids), list(new.block_ids), new.num_computed_tokens)
        for request_id, added in output.new_block_ids.items():
            self.states[request_id].blocks += added
        for request_id, count in output.num_scheduled_tokens.items():
            state = self.states[request_id]
            assert state.computed + count <= len(state.blocks) * self.block_size, "a token without a slot"
            job.rows.append((state, state.computed, state.computed + count))
            job.names.append(request_id)
            state.computed += count
        self.jobs.append(job)
        if self.compute_when == "early":
            self.compute_until(handle)
        return handle

    def compute_until(self, handle: FakeHandle) -> None:
        """Computes steps in the order of their launch."""
        while handle.rows is None and handle.error is None:
            job = self.jobs.popleft()
            for move in job.moves:
                self._carry_out(move)
            behind = RuntimeError("the step before this one failed") if self.is_broken else None
            job.handle.error = job.failure or behind
            self.is_broken |= job.failure is not None
            if job.handle.error is None:
                rows = (self._row(name, *row) for name, row in zip(job.names, job.rows, strict=True))
                job.handle.rows = [row for row in rows if row is not None]
            job.handle.progress += 1

    def execute(self, output: SchedulerOutput) -> list[SampledRow]:
        return self.launch(output).wait() or []

    def is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, MemoryError)

    def recover(self) -> None:
        for job in list(self.jobs):
            self.compute_until(job.handle)
        self.is_broken = False
        self.recovered += 1

    def poll_events(self) -> list[PageEvent]:
        events, self.events = self.events, []
        return events

    def idle(self) -> bool:
        return False

    def flush(self, pages: list[tuple[Literal["device", "host"], int, PageKey]], seconds: float) -> int:
        for tier, place, key in pages:
            self.disk[key.page_hash] = (key, list((self.device if tier == "device" else self.host)[place]))
        return len(pages)

    def close(self) -> None:
        self.closed = True

    def _moves(self, output: SchedulerOutput) -> list[tuple[str, Any, Any]]:
        return [
            *(("out", block, slot) for block, slot in output.swap_out),
            *(("in", slot, block) for slot, block in output.swap_in),
            *(("store", slot, key) for slot, key in output.disk_stores),
            *(("load", key, slot) for key, slot in output.disk_loads),
        ]

    def _overtake(self, job: _Job) -> None:
        """Carries out at once what touches no page of a step under way, up to the first copy that does."""
        busy = {block for each in self.jobs for state, _, _ in each.rows for block in state.blocks}
        if any(each.moves for each in self.jobs):
            return
        while job.moves:
            kind, source, target = job.moves[0]
            if (kind == "out" and source in busy) or (kind == "in" and target in busy):
                return
            self._carry_out(job.moves.pop(0))

    def _carry_out(self, move: tuple[str, Any, Any]) -> None:
        kind, source, target = move
        if kind == "store":
            self.disk[target.page_hash] = (target, list(self.host[source]))
            self.events.append(PageEvent("stored", target.page_hash))
        elif kind == "out":
            self.host[target] = list(self.device[source])
        elif kind == "in":
            self.device[target] = self.host.pop(source)  # a slot that is left must not be read again
        else:
            key, content = self.disk.get(source.page_hash, (None, []))
            readable = key == source and source.page_hash not in self.misses
            if readable:
                self.host[target] = list(content)
            self.events.append(PageEvent("loaded" if readable else "missed", source.page_hash))

    def _row(self, name: str, state: _State, start: int, end: int) -> SampledRow | None:
        tokens, size = state.tokens, self.block_size
        for index in range(start, end):
            before = 7 if index == 0 else self._read(state, index - 1)
            self.device[state.blocks[index // size]][index % size] = value(before, tokens[index])
        if end < len(tokens):
            return None
        tokens.append(token_after([self._read(state, index) for index in range(end)]))
        return SampledRow(name, tokens[-1])

    def _read(self, state: _State, index: int) -> int:
        return self.device[state.blocks[index // self.block_size]][index % self.block_size]


@dataclass
class Clock:
    """Time as the test says."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class FakeEngine:
    """An engine with a `FakeRunner`, and the results by request."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 32,
        max_model_len: int = 64,
        eos: frozenset[int] = frozenset(),
        preemption_mode: Literal["auto", "swap", "recompute"] = "auto",
        prefix_caching: bool = False,
        host_slots: int = 0,
        disk: bool = False,
        overlap: bool = False,
        compute: When = "early",
        copies: When = "early",
    ) -> None:
        limits = SchedulerLimits(
            max_num_seqs, max_num_batched_tokens, max_model_len, VOCAB, eos, preemption_mode=preemption_mode
        )
        self.pool = BlockPool(num_blocks)
        self.kv_cache = KVCacheManager(
            self.pool,
            block_size,
            prefix_caching=prefix_caching,
            on_disk=() if disk else None,
        )
        self.scheduler = Scheduler(limits, self.kv_cache)
        self.runner = FakeRunner(num_blocks, block_size, compute=compute, copies=copies, host_slots=host_slots)
        self.clock = Clock()
        self.core = EngineCore(self.scheduler, self.runner, overlap=overlap, clock=self.clock)
        self.outputs: dict[str, list[int]] = {}
        self.results: dict[str, RequestOutput] = {}  # the last of each request
        self.first_results: dict[str, RequestOutput] = {}

    def add(
        self,
        request_id: str,
        prompt: list[int],
        *,
        priority: int = 0,
        deadline: float | None = None,
        salt: bytes = b"",
        **sampling: object,
    ) -> RequestOutput | None:
        """Puts a request in, as the API process would; returns its refusal."""
        params = SamplingParams(**{"max_tokens": 8, **sampling})  # type: ignore[arg-type]
        hashes = page_hash.hash_pages(prompt, self.kv_cache.block_size, salt) if self.kv_cache.prefix_caching else b""
        message = AddRequest(
            *(1, request_id, prompt, params, self.clock.now), hashes, salt, priority=priority, deadline=deadline
        )
        return next(iter(self.core.add(message)), None)

    def abort(self, *request_ids: str) -> list[RequestOutput]:
        return self._take(self.core.abort(request_ids))

    def step(self) -> SchedulerOutput:
        """A step of the core; what it launched."""
        before = len(self.runner.steps)
        self._take(self.core.step())
        return self.runner.steps[-1] if len(self.runner.steps) > before else SchedulerOutput(self.scheduler.num_steps)

    def run(self, each_step: Callable[[SchedulerOutput], None] = lambda _output: None, limit: int = 100_000) -> None:
        """Steps until nothing is left."""
        for _ in range(limit):
            if not self.core.has_work:
                return
            each_step(self.step())
        raise AssertionError(f"not through after {limit} steps: {self.scheduler.running}, {self.scheduler.waiting}")

    def _take(self, results: list[RequestOutput]) -> list[RequestOutput]:
        for result in results:
            self.outputs.setdefault(result.request_id, []).extend(result.token_ids)
            self.first_results.setdefault(result.request_id, result)
            self.results[result.request_id] = result
        return results
