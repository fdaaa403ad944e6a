"""The engine's start: reads the model, works out the memory, builds scheduler and runner, and runs them once."""

import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from octavo_common.free_memory import free_host_bytes
from octavo_common.generation_config import read_generation_defaults
from octavo_common.json_fields import ModelConfigError
from octavo_common.memory import (
    DoesNotFit,
    MeasuredMemory,
    MemoryBill,
    MemoryLimits,
    context_length,
    default_batched_tokens,
    default_num_seqs,
    human_bytes,
    memory_bill,
)
from octavo_common.model_config import ModelConfig, read_model_config
from octavo_common.version import __version__
from octavo_kernels.ops import has_triton
from octavo_server.config import DISK_CACHE_GIB, EngineConfig
from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.core import EngineCore
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.request import Request
from octavo_server.engine.scheduler import Scheduler, SchedulerLimits
from octavo_server.errors import ConfigError, ModelError
from octavo_server.grammar_store import GrammarStore
from octavo_server.ipc import Pooling, SamplingParams
from octavo_server.worker.device import fix_threads, pick_device, pick_dtype
from octavo_server.worker.disk_store import DiskStore
from octavo_server.worker.fingerprint import device_facts, fingerprint
from octavo_server.worker.graph_recorder import pick_recorder
from octavo_server.worker.kernel_variants import begin_workers, compile_kernels
from octavo_server.worker.known_variants import KnownVariants, cache_directory
from octavo_server.worker.memory import measure, outside_bytes, reserve, reserved_bytes, weights_bytes
from octavo_server.worker.model_runner import ModelRunner
from octavo_server.worker.shallow import StepBounds
from octavo_server.worker.step_profiler import StepProfiler

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from octavo_kernels.compile_ahead import Compiled

log = logging.getLogger(__name__)


def start_engine(
    config: EngineConfig, begin_phase: Callable[[str], None], note: Callable[[str, float], None] = lambda *_: None
) -> EngineCore:
    """Builds the engine and runs it once. Calls `begin_phase` as each phase begins, `note` with what one was about.

    What is noted: `weights_bytes` read in `weights_seconds`, and beside it, with Triton, `kernels` made ready in
    `kernels_seconds`, of which `kernels_cached` had been compiled before.

    Raises ModelError or ConfigError, whose message says what to change.
    """
    try:
        return _start(config, begin_phase, note)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "the GPU's memory does not suffice: lower --gpu-memory-utilization or --max-num-batched-tokens, "
            "or end what else uses the GPU"
        ) from error


def _start(config: EngineConfig, begin_phase: Callable[[str], None], note: Callable[[str, float], None]) -> EngineCore:
    begin_phase("load weights")
    _keep_compiled(config.compile_cache_dir)
    device = pick_device(config.device)
    profiler = None if config.profile_dir is None else StepProfiler(config.profile_dir, device)
    fix_threads(device)
    model, eos_token_ids = _read_model(config.model)
    known = KnownVariants(cache_directory(), f"{config!r} {model!r}".encode()) if has_triton(device) else None
    workers = None if known is not None and known.exist else begin_workers(device)
    dtype = pick_dtype(config.dtype, model, device)
    overlap = device.type == "cuda" if config.async_scheduling is None else config.async_scheduling
    limits = _memory_limits(config, model, device, dtype)
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    plan = _bill(model, limits, None)  # what cannot fit is not read first
    _check_free(plan, free_bytes)
    bounds = StepBounds(limits.max_num_seqs, limits.max_num_batched_tokens, _longest(model, limits, plan))
    grammars = None
    if model.generates:
        grammars = GrammarStore(lambda: _grammar_tokenizer(config.model, model.vocab_size, eos_token_ids))
    runner = ModelRunner(
        model,
        device,
        dtype,
        block_size=config.block_size,
        max_num_seqs=limits.max_num_seqs,
        eos_token_ids=sorted(eos_token_ids),
        threaded=overlap and device.type == "cpu",
        recorder=pick_recorder(device, enforce_eager=config.enforce_eager or not model.generates),
        max_num_batched_tokens=limits.max_num_batched_tokens,
        grammars=grammars,
    )
    outside = outside_bytes(device)
    _load(runner, config, lambda: compile_kernels(runner, bounds, workers, known), note)
    begin_phase("measure memory")
    bill = _bill(model, limits, measure(runner, bounds, plan, outside))
    if free_bytes is not None:
        _check_free(bill, torch.cuda.mem_get_info(device)[0], bill.weights_bytes)
    for warning in bill.warnings:
        log.warning("%s", warning)
    log.info("memory:\n%s", bill.table())
    runner.planned_bytes = bill.needed_bytes
    begin_phase("allocate cache")
    before = reserved_bytes(device)
    runner.allocate_cache(bill.num_blocks)
    if bill.swap_bytes:
        _add_lower_tiers(runner, config, bill)
    begin_phase("warm up")
    scheduler_limits = SchedulerLimits(
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=bill.max_model_len,
        vocab_size=model.vocab_size,
        eos_token_ids=eos_token_ids,
        preemption_mode=config.preemption_mode,
    )
    trial = Scheduler(scheduler_limits, KVCacheManager(BlockPool(bill.num_blocks), bill.block_size))
    _warm_up(trial, runner, "" if model.generates else "mean")
    if device.type == "cuda":
        reserve(runner, dataclasses.replace(bounds, max_model_len=bill.max_model_len), before)
    if runner.recorder is not None:
        begin_phase("capture graphs")
        runner.capture_first_graphs(bill.max_model_len)
    runner.profiler = profiler
    kv_cache = KVCacheManager(
        BlockPool(bill.num_blocks),
        bill.block_size,
        prefix_caching=config.enable_prefix_caching,
        on_disk=None if runner.disk is None else runner.disk_pages(),
        window=_window(model),
    )
    return EngineCore(Scheduler(scheduler_limits, kv_cache), runner, overlap=overlap)


