"""Compiles, before the first step and beside the reading of weights, every kernel variant that steps will need.

Nobody lists them. Steps of all sizes and kinds are run on a model of few layers, whose kernels are compiled instead of
launched (`octavo_kernels.compile_ahead`); whatever a step will launch is met here first, as far as it differs by the
number of rows, the length of chunks and contexts, and what requests ask for. Layers repeat, but for their windows, so
one of each window is enough, and such a step takes the host a few milliseconds.

A kernel that was not launched leaves its output as it was allocated. What is allocated within is zeroed, so that such
an output is a valid index, and no NaN, for the operations of torch's own that really run.
"""

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec
import torch
from torch.overrides import TorchFunctionMode

from octavo_common.free_memory import free_host_bytes
from octavo_kernels.ops import has_triton, triton_ops
from octavo_server.ipc import SamplingParams
from octavo_server.step import NewRequest
from octavo_server.worker.device import available_cpus
from octavo_server.worker.grammar import RequestGrammar
from octavo_server.worker.input_batch import RequestState, ScheduledRow
from octavo_server.worker.known_variants import KnownVariants
from octavo_server.worker.memory import FULL_SAMPLING
from octavo_server.worker.model_runner import ModelRunner
from octavo_server.worker.shallow import StepBounds, shallow_runner

if TYPE_CHECKING:
    from octavo_kernels.compile_ahead import Compiled
    from octavo_kernels.compile_workers import CompileWorkers

log = logging.getLogger(__name__)

_MOST_THREADS: Final = 16
_LEAST_WORKERS: Final = 3  # fewer processes are no better than threads
_WORKER_BYTES: Final = 2**29  # that one takes at most, of host memory
_SHORT: Final = 64  # tokens of a context that needs no splits
_MOST_ASKING: Final = 17  # rows of a step in which they ask for more than the likeliest token: that takes long
# What requests ask for, by what sampling does with it.
_SAMPLINGS: Final = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.0, top_k=40, top_p=0.9, logprobs=1),
    SamplingParams(temperature=0.0, bad_words=((1, 2),), logprobs=0),
    FULL_SAMPLING,
    SamplingParams(temperature=1.0, logprobs=0, grammar="any"),
)
_ALLOCATING: Final = frozenset(
    {torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty, torch.Tensor.new_empty_strided}
)


