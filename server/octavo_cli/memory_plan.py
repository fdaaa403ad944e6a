"""The memory bill of a manifest, before there is a pod: from the model's `config.json`, where that can be read."""

import importlib.resources
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from octavo_cli.errors import WRONG_INPUT, CommandError
from octavo_cli.manifest_file import in_fields
from octavo_cli.options import validated
from octavo_cli.pulled_models import config_of, source_of
from octavo_cli.serve import serve
from octavo_common.json_fields import ModelConfigError, read_json_object
from octavo_common.memory import (
    MemoryBill,
    MemoryLimits,
    default_batched_tokens,
    default_num_seqs,
    human_bytes,
    memory_bill,
)
from octavo_common.model_config import ModelConfig, parse_model_config, read_model_config
from octavo_common.names import SERVER_PORT
from octavo_server.config import ServerConfig

if TYPE_CHECKING:
    from octavo_operator.api import LLMDeployment

_GIGABYTES = re.compile(r"(?:^|-)([0-9]{1,4})GB(?:-|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The bill, None where it cannot be made, and what there is to say about it."""

    bill: MemoryBill | None
    warnings: tuple[str, ...]


def plan_memory(
    deployment: "LLMDeployment", config: ServerConfig, gpu_bytes: int | None, model_config: Path | None = None
) -> MemoryPlan:
    """The bill of a replica whose server has `config`, on a GPU of `gpu_bytes` if it asks for one.

    `model_config` is a config.json, or a directory that holds one, which is read instead of the manifest's source.

    Raises:
        CommandError: `model_config` cannot be read.
        DoesNotFit: the model does not fit.
    """
    try:
        model = _model(deployment, model_config)
    except ModelConfigError as error:
        if model_config is not None:
            raise CommandError(f"plan: --model-config: {error}", exit_code=WRONG_INPUT) from error
        text = f"the model cannot be read from here ({error}): no memory bill; give its config.json by --model-config"
        return MemoryPlan(None, (text,))
    gpu = deployment.spec.resources.accelerator is not None
    if gpu and gpu_bytes is None:
        gpu_bytes = product_bytes(deployment)
    if gpu and gpu_bytes is None:
        text = "the GPU's memory is not known from spec.resources.accelerator.products: give --gpu-memory for the bill"
        return MemoryPlan(None, (text,))
    bill = memory_bill(model, _limits(config, model, gpu_bytes if gpu else None, _container_bytes(deployment)))
    return MemoryPlan(bill, (*bill.warnings, *_host_warnings(deployment, bill)))


def server_config(filename: str, deployment: "LLMDeployment", *, local: bool = False) -> ServerConfig:
    """The configuration of a replica's server, as its own command makes it of the manifest's arguments.

    `local`: of one that runs as a process of this machine, and not in a container.

    Raises:
        CommandError: it would refuse them; `filename` is the manifest's.
    """
    from octavo_operator.render import container_arguments, server_arguments

    in_container = container_arguments(deployment, SERVER_PORT)
    arguments = server_arguments(deployment, "127.0.0.1", SERVER_PORT) if local else in_container
    try:
        with serve.make_context("serve", arguments[1:]) as context:
            return validated(ServerConfig, context.params)
    except click.UsageError as error:
        told = f"octavo serve: {in_fields(error.format_message())}"
    except click.exceptions.Exit:  # an option that only tells something, such as --help
        told = "octavo serve: with these flags it would not serve"
    raise CommandError(f"{filename}: spec.server.args: {told}", exit_code=WRONG_INPUT)


def product_bytes(deployment: "LLMDeployment") -> int | None:
    """GPU memory in bytes by the smallest product allowed, as its name tells it (NVIDIA-H100-80GB-HBM3); else None."""
    accelerator = deployment.spec.resources.accelerator
    told = [_GIGABYTES.search(product) for product in accelerator.products] if accelerator is not None else []
    if not told or None in told:
        return None
    return min(int(found[1]) for found in told if found is not None) * 2**30


def _model(deployment: "LLMDeployment", model_config: Path | None) -> ModelConfig:
    """The model's shape.

    Raises:
        ModelConfigError: it cannot be read, and why.
    """
    if model_config is not None and not model_config.is_dir():
        return parse_model_config(read_json_object(model_config))
    directory = model_config or _readable_directory(deployment)
    if directory is not None:
        return read_model_config(directory)
    source = source_of(deployment.spec.model.source)
    if source is None:
        raise ModelConfigError("it is on a volume")
    return parse_model_config(config_of(source))


def _readable_directory(deployment: "LLMDeployment") -> Path | None:
    source = deployment.spec.model.source
    if source.builtin is not None:
        return Path(str(importlib.resources.files("octavo_server") / f"{source.builtin.name}_model"))
    if source.path is not None:
        return Path(source.path.path)
    return None


def _container_bytes(deployment: "LLMDeployment") -> int | None:
    from octavo_operator.api.quantities import quantity_bytes

    memory = deployment.spec.resources.memory
    return None if memory is None else math.floor(quantity_bytes(memory))


def _limits(
    config: ServerConfig, model: ModelConfig, gpu_bytes: int | None, container_bytes: int | None
) -> MemoryLimits:
    device = "cuda" if gpu_bytes is not None else "cpu"
    dtype: str = config.dtype
    if dtype == "auto":
        dtype = model.dtype if device == "cuda" else "float32"
    batched_tokens = config.max_num_batched_tokens or default_batched_tokens(gpu_bytes, model.num_parameters)
    return MemoryLimits(
        device=device,
        dtype=dtype,
        total_bytes=gpu_bytes,
        block_size=config.block_size,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs or default_num_seqs(gpu_bytes),
        max_num_batched_tokens=batched_tokens,
        gpu_memory_utilization=config.gpu_memory_utilization,
        kv_cache_memory_bytes=config.kv_cache_memory_bytes,
        num_gpu_blocks_override=config.num_gpu_blocks_override,
        swap_space=config.swap_space,
        host_bytes=container_bytes,
        disk_cache=config.disk_cache_dir is not None,
        preemption_mode=config.preemption_mode,
    )


def _host_warnings(deployment: "LLMDeployment", bill: MemoryBill) -> list[str]:
    """On the CPU everything is in the container's own memory, which has a limit."""
    limit = _container_bytes(deployment)
    needed = math.ceil(bill.weights_bytes + bill.workspace_bytes + bill.kv_cache_bytes + bill.swap_bytes)
    if bill.device != "cpu" or limit is None or needed <= limit:
        return []
    memory = deployment.spec.resources.memory
    return [f"spec.resources.memory: {memory} is less than the {human_bytes(needed)} that the model takes: give more"]
