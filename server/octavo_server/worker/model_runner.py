"""Runs steps on the device: model, KV cache, sampler.

`launch` hands a step over and `StepHandle.wait` brings its tokens, so that the next step can be decided, and launched,
while one runs. On CUDA nothing in `launch` waits for the device: inputs go up from pinned memory, the tokens sampled
last stay on the device for the next step to take, and go down beside. A step that is not too large is one launch of a
graph (`step_graphs`). Without the sampling kernels, as on the CPU, there is one exception, rows whose sampling looks at
their tokens on the host (penalties, bad words): their step waits for the tokens of the one before it.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from octavo_common.memory import human_bytes
from octavo_common.model_config import ModelConfig
from octavo_kernels.ops import pick_ops
from octavo_server.errors import ConfigError, EngineError
from octavo_server.grammar_store import GrammarStore
from octavo_server.step import PageEvent, PageKey, SampledRow, SchedulerOutput
from octavo_server.worker.disk_store import DiskStore
from octavo_server.worker.grammar import GrammarMasks, RowMasks
from octavo_server.worker.graph_ladder import MOST_ROWS, MOST_TOKENS
from octavo_server.worker.graph_recorder import Recorder
from octavo_server.worker.input_batch import InputBatch, ScheduledRow, StepInputs
from octavo_server.worker.logprobs import launch_prompt_logprobs
from octavo_server.worker.models.interface import Decoder, ForwardBatch, KVCache, KVCacheSpec
from octavo_server.worker.next_tokens import NextTokens
from octavo_server.worker.pooling import launch_pooling, pooled_bytes
from octavo_server.worker.sampler import SampledTensors
from octavo_server.worker.shared_prefix import least_pages
from octavo_server.worker.step_graphs import GraphLimits, GraphOutputs, StepGraphs
from octavo_server.worker.step_handle import Launched, StepHandle
from octavo_server.worker.step_memory import StepMemoryPool
from octavo_server.worker.step_packing import GraphInputs
from octavo_server.worker.step_profiler import StepProfiler
from octavo_server.worker.swapper import Swapper
from octavo_server.worker.transfer import upload

if TYPE_CHECKING:
    from octavo_server.worker.sampling_slots import SlotChanges


class ModelRunner:
    """Holds all that lives on the device. `load`, then `allocate_cache`, then `launch` step by step."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        dtype: torch.dtype,
        *,
        block_size: int,
        max_num_seqs: int,
        eos_token_ids: Sequence[int] = (),
        threaded: bool = False,
        recorder: Recorder | None = None,
        max_num_batched_tokens: int = 0,
        grammars: GrammarStore | None = None,
    ) -> None:
        """threaded: steps are computed on a thread of their own, in order. Of use on the CPU; CUDA has a stream.

        recorder: makes graphs of steps; None launches their kernels one by one. max_num_batched_tokens: of steps that
        do not only decode; 0 makes graphs of none of these. grammars: of requests, compiled; None: none may have one.
        """
        self.config = config
        self.device = device
        self.dtype = dtype
        num_slots = 2 * max_num_seqs  # a request that ended may stay while a step with it is under way
        self.grammars = grammars
        self.batch = InputBatch(block_size, device, num_slots, grammars)
        self._masks = GrammarMasks(config.vocab_size, grammars)
        self.kv_cache: KVCache = []
        self.decoder: Decoder | None = None
        self.recorder = recorder
        self.graphs: StepGraphs | None = None
        self.swapper: Swapper | None = None
        self.disk: DiskStore | None = None
        self.profiler: StepProfiler | None = None
        self.planned_bytes = 0  # of the device's memory, by the bill
        self._batch_invariant = False
        self._graph_rows = min(max_num_seqs, MOST_ROWS) if recorder is not None else 0
        self._graph_tokens = min(max_num_batched_tokens, MOST_TOKENS) if recorder is not None else 0
        self._tokens = NextTokens(num_slots, config.vocab_size, eos_token_ids, device)
        # Of steps without a graph: their events.
        self._memory = StepMemoryPool(0, 0, device, self._tokens.joining_words)
        self._idle_work: deque[Callable[[], bool]] = deque()
        self._under_way: list[StepHandle] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo step") if threaded else None

    def load(
        self,
        path: Path,
        *,
        batch_invariant: bool = False,
        random_weights: bool = False,
        meanwhile: Callable[[], None] | None = None,
    ) -> float:
        """Builds the model and reads its weights, unless they are to be random; returns the seconds that this took.

        meanwhile: is called while they are read: the model is there, and each of its weights 0 or what it is to be.

        Raises ModelError if the directory cannot be served, ConfigError if the device cannot be batch-invariant.
        """
        from octavo_server.worker.models.decoder import load_decoder
        from octavo_server.worker.random_weights import random_decoder

        try:
            ops = pick_ops(self.device, batch_invariant=batch_invariant)
        except RuntimeError as error:
            raise ConfigError(f"--batch-invariant: {error}") from error
        self._batch_invariant = batch_invariant

        def begun(decoder: Decoder) -> None:
            self.decoder = decoder
            if meanwhile is not None:
                meanwhile()

        if random_weights:
            begin = time.perf_counter()
            self.decoder = random_decoder(self.config, self.dtype, self.device, ops)
            seconds = time.perf_counter() - begin
            begun(self.decoder)
            return seconds
        loaded = load_decoder(path, self.config, self.dtype, self.device, ops, begun if meanwhile is not None else None)
        self.decoder = loaded
        return loaded.read_seconds

    @property
    def bytes_per_page(self) -> int:
        """Bytes of one page over all layers, K and V."""
        return self._cache_spec(1).bytes_per_block

    def request_bytes(self, length: int) -> int:
        """Bytes that a request of that length takes at most beside its pages."""
        return max(self._tokens.request_bytes(length), pooled_bytes(self.config.hidden_size))

    @property
    def copy_bytes_per_second(self) -> float:
        """Of pages between device and host memory, as measured of late; 0 without host memory for them."""
        return 0.0 if self.swapper is None else self.swapper.copy_bytes_per_second

    def allocate_cache(self, num_blocks: int) -> None:
        """Reserves the pages of all layers. Raises ConfigError if the device has not that much memory."""
        spec = self._cache_spec(num_blocks + (self.recorder is not None))  # and a page for the rows that fill up
        self.drop_cache()
        try:
            self.kv_cache = spec.allocate()
        except RuntimeError as error:  # the CPU's allocator knows no other, CUDA's is a subclass
            raise ConfigError(
                f"no memory for a KV cache of {num_blocks} pages ({human_bytes(num_blocks * spec.bytes_per_block)}): "
                "lower --num-gpu-blocks-override, --kv-cache-memory-bytes or --gpu-memory-utilization"
            ) from error

    def drop_cache(self) -> None:
        """Forgets the pages, and the graphs that work on them."""
        self.kv_cache, self.graphs = [], None
        if self.recorder is not None:
            self.recorder.forget()

    def add_lower_tiers(self, num_host_slots: int, disk: DiskStore | None) -> None:
        """Adds pages in host memory, reserved as `idle` is called, and perhaps on disk, to a cache that is there."""
        spec = self._cache_spec(self.kv_cache[0][0].shape[0])
        self.swapper = Swapper(self.kv_cache, spec, num_slots=num_host_slots, disk=disk)
        self._idle_work.append(self.swapper.grow)
        self.disk = disk

    def make_graphs(self, max_model_len: int) -> StepGraphs | None:
        """Makes room for graphs of steps over the cache that is there, of which none is captured yet.

        None if there is to be none.
        """
        if self.recorder is None:
            return None
        block_size, scratch_page = self.batch.block_size, self.kv_cache[0][0].shape[0] - 1
        width = -(-max_model_len // block_size)
        limits = GraphLimits(
            *(self._graph_rows, self._graph_tokens, width, block_size, self.config.vocab_size, scratch_page),
            least_shared=self._least_shared(max_model_len),
            joining_words=self._tokens.joining_words,
        )
        self.graphs = StepGraphs(self._to_logits, self._tokens.draw_plain, self.recorder, limits, self._tokens.last)
        return self.graphs

    def capture_first_graphs(self, max_model_len: int) -> None:
        """The graphs that the first requests find; `idle` captures the others."""
        graphs = self.make_graphs(max_model_len)
        if graphs is not None:
            for _ in range(graphs.num_first):
                graphs.capture_next()
            self._idle_work.append(graphs.capture_rest)

    def disk_pages(self) -> list[bytes]:
        """Names of the pages on disk, the least recently used first."""
        return [] if self.disk is None else self.disk.pages()

    def launch(self, output: SchedulerOutput, on_progress: Callable[[], None] = lambda: None) -> StepHandle:
        """Hands a step over; what goes wrong in it is raised by the handle.

        Calls `on_progress` whenever a part of the step is done on the calling thread: on the CPU a step may take
        minutes, a part of it does not. With `threaded` nothing is done there; see `StepHandle.progress`.
        """
        if self.profiler is None:
            return self._launch(output, on_progress)
        with self.profiler.step(output):
            return self._launch(output, on_progress)

    def _launch(self, output: SchedulerOutput, on_progress: Callable[[], None]) -> StepHandle:
        self._under_way = [handle for handle in self._under_way if not handle.is_reported]
        handle = StepHandle(self._under_way[-1] if self._under_way else None)
        self._under_way.append(handle)
        busy, inputs, changes, failure = self._pages_in_use(output), None, None, None
        try:
            self.batch.apply(output)
            joining = [self.batch.states[new.request_id] for new in output.new_requests]
            changes = self._tokens.changes(joining, (*output.finished_ids, *output.preempted_ids))
            rows = self.batch.advance(output.num_scheduled_tokens)
            inputs = self._build(rows) if rows else None
            handle.states = [row.state for row in rows]
        except Exception as error:
            failure = error

        def progress() -> None:
            handle.progress += 1
            if self._thread is None:
                on_progress()

        def move() -> None:
            if self.swapper is not None:
                self.swapper.launch(output, busy)

        def compute() -> Launched:
            if failure is not None:
                raise failure
            try:
                if inputs is None:
                    self._tokens.apply(changes)
                    return Launched()
                return self._compute(inputs, changes, handle, progress)
            finally:
                if self.swapper is not None:
                    self.swapper.step_launched()

        if self._thread is None:
            handle.run(compute, move)
        else:
            self._thread.submit(handle.run, compute, move)
        return handle

    def execute(self, output: SchedulerOutput, on_progress: Callable[[], None] = lambda: None) -> list[SampledRow]:
        """Runs one step, and waits for it. Raises what it raises."""
        return self.launch(output, on_progress).result()

    def rehearse(self, rows: list[ScheduledRow]) -> None:
        """Computes a step whose rows are nobody's, and waits for it. Raises what it raises."""
        handle, inputs = StepHandle(None), self.batch.build(rows)
        changes = self._tokens.changes((row.state for row in rows), ())
        handle.run(lambda: self._compute(inputs, changes, handle, lambda: None))
        handle.wait()
        self._tokens.apply(self._tokens.changes((), (row.state.request_id for row in rows)))

    def is_out_of_memory(self, error: Exception) -> bool:
        """CUDA's allocator has an exception of its own, the CPU's has not."""
        return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)

    def recover(self) -> None:
        """After a step that broke, and those behind it. Raises EngineError if the device can run no further one."""
        for handle in self._under_way:
            handle.join()
        self._under_way.clear()
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        except RuntimeError as error:  # an illegal access, for one, spoils the process's context for good
            raise EngineError("the GPU reports an error from which only a restart of the engine recovers") from error

    def poll_events(self) -> list[PageEvent]:
        """What became of pages beside the steps, since the last call."""
        return [] if self.swapper is None else self.swapper.poll()

    def idle(self) -> bool:
        """Reserves a piece of host memory for pages or captures a graph, in turns; True if there is more to do."""
        if self._idle_work:
            work = self._idle_work.popleft()
            if work() if self._thread is None else self._thread.submit(work).result():
                self._idle_work.append(work)
        return bool(self._idle_work)

    def flush(self, pages: list[tuple[Literal["device", "host"], int, PageKey]], seconds: float) -> int:
        """Writes cached pages to disk, most wanted first, as far as the time allows; how many. No step is under way."""
        return 0 if self.swapper is None else self.swapper.flush(pages, seconds)

    def close(self) -> None:
        """Ends the threads, and gives back the host memory for pages."""
        if self.profiler is not None:
            self.profiler.end()
        if self._thread is not None:
            self._thread.shutdown()
        self._masks.close()
        if self.grammars is not None:
            self.grammars.close()
        if self.swapper is not None:
            self.swapper.close()

    def _pages_in_use(self, output: SchedulerOutput) -> set[int]:
        """Of the pages that are moved before this step, those that steps under way may read or write.

        On the CPU there are none: a step's moves are made when it is computed itself.
        """
        pages = {page for page, _ in output.swap_out} | {page for _, page in output.swap_in}
        if not pages or self.device.type != "cuda":
            return set()
        in_use = np.zeros(self.kv_cache[0][0].shape[0], dtype=bool)
        for handle in self._under_way:
            for state in handle.states if handle.may_be_computing else ():
                in_use[state.block_ids[: state.num_blocks]] = True
        return {page for page in pages if in_use[page]}

    def _least_shared(self, max_model_len: int) -> int:
        """Pages; 0 where no layer reads whole prefixes, or where a row's bits must not depend on its company."""
        whole = [window is None or window >= max_model_len for window in self.config.sliding_window]
        if self._batch_invariant or not any(whole):
            return 0
        return least_pages(self.batch.block_size, self.bytes_per_page // self.batch.block_size // len(whole))

    def _cache_spec(self, num_blocks: int) -> KVCacheSpec:
        return KVCacheSpec(
            num_layers=self.config.num_layers,
            num_blocks=num_blocks,
            block_size=self.batch.block_size,
            num_kv_heads=self.config.num_kv_heads,
            head_dim=self.config.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    def _build(self, rows: list[ScheduledRow]) -> StepInputs | GraphInputs:
        return (None if self.graphs is None else self.graphs.build(rows)) or self.batch.build(rows)

    def _to_logits(self, batch: ForwardBatch, last: torch.Tensor | None, out: torch.Tensor) -> None:
        """What a graph is made of: logits of the tokens at `last`, or of all if it is None, into `out`."""
        decoder = self._decoder()
        decoder.logits(decoder.forward(batch, self.kv_cache, lambda: None, last), out)

    @torch.inference_mode()
    def _compute(
        self,
        inputs: StepInputs | GraphInputs,
        changes: "SlotChanges | None",
        handle: StepHandle,
        on_progress: Callable[[], None],
    ) -> Launched:
        decoder, vocab_size, prompts, drawn, pooled = self._decoder(), self.config.vocab_size, {}, None, None
        rows = [row for row in inputs.rows if row.samples]
        memory = inputs.memory if isinstance(inputs, GraphInputs) else self._memory.take()
        self._tokens.apply(changes, memory.joining)
        masks = self._begin_masks(rows, handle)
        if isinstance(inputs, GraphInputs):
            found, slot, drawn = self._replay(inputs)
            on_progress()

            def logits(part: slice | torch.Tensor) -> torch.Tensor:
                return found[part]

        else:
            token_ids, slot, last = inputs.forward.token_ids, inputs.slot, inputs.last_index
            token_ids.index_copy_(0, inputs.pending_index, self._tokens.last[inputs.pending_slot])
            every = any(row.wants_hidden for row in inputs.rows)
            hidden = decoder.forward(inputs.forward, self.kv_cache, on_progress, None if every else last)
            prompts = {
                row.state.request_id: launch_prompt_logprobs(row, hidden, decoder.logits, vocab_size, on_progress)
                for row in inputs.rows
                if row.wants_prompt_logprobs
            }
            pooled = launch_pooling(inputs.rows, hidden) if every else None

            def logits(part: slice | torch.Tensor) -> torch.Tensor:
                return decoder.logits(hidden[last[part]] if every else hidden[part])

        if self._tokens.needs_tokens(rows):
            handle.settle_before()
        if masks is not None:
            sampled = self._draw_masked(rows, slot, logits, masks)
        elif drawn is None:
            sampled = self._tokens.draw(rows, slot, logits)
        else:
            sampled = [(rows, SampledTensors(drawn).to_host(memory.tokens))]
        memory.record()
        return Launched(inputs.rows, sampled, prompts, memory.event, pooled, memory.release)

    def _begin_masks(self, rows: list[ScheduledRow], handle: StepHandle) -> Callable[[], RowMasks] | None:
        """Makes the masks of rows with grammars, by the time that they are asked for; None if there are none.

        Each needs its request's last token. On the CPU that is known, and a thread works while the step is computed. On
        CUDA it is waited for when they are asked for, the step being enqueued: the device computes meanwhile.
        """
        if self.grammars is not None and not self.grammars.is_used:
            return None
        masked = [row for row in rows if row.state.grammar is not None]
        if not masked:
            return None
        if self.device.type != "cuda":
            handle.settle_before()
            return self._masks.begin(masked)

        def wait_and_make() -> RowMasks:
            handle.settle_before()
            return self._masks.make(masked)

        return wait_and_make

    def _draw_masked(
        self,
        rows: list[ScheduledRow],
        slot: torch.Tensor,
        logits: Callable[[torch.Tensor], torch.Tensor],
        masks: Callable[[], RowMasks],
    ) -> list[tuple[list[ScheduledRow], SampledTensors]]:
        """Draws for the rows without a grammar first, which wait for no mask."""
        sampled: list[tuple[list[ScheduledRow], SampledTensors]] = []
        for with_grammar in (False, True):
            group = [index for index, row in enumerate(rows) if (row.state.grammar is not None) == with_grammar]
            if not group:
                continue
            where = upload(group, torch.int64, self.device)

            def some(part: slice, where: torch.Tensor = where) -> torch.Tensor:
                return logits(where[part])

            chosen = [rows[index] for index in group]
            sampled += self._tokens.draw(chosen, slot[where], some, masks() if with_grammar else None)
        return sampled

    def _replay(self, inputs: GraphInputs) -> GraphOutputs:
        if self.graphs is None:
            raise RuntimeError("the cache that the step was made for is gone")
        return self.graphs.run(inputs, draws=self._tokens.are_plain(inputs.rows))

    def _decoder(self) -> Decoder:
        if self.decoder is None:
            raise RuntimeError("the model is not loaded")
        return self.decoder