class DryRecorder:
    """A recorder that runs what it is given once, and makes no graph of it."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """See Recorder."""
        run()
        return run

    def forget(self) -> None:
        """See Recorder."""


class ZeroedMemory(TorchFunctionMode):
    """Within it, new tensors are zero. (A TorchDispatchMode would import the compiler of torch, for seconds.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        return found.zero_() if func in _ALLOCATING else found


def begin_workers(device: torch.device) -> "CompileWorkers | None":
    """Processes that compile; None where they would not help. The earlier the better: a fork copies what is mapped."""
    if not has_triton(device) or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    free_bytes = free_host_bytes()
    room = _MOST_THREADS if free_bytes is None else free_bytes // _WORKER_BYTES
    count = min(_MOST_THREADS, available_cpus() - 1, room)
    if count < _LEAST_WORKERS:
        return None
    from octavo_kernels.compile_workers import CompileWorkers

    triton_ops()  # what is imported now none of them has to import
    try:
        return CompileWorkers(count)
    except OSError as error:
        log.warning("no processes for compiling kernels, threads compile them: %s", error)
        return None


def compile_kernels(
    like: ModelRunner,
    bounds: StepBounds,
    workers: "CompileWorkers | None" = None,
    known: KnownVariants | None = None,
) -> "Compiled":
    """Compiles what steps within `bounds` launch, in processes of their own if there are `workers`, else in threads.

    like: the runner that will launch them, left as it is. Its decoder's weights are finite. known: from an earlier
    start, in whose place no step is run; or where what is found is left for later ones.
    """
    from octavo_kernels.compile_ahead import KernelCompiler

    compiler = KernelCompiler(min(_MOST_THREADS, available_cpus()), workers)
    variants = [] if known is None else known.read(like.device)
    try:
        with compiler:
            if variants:
                compiler.take(variants)
            else:
                recorder = None if like.recorder is None else DryRecorder()
                with ZeroedMemory():
                    run_variants(shallow_runner(like, bounds, 1, recorder), bounds)
                if known is not None:
                    known.write(like.device, compiler.variants)
    except Exception:  # of no consequence but for the time that the first steps then take
        log.exception("not all kernels are compiled ahead")
    finally:
        found = compiler.finish()
        if workers is not None:
            workers.close()
    return found


def run_variants(runner: ModelRunner, bounds: StepBounds) -> None:
    """A step of every kind, alone on the device."""
    runner.allocate_cache(1)
    for rows in _steps(runner, bounds):
        runner.rehearse(rows)
    graphs = runner.make_graphs(bounds.max_model_len)
    while graphs is not None and graphs.capture_next():
        pass


def _steps(runner: ModelRunner, bounds: StepBounds) -> Iterator[list[ScheduledRow]]:
    """Chunks alone, whose kernels take longest to compile; what requests can ask for, in few rows; decode; both.

    Sizes are on both sides of every power of two, where choices change; a few are odd, as alignment tells, too.
    """
    make, longest = _Rows(runner, bounds), bounds.max_model_len
    most_rows = min(bounds.max_num_seqs, bounds.max_num_batched_tokens)
    for tokens in reversed(_sizes(bounds.max_num_batched_tokens)):
        yield make([(tokens, tokens)])
    yield make.asking()
    for kind in range(len(_SAMPLINGS)):
        for count in _sizes(min(_MOST_ASKING, most_rows)):
            yield make([(1, _SHORT)] * count, kind)
    for count in _sizes(most_rows):
        yield make([(1, longest)] * count)
    for count in (1, most_rows):
        yield make([(1, _SHORT)] * count)
    for tokens in _sizes(bounds.max_num_batched_tokens, odd=False):
        yield make([(tokens, longest)])
        yield make([(tokens - tokens // 2, tokens), (tokens // 2, tokens)])
    for count in (1, most_rows):
        for tokens in _sizes(bounds.max_num_batched_tokens - count, odd=False):
            yield make([(1, longest)] * count + [(tokens, tokens)])


def _sizes(most: int, odd: bool = True) -> list[int]:
    """1, 2, 4, 8, … and `most`; with `odd` those between them, too: 3, 5, 9, …"""
    powers = [1 << exponent for exponent in range(max(most, 0).bit_length())]
    found = {most, *powers, *(power + 1 for power in powers if odd)}
    return sorted(size for size in found if 0 < size <= most)


class _Rows:
    """Makes the rows of steps, of requests that are nobody's and have all their tokens in the first page."""

    def __init__(self, runner: ModelRunner, bounds: StepBounds) -> None:
        self._block_size = runner.batch.block_size
        self._longest = bounds.max_model_len
        self._states = [self._state(sampling, prompt_logprobs=False) for sampling in _SAMPLINGS]
        self._asking = self._state(FULL_SAMPLING, prompt_logprobs=True)

    def __call__(self, parts: list[tuple[int, int]], kind: int = 0) -> list[ScheduledRow]:
        """Of (tokens in the step, tokens with those before them). kind: of `_SAMPLINGS`."""
        rows, offset, state = list[ScheduledRow](), 0, self._states[kind]
        for left, context in parts:
            while left > 0:
                count = min(left, self._longest)
                end = max(count, min(context, self._longest))
                rows.append(ScheduledRow(state, end - count, end, offset, True, False, False))
                offset, left = offset + count, left - count
        return rows

    def asking(self) -> list[ScheduledRow]:
        """One that wants to know of its whole prompt."""
        count = min(_SHORT, self._longest)
        return [ScheduledRow(self._asking, 0, count, 0, True, False, True)]

    def _state(self, sampling: SamplingParams, *, prompt_logprobs: bool) -> RequestState:
        if prompt_logprobs:
            sampling = msgspec.structs.replace(sampling, prompt_logprobs=1)
        pages = [0] * -(-self._longest // self._block_size)
        request = NewRequest("", [0] * self._longest, self._longest, self._longest, sampling, pages, 0)
        state = RequestState(request, self._block_size, 0)
        state.grammar = RequestGrammar(None) if sampling.grammar else None
        return state
