"""An engine in this process to be timed: started once, then made new for each run on the same weights and pages."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from octavo_server import page_hash
from octavo_server.bench.metered import MeteredRunner
from octavo_server.bench.report import surroundings
from octavo_server.bench.workloads import Ask
from octavo_server.config import EngineConfig
from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.core import EngineCore
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.scheduler import Scheduler
from octavo_server.engine_process import GC_THRESHOLDS
from octavo_server.engine_start import start_engine
from octavo_server.errors import ConfigError, EngineError
from octavo_server.ipc import AddRequest, RequestOutput, SamplingParams
from octavo_server.step import PageEvent
from octavo_server.worker.model_runner import ModelRunner


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step from the end of the one before it; `host`: of these, those not spent waiting for the device."""

    seconds: float
    host: float
    tokens: int  # that came of it


@dataclass(slots=True)
class Run:
    """What serving some requests took. Seconds from when the first was handed over."""

    asks: Sequence[Ask]
    seconds: float = 0.0
    first_tokens: list[float] = field(default_factory=list)  # when each request's first token was there
    steps: list[StepTime] = field(default_factory=list)
    preemptions: int = 0
    preemptions_by_swap: int = 0
    pages_out: int = 0
    pages_in: int = 0

    @property
    def input_tokens(self) -> int:
        """Of all prompts."""
        return sum(len(ask.prompt) for ask in self.asks)

    @property
    def output_tokens(self) -> int:
        """Of all answers."""
        return sum(ask.max_tokens for ask in self.asks)

    @property
    def host_seconds(self) -> float:
        """In which the host did not wait for the device."""
        return sum(step.host for step in self.steps)


