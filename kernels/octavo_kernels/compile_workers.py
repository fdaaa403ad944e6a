# mypy: disable-error-code="no-untyped-call"
"""Processes that compile kernels to Triton's cache on disk, where the process that launches them finds them.

Half of what makes a kernel is Python's, or waits for Python's lock, which threads of one process take from each other
and from whoever launches. These processes are forks: they have all that is imported already, and share its memory. They
never ask CUDA anything, which a fork must not: what Triton wants to know of the device they are told.
"""

import ctypes
import importlib
import logging
import multiprocessing
import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.cache import triton_key
from triton.runtime.driver import driver

_log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class CompileJob:
    """A variant of a kernel, as Triton describes it, for a kind of device. kernel: its module and name."""

    kernel: tuple[str, str]
    variant: str
    target: GPUTarget


class _ToldOf:
    """What Triton asks a driver before it compiles, answered for a device that is not there."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


class CompileWorkers:
    """As many processes as are asked for, from now on. To be made by a thread that lives until they are closed.

    Raises OSError where the system lets no process begin.
    """

    def __init__(self, count: int) -> None:
        fork = multiprocessing.get_context("fork")
        self._pool = ProcessPoolExecutor(count, mp_context=fork, initializer=_begin, initargs=(os.getpid(),))
        self._pool.submit(triton_key)  # with the first job all of them begin

    def submit(self, job: CompileJob) -> "Future[bool]":
        """Whether it had been compiled before. Raises what compiling raises, or that a process is gone."""
        return self._pool.submit(compile_to_disk, job)

    def close(self) -> None:
        """They end after what they are at."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _begin(parent: int) -> None:
    """A worker does not outlive its parent, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    triton_key()  # the hash over all of Triton that is part of every name in its cache: some tenths of a second


def compile_to_disk(job: CompileJob) -> bool:
    """Compiles the kernel, and up to Triton 3.6 the launcher in C; whether the kernel had been compiled before."""
    hits = list[bool]()
    driver.set_active(_ToldOf(job.target))
    knobs.runtime.jit_cache_hook = None
    knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    module, name = job.kernel
    function: Any = getattr(importlib.import_module(module), name)
    compiled = function.preload(job.variant)
    with suppress(Exception):  # what is not ready is made where it is used
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(compiled.src, compiled.metadata)
    return all(hits)
