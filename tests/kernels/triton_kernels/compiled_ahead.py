"""Kernels that are compiled before they are launched, for a GPU that is not there: launches are counted, not made."""

import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from octavo_common.model_config import parse_model_config
from octavo_kernels import (
    attention_kernel,
    few_rows,
    gathered_attention,
    gemv,
    linear,
    rms_norm,
    rope,
    silu_and_mul,
    step_start,
)
from octavo_kernels.compile_ahead import KernelCompiler
from octavo_kernels.compile_workers import CompileJob, CompileWorkers
from octavo_kernels.ops import triton_ops
from octavo_kernels.rms_norm import add_rms_norm
from octavo_kernels.rms_norm import rms_norm as norm
from octavo_server.ipc import SamplingParams
from octavo_server.step import NewRequest
from octavo_server.worker import kernel_variants
from octavo_server.worker.input_batch import RequestState, ScheduledRow
from octavo_server.worker.kernel_variants import DryRecorder, compile_kernels
from octavo_server.worker.known_variants import KnownVariants
from octavo_server.worker.model_runner import ModelRunner
from octavo_server.worker.models.decoder import Decoder, weight_places
from octavo_server.worker.shallow import StepBounds
from tiny_models import config_json

# From Python 3.12 on a fork beside threads is warned of: the workers use nothing that another thread may hold.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

CPU = torch.device("cpu")
LONGEST = 1536
SIZES: dict[str, Any] = {"block_size": 16, "max_num_seqs": 12}
MODULES = (attention_kernel, few_rows, gathered_attention, gemv, linear, rms_norm, rope, silu_and_mul, step_start)


class Utils:
    def get_device_properties(self, _device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}

    def load_binary(self, *_: object) -> tuple[int, int, int, int, int]:
        return 1, 1, 32, 0, 1024


class Hopper:
    """What Triton asks a driver before it compiles and launches."""

    utils = Utils()

    def __init__(self) -> None:
        self.launched: list[str] = []

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def launcher_cls(self, _source: Any, metadata: Any) -> Any:
        return lambda *_: self.launched.append(metadata.name)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hopper:
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))
    monkeypatch.setattr(torch, "mm", mm)
    found = Hopper()
    driver.set_active(found)
    forget()
    return found