def _read_model(directory: Path) -> tuple[ModelConfig, frozenset[int]]:
    """The model's shape, and the token ids that end its answers: those of both of its files together."""
    try:
        model = read_model_config(directory)
        return model, frozenset(model.eos_token_ids) | frozenset(read_generation_defaults(directory).eos_token_ids)
    except ModelConfigError as error:
        raise ModelError(str(error)) from error


def _grammar_tokenizer(directory: Path, vocab_size: int, eos_token_ids: frozenset[int]) -> "LLTokenizer":
    """For grammars; made while weights are read. It holds the GIL for up to a second: no stream waits for it then."""
    from octavo_server.grammar_compiler import make_tokenizer

    return make_tokenizer(directory, vocab_size, sorted(eos_token_ids))


def _keep_compiled(directory: Path | None) -> None:
    """Names the place to Triton, which is not imported yet and knows no other way."""
    if directory is None:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(
            f"--compile-cache-dir {directory}: {error.strerror}; give a directory that can be written to"
        ) from error
    os.environ["TRITON_CACHE_DIR"] = str(directory)


def _load(
    runner: ModelRunner,
    config: EngineConfig,
    compile_steps: "Callable[[], Compiled]",
    note: Callable[[str, float], None],
) -> None:
    """Weights, and beside them what steps will launch."""

    def compile_all() -> None:
        compiled = compile_steps()
        note("kernels", compiled.kernels)
        note("kernels_cached", compiled.cached)
        note("kernels_seconds", compiled.seconds)

    meanwhile = compile_all if has_triton(runner.device) else None
    seconds = runner.load(
        config.model,
        batch_invariant=config.batch_invariant,
        random_weights=config.load_format == "random",
        meanwhile=meanwhile,
    )
    note("weights_bytes", 0.0 if config.load_format == "random" else weights_bytes(runner.decoder))
    note("weights_seconds", seconds)


def _window(model: ModelConfig) -> int | None:
    """Tokens that any layer looks back to, if each of them has a window."""
    windows = [window for window in model.sliding_window if window is not None]
    return max(windows) if len(windows) == model.num_layers else None


def _add_lower_tiers(runner: ModelRunner, config: EngineConfig, bill: MemoryBill) -> None:
    disk = None
    if config.disk_cache_dir is not None:
        # Whatever shows in the bits of K and V: a page from disk must be the one that would be computed here.
        facts = (runner.dtype, bill.block_size, *device_facts(runner.device), torch.get_num_threads())
        name = fingerprint(config.model, *facts, config.batch_invariant, torch.__version__, __version__)
        size = int((config.disk_cache_size or DISK_CACHE_GIB) * 2**30)
        disk = DiskStore(config.disk_cache_dir, size, name, bill.page_bytes)
    runner.add_lower_tiers(bill.num_host_blocks, disk)


def _memory_limits(config: EngineConfig, model: ModelConfig, device: torch.device, dtype: torch.dtype) -> MemoryLimits:
    total_bytes = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None
    batched_tokens = config.max_num_batched_tokens or default_batched_tokens(total_bytes, model.num_parameters)
    return MemoryLimits(
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        total_bytes=total_bytes,
        block_size=config.block_size,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs or default_num_seqs(total_bytes),
        max_num_batched_tokens=batched_tokens,
        gpu_memory_utilization=config.gpu_memory_utilization,
        kv_cache_memory_bytes=config.kv_cache_memory_bytes,
        num_gpu_blocks_override=config.num_gpu_blocks_override,
        swap_space=config.swap_space,
        host_bytes=free_host_bytes(),
        disk_cache=config.disk_cache_dir is not None,
        preemption_mode=config.preemption_mode,
    )


def _bill(model: ModelConfig, limits: MemoryLimits, measured: MeasuredMemory | None) -> MemoryBill:
    try:
        return memory_bill(model, limits, measured)
    except DoesNotFit as error:
        raise ConfigError(str(error)) from error


def _longest(model: ModelConfig, limits: MemoryLimits, plan: MemoryBill) -> int:
    """Tokens that a request may come to have: on a GPU that much may fit if the workspace turns out to be nothing."""
    if plan.budget_bytes is None:
        return plan.max_model_len
    fits = max(plan.budget_bytes - plan.weights_bytes, plan.kv_cache_bytes) // plan.kv_bytes_per_token
    return min(limits.max_model_len or context_length(model), fits)


def _check_free(bill: MemoryBill, free_bytes: int | None, already_taken: int = 0) -> None:
    needed = bill.needed_bytes - already_taken
    if free_bytes is not None and needed > free_bytes:
        raise ConfigError(
            f"{human_bytes(needed)} of GPU memory are planned with, but only {human_bytes(free_bytes)} are free: lower "
            "--gpu-memory-utilization, or end what else uses the GPU"
        )


def _warm_up(scheduler: Scheduler, runner: ModelRunner, pooling: Pooling) -> None:
    """One prefill and one decode, or what `pooling` makes of the prefill, before anybody waits for them.

    Raises ModelError if the model computes no numbers.
    """
    length = min(64, scheduler.limits.max_model_len - 1)
    sampling = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=2, ignore_eos=True, logprobs=1)
    scheduler.add(Request("warm up", [0] * length, sampling, scheduler.limits.max_model_len, pooling=pooling))
    while scheduler.requests:
        output = scheduler.schedule()
        for result in scheduler.update(output, runner.execute(output)):
            if result.error is not None:
                raise ModelError(f"the model does not compute finite numbers in {runner.dtype}; try another --dtype")
    runner.execute(scheduler.schedule())  # tells the runner to forget it
