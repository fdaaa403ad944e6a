# mypy: disable-error-code="no-untyped-call"
"""Compiles kernels beside each other, that would otherwise be compiled one after the other as they are first launched.

Which variants a model needs (types, sizes, alignments, tiles) only its launches tell. So within `KernelCompiler`
launches are made and do nothing: Triton asks a hook before it compiles, which takes note of the variant and says no.
What is computed meanwhile is of no use, so it must be a computation that nobody looks at, and that bears with outputs
that stay as they were allocated. A variant that was noted has a kernel that does nothing in its place, so that the next
launch of it finds that at once; at the end of the context these are gone.

What is noted goes to other processes at once (`compile_workers`), which compile it to Triton's cache on disk; from
there threads take it after the context. Without such processes the threads compile: not before, as a thread that
launches and threads that compile would take Python's lock from each other at every operation. What is on disk the next
start finds there.
"""

import importlib
import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from triton import knobs
from triton.runtime.cache import triton_key
from triton.runtime.driver import driver

from octavo_kernels.compile_workers import CompileJob, CompileWorkers

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Compiled:
    """What was made ready. cached: how many of them were in the cache on disk. seconds: until the last was ready."""

    kernels: int
    cached: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Noted:
    """A variant of a kernel, as Triton's hook was told of it. cache: Triton's, in memory, of such kernels, by key.

    elsewhere: what another process makes of it, whether it had been compiled before.
    """

    module: str
    name: str
    function: Any
    variant: str
    cache: dict[Any, Any]
    elsewhere: "Future[bool] | None"


class NotLaunched:
    """Stands for a kernel that is noted: a launch finds it, and does nothing."""

    function = packed_metadata = None  # of a kernel that is there, CUDA's function

    def launch_metadata(self, *_: object) -> None:
        """Nothing to tell of."""

    def run(self, *_: object) -> None:
        """Nothing."""


_NOT_LAUNCHED = NotLaunched()


class KernelCompiler:
    """A context within which no kernel is launched that has yet to be compiled; after it they are ready.

    Launches of other threads within the context are taken for its own. Not to be entered twice at a time.
    """

    def __init__(self, threads: int, workers: CompileWorkers | None = None) -> None:
        """workers: processes that compile; without them threads do."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="octavo compile")
        self._workers = workers
        self._begin = time.perf_counter()
        self._noted: dict[Any, _Noted] = {}
        self._hits: list[None] = []  # appending is atomic
        # The hash over all of Triton that is part of every name in its cache: some tenths of a second, and only once.
        self._key = self._pool.submit(triton_key)

    def __enter__(self) -> Self:
        self._outer = knobs.runtime.jit_cache_hook, knobs.compilation.listener
        knobs.runtime.jit_cache_hook = self._note
        knobs.compilation.listener = self._count
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        knobs.runtime.jit_cache_hook = self._outer[0]
        for (_, _, key), noted in self._noted.items():
            if noted.cache.get(key) is _NOT_LAUNCHED:
                del noted.cache[key]

    @property
    def variants(self) -> list[tuple[str, str, str]]:
        """What was noted: the module and the name of each kernel, and Triton's description of the variant."""
        return [(noted.module, noted.name, noted.variant) for noted in self._noted.values()]

    def take(self, variants: Iterable[tuple[str, str, str]]) -> None:
        """Notes what another process had noted, within the context. Raises AttributeError where there is no kernel."""
        for module, name, variant in variants:
            function = getattr(importlib.import_module(module), name)
            self._noted[module, name, variant] = _Noted(module, name, function, variant, {}, None)

    def finish(self) -> Compiled:
        """Waits until what was noted is ready. A variant that could not be compiled fails when it is launched."""
        # Those in Gluon first: they take the longest, and the last to begin is the last to be ready.
        order = list(self._noted.values())
        if self._workers is None:
            order.sort(key=lambda noted: not noted.function.is_gluon())
        jobs = [(noted, self._pool.submit(self._compile, noted)) for noted in order]
        for noted, job in jobs:
            if (error := job.exception()) is not None:
                _log.warning("kernel %s.%s could not be compiled ahead: %s", noted.module, noted.name, error)
        self._pool.shutdown()
        knobs.compilation.listener = self._outer[1]
        return Compiled(len(jobs), len(self._hits), time.perf_counter() - self._begin)

    def _note(self, *, key: Any, fn: Any, compile: dict[str, Any], is_manual_warmup: bool, **_: object) -> bool:
        """Triton's hook: whether the kernel is neither to be compiled nor launched."""
        if is_manual_warmup:  # by a thread of the pool
            return False
        function, variant, elsewhere = fn.jit_function, compile["specialization_data"], None
        if self._workers is not None:
            job = CompileJob((fn.module, fn.name), variant, driver.active.get_current_target())
            elsewhere = self._workers.submit(job)
        cache = function.device_caches[compile["device"]][0]
        self._noted[fn.module, fn.name, key] = _Noted(fn.module, fn.name, function, variant, cache, elsewhere)
        cache[key] = _NOT_LAUNCHED
        return True

    def _compile(self, noted: _Noted) -> None:
        self._key.result()
        if noted.elsewhere is not None:
            error = noted.elsewhere.exception()
            if error is not None:  # it is made, or fails, here
                _log.debug("a process for compiling kernels said: %s", error)
            elif noted.elsewhere.result():
                self._hits.append(None)
        # To ask for what runs it loads it onto the device, and up to Triton 3.6 compiles a launcher in C.
        _ = noted.function.preload(noted.variant).run

    def _count(self, *, cache_hit: bool, **_: object) -> None:
        if cache_hit and self._workers is None:
            self._hits.append(None)
