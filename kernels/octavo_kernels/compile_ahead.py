# mypy: disable-error-code="no-untyped-call"
"""Compiles kernels beside each other, that would otherwise be compiled one after the other as they are first launched.

Which variants a model needs (types, sizes, alignments, tiles) only its launches tell. So within `KernelCompiler`
launches are made and do nothing: Triton asks a hook before it compiles, which takes note of the variant and says no.
What is computed meanwhile is of no use, so it must be a computation that nobody looks at, and that bears with outputs
that stay as they were allocated. At the end of the context all that was noted is handed to a pool of threads: not
before, as a thread that launches and threads that compile would take Python's lock from each other at every operation.

Threads suffice: compiling leaves Python alone but for a tenth of the time, some 30 ms a kernel. Compiled kernels go to
Triton's cache on disk, too, from which the next process takes them.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from triton import knobs
from triton.runtime.cache import triton_key

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Compiled:
    """What was made ready. cached: how many of them were in the cache on disk. seconds: until the last was ready."""

    kernels: int
    cached: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Noted:
    """A variant of a kernel, as Triton's hook was told of it."""

    preload: Callable[[str], Any]
    variant: str
    is_gluon: bool


class KernelCompiler:
    """A context within which no kernel is launched that has yet to be compiled; they are after it, in threads.

    Launches of other threads within the context are taken for its own. Not to be entered twice at a time.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="octavo compile")
        self._begin = time.perf_counter()
        self._noted: dict[tuple[str, Any], _Noted] = {}
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

    def finish(self) -> Compiled:
        """Compiles what was noted. A variant that could not be compiled fails once more when it is launched."""
        # Those in Gluon first: they take the longest, and the last to begin is the last to be ready.
        order = sorted(self._noted.items(), key=lambda item: not item[1].is_gluon)
        jobs = {key: self._pool.submit(self._compile, noted.preload, noted.variant) for key, noted in order}
        for (name, _), job in jobs.items():
            if (error := job.exception()) is not None:
                _log.warning("kernel %s could not be compiled ahead: %s", name, error)
        self._pool.shutdown()
        knobs.compilation.listener = self._outer[1]
        return Compiled(len(jobs), len(self._hits), time.perf_counter() - self._begin)

    def _note(self, *, key: Any, fn: Any, compile: dict[str, Any], is_manual_warmup: bool, **_: object) -> bool:
        """Triton's hook: whether the kernel is neither to be compiled nor launched."""
        if is_manual_warmup:  # by a thread of the pool
            return False
        noted = _Noted(fn.jit_function.preload, compile["specialization_data"], fn.jit_function.is_gluon())
        self._noted[f"{fn.module}.{fn.name}", key] = noted
        return True

    def _compile(self, preload: Callable[[str], Any], variant: str) -> None:
        self._key.result()
        # To ask for what runs it loads it onto the device, and up to Triton 3.6 compiles a launcher in C.
        _ = preload(variant).run

    def _count(self, *, cache_hit: bool, **_: object) -> None:
        if cache_hit:
            self._hits.append(None)
