"""The engine's start: reads the model, works out the memory, builds scheduler and runner, and runs them once."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from octavo_common.generation_config import read_generation_defaults
from octavo_common.json_fields import ModelConfigError
from octavo_common.memory import (
    DoesNotFit,
    MemoryBill,
    MemoryLimits,
    default_batched_tokens,
    human_bytes,
    memory_bill,
)
from octavo_common.model_config import ModelConfig, read_model_config
from octavo_server.config import EngineConfig
from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.core import EngineCore
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.request import Request
from octavo_server.engine.scheduler import Scheduler, SchedulerLimits
from octavo_server.errors import ConfigError, ModelError
from octavo_server.ipc import SamplingParams
from octavo_server.worker.model_runner import ModelRunner, fix_threads, pick_device, pick_dtype

log = logging.getLogger(__name__)


def start_engine(config: EngineConfig, begin_phase: Callable[[str], None]) -> EngineCore:
    """Builds the engine and runs it once. Calls `begin_phase` as each phase begins.

    Raises ModelError or ConfigError, whose message says what to change.
    """
    try:
        return _start(config, begin_phase)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "the GPU's memory does not suffice: lower --gpu-memory-utilization or --max-num-batched-tokens, "
            "or end what else uses the GPU"
        ) from error


def _start(config: EngineConfig, begin_phase: Callable[[str], None]) -> EngineCore:
    begin_phase("load weights")
    device = pick_device(config.device)
    fix_threads(device)
    model, eos_token_ids = _read_model(config.model)
    dtype = pick_dtype(config.dtype, model, device)
    bill = _bill(model, config, device, dtype)
    runner = ModelRunner(model, device, dtype, config.block_size)
    runner.load(config.model)
    begin_phase("allocate cache")
    runner.allocate_cache(bill.num_blocks)
    begin_phase("warm up")
    limits = SchedulerLimits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens or default_batched_tokens(device.type),
        max_model_len=bill.max_model_len,
        vocab_size=model.vocab_size,
        eos_token_ids=eos_token_ids,
    )
    _warm_up(_scheduler(limits, bill), runner)
    return EngineCore(_scheduler(limits, bill), runner)


def _read_model(directory: Path) -> tuple[ModelConfig, frozenset[int]]:
    """The model's shape, and the token ids that end its answers: those of both of its files together."""
    try:
        model = read_model_config(directory)
        return model, frozenset(model.eos_token_ids) | frozenset(read_generation_defaults(directory).eos_token_ids)
    except ModelConfigError as error:
        raise ModelError(str(error)) from error


def _scheduler(limits: SchedulerLimits, bill: MemoryBill) -> Scheduler:
    return Scheduler(limits, KVCacheManager(BlockPool(bill.num_blocks), bill.block_size))


def _bill(model: ModelConfig, config: EngineConfig, device: torch.device, dtype: torch.dtype) -> MemoryBill:
    free_bytes, total_bytes = torch.cuda.mem_get_info(device) if device.type == "cuda" else (None, None)
    limits = MemoryLimits(
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        total_bytes=total_bytes,
        block_size=config.block_size,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens or default_batched_tokens(device.type),
        gpu_memory_utilization=config.gpu_memory_utilization,
        kv_cache_memory_bytes=config.kv_cache_memory_bytes,
        num_gpu_blocks_override=config.num_gpu_blocks_override,
    )
    try:
        bill = memory_bill(model, limits)
    except DoesNotFit as error:
        raise ConfigError(str(error)) from error
    if free_bytes is not None and bill.needed_bytes > free_bytes:
        raise ConfigError(
            f"{human_bytes(bill.needed_bytes)} of GPU memory are planned with, but only {human_bytes(free_bytes)} are "
            "free: lower --gpu-memory-utilization, or end what else uses the GPU"
        )
    for warning in bill.warnings:
        log.warning("%s", warning)
    log.info("memory: %s", ", ".join(f"{label} {value}" for label, value in bill.rows()))
    return bill


def _warm_up(scheduler: Scheduler, runner: ModelRunner) -> None:
    """One prefill and one decode, before anybody waits for them. Raises ModelError if the model computes no numbers."""
    length = min(64, scheduler.limits.max_model_len - 1)
    sampling = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=2, ignore_eos=True, logprobs=1)
    scheduler.add(Request("warm up", [0] * length, sampling, scheduler.limits.max_model_len))
    while scheduler.has_work:
        output = scheduler.schedule()
        for result in scheduler.update(output, runner.execute(output)):
            if result.error is not None:
                raise ModelError(f"the model does not compute finite numbers in {runner.dtype}; try another --dtype")
    runner.execute(scheduler.schedule())  # tells the runner to forget it
