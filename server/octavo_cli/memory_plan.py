"""The memory bill of a manifest, before there is a pod: from the model's `config.json`, where that can be read."""

import importlib.resources
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from octavo_cli.errors import WRONG_INPUT, CommandError
from octavo_cli.options import validated
from octavo_cli.serve import serve
from octavo_common.json_fields import ModelConfigError
from octavo_common.memory import MemoryBill, MemoryLimits, default_batched_tokens, human_bytes, memory_bill
from octavo_common.model_config import ModelConfig, read_model_config
from octavo_server.config import ServerConfig

if TYPE_CHECKING:
    from octavo_operator.api import LLMDeployment

_GIGABYTES = re.compile(r"(?:^|-)([0-9]{1,4})GB(?:-|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The bill, None where it cannot be made, and what there is to say about it."""

    bill: MemoryBill | None
    warnings: tuple[str, ...]


def plan_memory(deployment: "LLMDeployment", arguments: Sequence[str], gpu_bytes: int | None) -> MemoryPlan:
    """The bill of a replica started as `octavo serve` with `arguments`, on a GPU of `gpu_bytes` if it asks for one.

    Raises:
        CommandError: the server would refuse its arguments.
        DoesNotFit: the model does not fit.
    """
    config = server_config(arguments)
    directory = _readable_directory(deployment)
    if directory is None:
        return MemoryPlan(None, ("the model cannot be read from here (it is on a volume): no memory bill",))
    try:
        model = read_model_config(directory)
    except ModelConfigError as error:
        return MemoryPlan(None, (f"the model cannot be read from here ({error}): no memory bill",))
    gpu = deployment.spec.resources.accelerator is not None
    if gpu and gpu_bytes is None:
        gpu_bytes = product_bytes(deployment)
    if gpu and gpu_bytes is None:
        text = "the GPU's memory is not known from spec.resources.accelerator.products: give --gpu-memory for the bill"
        return MemoryPlan(None, (text,))
    bill = memory_bill(model, _limits(config, model, gpu_bytes if gpu else None))
    return MemoryPlan(bill, (*bill.warnings, *_host_warnings(deployment, bill)))


def server_config(arguments: Sequence[str]) -> ServerConfig:
    """The server's configuration, as its own command makes it of these arguments.

    Raises:
        CommandError: it would refuse them.
    """
    try:
        with serve.make_context("serve", list(arguments)) as context:
            return validated(ServerConfig, context.params)
    except click.UsageError as error:
        raise CommandError(
            f"spec.server.args: octavo serve: {error.format_message()}", exit_code=WRONG_INPUT
        ) from error


def product_bytes(deployment: "LLMDeployment") -> int | None:
    """GPU memory in bytes by the smallest product allowed, as its name tells it (NVIDIA-H100-80GB-HBM3); else None."""
    accelerator = deployment.spec.resources.accelerator
    told = [_GIGABYTES.search(product) for product in accelerator.products] if accelerator is not None else []
    if not told or None in told:
        return None
    return min(int(found[1]) for found in told if found is not None) * 2**30


def _readable_directory(deployment: "LLMDeployment") -> Path | None:
    source = deployment.spec.model.source
    if source.builtin is not None:
        return Path(str(importlib.resources.files("octavo_server") / f"{source.builtin.name}_model"))
    if source.path is not None:
        return Path(source.path.path)
    return None


def _limits(config: ServerConfig, model: ModelConfig, gpu_bytes: int | None) -> MemoryLimits:
    device = "cuda" if gpu_bytes is not None else "cpu"
    dtype: str = config.dtype
    if dtype == "auto":
        dtype = model.dtype if device == "cuda" else "float32"
    return MemoryLimits(
        device=device,
        dtype=dtype,
        total_bytes=gpu_bytes,
        block_size=config.block_size,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens or default_batched_tokens(device),
        gpu_memory_utilization=config.gpu_memory_utilization,
        kv_cache_memory_bytes=config.kv_cache_memory_bytes,
        num_gpu_blocks_override=config.num_gpu_blocks_override,
    )


def _host_warnings(deployment: "LLMDeployment", bill: MemoryBill) -> list[str]:
    """On the CPU everything is in the container's own memory, which has a limit."""
    from octavo_operator.local.quantities import quantity_bytes

    memory = deployment.spec.resources.memory
    if bill.device != "cpu" or memory is None:
        return []
    needed = math.ceil(bill.weights_bytes + bill.workspace_bytes + bill.kv_cache_bytes)
    if needed <= quantity_bytes(memory):
        return []
    return [f"spec.resources.memory: {memory} is less than the {human_bytes(needed)} that the model takes: give more"]