class BenchEngine:
    """One start of the engine; and, with an empty cache each, engines on the same weights, pages and graphs."""

    def __init__(self, config: EngineConfig, tell: Callable[[str], None] = lambda _phase: None) -> None:
        """tell: is told of each phase of the start. Raises ModelError or ConfigError, which say what to change."""
        marks: list[tuple[str, float]] = []

        def begin_phase(name: str) -> None:
            marks.append((name, time.perf_counter()))
            tell(name)

        self.config = config
        self.first = start_engine(config, begin_phase)
        if not isinstance(self.first.runner, ModelRunner):
            raise TypeError("an engine is started with a ModelRunner")
        self.runner: ModelRunner = self.first.runner
        self.limits = self.first.scheduler.limits  # of the runs to come; may be lowered
        begin_phase("idle work")
        while self.first.idle():
            continue
        self.first.idle()  # takes in what became of the last piece
        marks.append(("", time.perf_counter()))
        self.start_seconds = {name: round(after - before, 2) for (name, before), (_, after) in pairwise(marks)}
        self.profile: Path | None = None  # where the next timed part's trace goes

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.runner.device

    @property
    def vocab_size(self) -> int:
        """Token ids of prompts are below it."""
        return self.runner.config.vocab_size

    @property
    def num_pages(self) -> int:
        """Pages that there are, of which a run may use a part."""
        return self.first.scheduler.kv_cache.pool.num_blocks

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        return self.first.scheduler.kv_cache.block_size

    @property
    def num_host_pages(self) -> int:
        """Pages in host memory."""
        return self.first.scheduler.kv_cache.tiers.num_slots

    def surroundings(self) -> dict[str, Any]:
        """What figures are measured on."""
        return {**surroundings(self.device, self.runner.dtype), "start, s": self.start_seconds}

    def pages_of(self, asks: Sequence[Ask], most: int | None = None) -> int:
        """Pages that the requests, or the `most` largest ones of them, hold at their ends."""
        pages = sorted(-(-(len(ask.prompt) + ask.max_tokens) // self.page_size) for ask in asks)
        return sum(pages if most is None else pages[-most:])

    def check(self, asks: Sequence[Ask], flag: str) -> None:
        """Raises ConfigError, which names the flag, if one of the requests is longer than the engine allows."""
        longest, limit = (
            max(len(ask.prompt) + ask.max_tokens for ask in asks),
            self.limits.max_model_len,
        )
        if longest > limit:
            raise ConfigError(
                f"{flag}: a request would have {longest} tokens, prompt and answer together; this engine takes {limit} "
                "at most (config.json, --max-model-len, and what fits into its KV cache)"
            )

    def warm(self, asks: Sequence[Ask]) -> None:
        """Begins a few of the requests, uncounted: what is done once for all is done then."""
        with self.fresh() as engine:
            engine.run([Ask(ask.prompt, min(4, ask.max_tokens), ask.temperature) for ask in asks[:32]])

    @contextmanager
    def fresh(
        self,
        *,
        prefix_caching: bool = False,
        num_pages: int | None = None,
        preemption_mode: Literal["auto", "swap", "recompute"] = "auto",
    ) -> Iterator["Engine"]:
        """A new engine whose cache is empty, with the first `num_pages` pages, or all."""
        window = self.first.scheduler.kv_cache.window
        kv_cache = KVCacheManager(
            BlockPool(num_pages or self.num_pages),
            self.page_size,
            prefix_caching=prefix_caching,
            window=window,
        )
        if self.num_host_pages:
            kv_cache.handle(PageEvent("slots", count=self.num_host_pages))
        runner = MeteredRunner(self.runner)
        scheduler = Scheduler(replace(self.limits, preemption_mode=preemption_mode), kv_cache)
        engine = Engine(EngineCore(scheduler, runner, overlap=self.first.overlap), runner)
        thresholds = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)  # as in the engine process
        try:
            yield engine
        finally:
            gc.set_threshold(*thresholds)
            gc.unfreeze()
            engine.leave()

    def timed(self) -> AbstractContextManager[object]:
        """Around what is timed: writes a trace of it if one is asked for, of the first such part alone."""
        path, self.profile = self.profile, None
        return nullcontext() if path is None else _profiled(path)

    def close(self) -> None:
        """Ends the threads and gives the memory back. The engine is of no use afterwards."""
        self.first.close(0.0)
        self.runner.decoder = self.runner.swapper = None  # whatever else still knows the runner
        self.runner.drop_cache()
        del self.first, self.runner
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Engine:
    """Takes steps, and notes what each took."""

    def __init__(self, core: EngineCore, runner: MeteredRunner) -> None:
        self.core = core
        self.runner = runner
        self.steps: list[StepTime] = []
        self._num_added = 0

    def add(self, ask: Ask) -> str:
        """Hands a request over, with the names of its pages if they may be shared; its id."""
        name, kv_cache = str(self._num_added), self.core.scheduler.kv_cache
        self._num_added += 1
        hashes = page_hash.hash_pages(ask.prompt, kv_cache.block_size, b"") if kv_cache.prefix_caching else b""
        sampling = SamplingParams(
            temperature=ask.temperature, max_tokens=ask.max_tokens, ignore_eos=True, seed=self._num_added
        )
        for refusal in self.core.add(AddRequest(0, name, ask.prompt, sampling, time.monotonic(), page_hashes=hashes)):
            raise EngineError(f"the engine refused a request: {refusal.error}")
        return name

    def step(self) -> list[RequestOutput]:
        """One step. Raises EngineError if a request failed."""
        begin, waited = time.perf_counter(), self.runner.waited
        outputs = self.core.step()
        seconds = time.perf_counter() - begin
        tokens = sum(len(output.token_ids) for output in outputs)
        self.steps.append(StepTime(seconds, seconds - (self.runner.waited - waited), tokens))
        for output in outputs:
            if output.error is not None:
                raise EngineError(f"the engine failed on request {output.request_id}: {output.error}")
        return outputs

    def run(self, asks: Sequence[Ask]) -> Run:
        """Serves the requests, all handed over at once, to their ends."""
        run, before = Run(asks), self.core.stats()
        self.steps = []
        begin = time.perf_counter()
        for ask in asks:
            self.add(ask)
        begun = set[str]()
        while self.core.has_work:
            outputs, now = self.step(), time.perf_counter() - begin
            for output in outputs:
                if output.token_ids and output.request_id not in begun:
                    begun.add(output.request_id)
                    run.first_tokens.append(now)
        run.seconds = time.perf_counter() - begin
        after = self.core.stats()
        run.steps = self.steps
        run.preemptions = after.preemptions - before.preemptions
        run.preemptions_by_swap = after.preemptions_by_swap - before.preemptions_by_swap
        run.pages_out, run.pages_in = after.swapped_out - before.swapped_out, after.swapped_in - before.swapped_in
        return run

    def leave(self) -> None:
        """Ends what is there, and tells the runner to forget it: the next engine finds the seats free."""
        self.core.abort(list(self.core.scheduler.requests))
        while self.core.has_work:
            self.core.step()
        self.runner.inner.execute(self.core.scheduler.schedule())


@contextmanager
def _profiled(path: Path) -> Iterator[None]:
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=kinds) as recorded:
        yield
    recorded.export_chrome_trace(str(path))