def mm(
    a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """`torch.mm`, which knows `out_dtype` on a GPU only."""
    found = (a.float() @ b.float()).to(out_dtype or a.dtype)
    return found if out is None else out.copy_(found)


def forget() -> None:
    """As a new process: no kernel is in memory."""
    for module in MODULES:
        for value in vars(module).values():
            if isinstance(value, JITFunction):
                value.device_caches.clear()


@pytest.fixture
def compiled_late(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of kernels that a launch had to compile."""
    found: list[str] = []

    def note(*, fn: Any, is_manual_warmup: bool, **_: object) -> bool:
        if not is_manual_warmup:
            found.append(fn.name)
        return False

    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", note)
    yield found


def launch_norms() -> None:
    for width in (64, 96):
        x, w = torch.zeros(3, width, dtype=torch.bfloat16), torch.zeros(width, dtype=torch.bfloat16)
        norm(x, w, 1e-5)
        add_rms_norm(x, x.clone(), w, 1e-5)


@pytest.fixture(params=[0, 2], ids=["threads", "processes"])
def workers(request: pytest.FixtureRequest, hopper: Hopper) -> Iterator[CompileWorkers | None]:
    if not request.param:
        yield None
        return
    found = CompileWorkers(request.param)
    yield found
    found.close()


def test_what_is_launched_within_is_compiled_and_a_later_launch_finds_it(
    hopper: Hopper, workers: CompileWorkers | None, compiled_late: list[str]
) -> None:
    compiler = KernelCompiler(2, workers)
    with compiler:
        launch_norms()
        launch_norms()  # twice the same: once is enough
    assert hopper.launched == []
    done = compiler.finish()
    assert (done.kernels, done.cached) == (4, 0)
    hopper.launched.clear()
    launch_norms()
    assert len(hopper.launched) == 4 and compiled_late == []


def test_a_new_process_takes_the_kernels_from_disk(hopper: Hopper, workers: CompileWorkers | None) -> None:
    for cached in (0, 4):
        compiler = KernelCompiler(2, workers)
        with compiler:
            launch_norms()
        done = compiler.finish()
        assert (done.kernels, done.cached) == (4, cached)
        forget()


def test_what_a_process_compiled_is_read_from_disk_and_not_compiled_again(hopper: Hopper) -> None:
    workers, found = CompileWorkers(1), list[CompileJob]()
    submit = workers.submit

    def noted(job: CompileJob) -> Any:
        found.append(job)
        return submit(job)

    workers.submit = noted  # type: ignore[method-assign]
    compiler = KernelCompiler(2, workers)
    with compiler:
        launch_norms()
    compiler.finish()
    # All is on disk by now: for another process each of them is a hit.
    assert [submit(job).result() for job in found] == [True] * 4
    workers.close()


def test_nothing_stands_in_a_kernels_place_after_the_context(hopper: Hopper) -> None:
    compiler = KernelCompiler(2)
    with pytest.raises(RuntimeError, match="in between"), compiler:
        launch_norms()
        raise RuntimeError("in between")
    launch_norms()
    assert len(hopper.launched) == 4
    compiler.finish()


def test_threads_compile_what_a_process_that_died_has_left(hopper: Hopper) -> None:
    workers = CompileWorkers(1)
    workers._pool.submit(os.kill, os.getpid(), 0).result()  # it is there
    for pid in list(workers._pool._processes):
        os.kill(pid, signal.SIGSTOP)  # it takes nothing on
    compiler = KernelCompiler(2, workers)
    with compiler:
        launch_norms()
    for pid in list(workers._pool._processes):
        os.kill(pid, signal.SIGKILL)
    done = compiler.finish()
    assert (done.kernels, done.cached) == (4, 0)
    hopper.launched.clear()
    launch_norms()
    assert len(hopper.launched) == 4


def test_processes_do_not_outlive_the_one_that_made_them() -> None:
    program = (
        "import os, signal\n"
        "from octavo_kernels.compile_workers import CompileWorkers\n"
        "workers = CompileWorkers(2)\n"
        "workers._pool.submit(os.getpid).result()\n"
        "print(*workers._pool._processes, flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        ends = [os.pidfd_open(pid) for pid in pids]
        parent.kill()
    assert len(pids) == 2
    for end in ends:
        assert select.select([end], [], [], 30)[0], "it is still there"
        os.close(end)


def test_a_start_like_an_earlier_one_runs_no_steps_and_has_the_same_kernels(
    hopper: Hopper, compiled_late: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = []

    def run(*_: object) -> None:
        runs.append(1)
        launch_norms()

    monkeypatch.setattr(kernel_variants, "run_variants", run)
    monkeypatch.setattr(kernel_variants, "shallow_runner", lambda *_: None)
    runner = ModelRunner(parse_model_config(config_json("LlamaForCausalLM")), CPU, torch.bfloat16, **SIZES)
    for facts, cached, num_runs in ((b"one", 0, 1), (b"one", 4, 1), (b"another", 4, 2)):
        known = KnownVariants(tmp_path, facts)
        assert known.exist == (num_runs == len(runs))
        done = compile_kernels(runner, StepBounds(12, 1200, LONGEST), None, known)
        assert (done.kernels, done.cached, len(runs)) == (4, cached, num_runs)
        hopper.launched.clear()
        launch_norms()
        assert len(hopper.launched) == 4 and compiled_late == []
        forget()


def test_a_broken_file_of_variants_is_as_none_and_few_are_kept(tmp_path: Path) -> None:
    variants = [("octavo_kernels.rms_norm", "_rms_norm_kernel", "{}")]
    for number in range(10):
        known = KnownVariants(tmp_path, b"%d" % number)
        known.write(CPU, variants)
        assert known.exist and known.read(CPU) == variants
        assert known.read(torch.device("meta")) == []
    files = list(tmp_path.iterdir())
    assert len(files) == 8
    for file in files:
        file.write_bytes(b"[")
    assert known.exist and known.read(CPU) == []


@triton.jit
def _broken_kernel(x_ptr):  # type: ignore[no-untyped-def]
    tl.static_assert(False, "never")


def test_a_kernel_that_does_not_compile_is_told_of_and_stops_nothing(
    hopper: Hopper, workers: CompileWorkers | None, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = KernelCompiler(2, workers)
    with compiler:
        _broken_kernel[(1,)](torch.zeros(1))
        launch_norms()
    with caplog.at_level(logging.WARNING):
        compiler.finish()
    assert "_broken_kernel could not be compiled ahead" in caplog.text
    hopper.launched.clear()
    launch_norms()
    assert len(hopper.launched) == 4


def test_no_step_of_whatever_size_has_a_kernel_to_compile(hopper: Hopper, compiled_late: list[str]) -> None:
    config = parse_model_config(
        config_json(
            "LlamaForCausalLM", head_dim=16, hidden_size=64, max_position_embeddings=LONGEST, num_hidden_layers=2
        )
    )
    runner = ModelRunner(config, CPU, torch.bfloat16, block_size=16, max_num_seqs=12, recorder=DryRecorder())
    runner.decoder = decoder = Decoder(config, torch.bfloat16, CPU, triton_ops())
    for place in weight_places(decoder).values():
        place.zero_()
    compile_kernels(runner, StepBounds(12, 1200, LONGEST))
    assert compiled_late == []
    hopper.launched.clear()
    runner.allocate_cache(4)
    graphs = runner.make_graphs(LONGEST)
    while graphs is not None and graphs.capture_next():
        pass
    for rows in every_step():
        runner.rehearse(rows)
    assert hopper.launched and compiled_late == []


def every_step() -> Iterator[list[ScheduledRow]]:
    """Of sizes that are no powers of two, decode beside chunks."""
    state = RequestState(NewRequest("", [0] * LONGEST, LONGEST, LONGEST, SamplingParams(), [0] * 96, 0), 16, 0)
    for decodes, chunk, context in (
        (0, 11, 11),
        (0, 1100, 1180),
        (6, 0, 9),
        (11, 0, 1500),
        (3, 21, 40),
        (12, 1188, 1188),
    ):
        rows = [ScheduledRow(state, context - 1, context, index, True, False, False) for index in range(decodes)]
        if chunk:
            rows.append(ScheduledRow(state, context - chunk, context, decodes, True, False, False))
        yield rows
