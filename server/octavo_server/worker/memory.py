"""Measures what the weights take and what the worst step takes beside them and the KV cache."""

import dataclasses
import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import torch

from octavo_common.memory import CUDA_CONTEXT_BYTES, MeasuredMemory, MemoryBill, human_bytes
from octavo_common.model_config import ModelConfig
from octavo_server.free_memory import give_memory_back
from octavo_server.ipc import Pooling, SamplingParams
from octavo_server.step import NewRequest
from octavo_server.worker import swapper
from octavo_server.worker.input_batch import RequestState, ScheduledRow
from octavo_server.worker.logprobs import rows_per_chunk
from octavo_server.worker.model_runner import ModelRunner
from octavo_server.worker.shallow import StepBounds, shallow_runner

log = logging.getLogger(__name__)

_CUDA_SEGMENT_BYTES: Final = 2 * 2**20  # what torch's allocator rounds large pieces up to
_TRIED_GRAPHS: Final = 6
_LAYERS: Final = 3  # of each window, of a model in which they have nothing to leave to each other
_CPU_OPERATIONS: Final = 5e8  # some tenths of a second, whatever the CPU
# All that a request can ask for at once. Its top-k keeps more than anybody asks for: a sort of the whole vocabulary.
FULL_SAMPLING: Final = SamplingParams(
    temperature=1.0,
    top_p=0.9,
    top_k=1_000_000,
    min_p=1e-6,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logprobs=20,
)


def weights_bytes(decoder: object) -> int:
    """Bytes of the tensors that a decoder holds, one that serves twice counted once. Packed ones have no storage."""
    tensors = {id(tensor): tensor for value in vars(decoder).values() for tensor in _tensors(value)}
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())


def outside_bytes(device: torch.device) -> int:
    """What is taken of a GPU's memory by anybody but torch's allocator here: CUDA's contexts, other processes."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def measure(runner: ModelRunner, bounds: StepBounds, plan: MemoryBill, outside: int = 0) -> MeasuredMemory:
    """Runs worst steps and sees what they take. The runner has its weights, and no KV cache yet.

    plan: from estimates; that of the workspace is reported
    where the steps would take too long, as on the CPU, on which nothing is decided by it: there a smaller step is run,
    and what that took is told. outside: `outside_bytes` before the weights were loaded.
    """
    weights = weights_bytes(runner.decoder)
    if runner.device.type == "cuda":
        swapping = swapper.workspace_bytes(plan.page_bytes, plan.num_host_blocks, runner.device)
        runner.allocate_cache(1)
        graphs = graph_bytes(runner, bounds.max_model_len, lambda: _driver_bytes(runner.device))
        runner.drop_cache()
        workspace = _cuda_workspace(runner, bounds, weights, outside)
        histories = bounds.max_num_seqs * runner.request_bytes(bounds.max_model_len)  # if all ask for penalties
        return MeasuredMemory(weights, workspace + swapping + graphs + histories)
    runner.allocate_cache(1)
    tokens = min(bounds.max_num_batched_tokens, _tokens_for(_CPU_OPERATIONS, runner.config, bounds.max_model_len))
    steps = worst_steps(runner, dataclasses.replace(bounds, max_num_batched_tokens=tokens))
    grown = _resident_growth(lambda: _run(runner, steps))
    runner.drop_cache()
    if grown is not None and tokens == bounds.max_num_batched_tokens:
        return MeasuredMemory(weights, grown)
    told = "" if grown is None else f"; a step of {tokens} tokens took {human_bytes(grown)}"
    return MeasuredMemory(weights, max(plan.workspace_bytes, grown or 0), f"estimate{told}")


def worst_steps(runner: ModelRunner, bounds: StepBounds) -> list[list[ScheduledRow]]:
    """A step of prefill alone, and one with as many requests that sample as there can be, filled up with prefill.

    All at the longest context, all pages being the cache's first one: what stands in it is of no interest.
    """
    budget = bounds.max_num_batched_tokens
    decodes = min(bounds.max_num_seqs, budget)
    return [_step(runner, bounds, 0, budget), _step(runner, bounds, decodes, budget - decodes)]


def _step(runner: ModelRunner, bounds: StepBounds, decodes: int, prefill: int) -> list[ScheduledRow]:
    """Many rows are one request's: nobody looks at what they say. No more sample than there can be requests.

    Of a model that makes no text all are prompts that are pooled.
    """
    longest, rows, offset, generates = bounds.max_model_len, list[ScheduledRow](), 0, runner.config.generates
    if not generates:
        decodes, prefill = 0, decodes + prefill
    asked = msgspec.structs.replace(FULL_SAMPLING, prompt_logprobs=20)
    asking = _state(runner, longest, asked, "" if generates else "mean")
    # Of whole prompts it would take most of the time, and no more memory: they are worked on in chunks.
    asking.num_prompt = min(longest, longest - min(prefill, longest) + 8 * rows_per_chunk(runner.config.vocab_size))
    answering = _state(runner, longest, FULL_SAMPLING)
    for _ in range(decodes):
        rows.append(ScheduledRow(answering, longest - 1, longest, offset, True, False, False))
        offset += 1
    while prefill > 0:
        count = min(prefill, longest)
        samples = generates and len(rows) < bounds.max_num_seqs
        rows.append(ScheduledRow(asking, longest - count, longest, offset, samples, False, generates))
        offset, prefill = offset + count, prefill - count
    return rows


def _state(runner: ModelRunner, length: int, sampling: SamplingParams, pooling: Pooling = "") -> RequestState:
    """A request whose tokens differ as far as the vocabulary goes: penalties have the most to do."""
    tokens = [position % runner.config.vocab_size for position in range(length)]
    pages = [0] * -(-length // runner.batch.block_size)
    new = NewRequest("", tokens, length, length, sampling, pages, 0, pooling)
    return RequestState(new, runner.batch.block_size, 0)


def _run(runner: ModelRunner, steps: list[list[ScheduledRow]]) -> None:
    for rows in steps:
        runner.rehearse(rows)


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))


def _tokens_for(operations: float, config: ModelConfig, context: int) -> int:
    """Tokens that take about as many operations: two for each parameter, four for each key and head's width."""
    attention = 4 * context * config.num_attention_heads * config.head_dim * config.num_layers
    return max(1, int(operations / (2 * config.num_parameters + attention)))


def _cuda_workspace(runner: ModelRunner, bounds: StepBounds, weights: int, outside: int) -> int:
    """By how much torch's reserve grows at most, and all that is neither that nor weights nor pages.

    The reserve and not what is in use of it: the gaps between pieces are gone for others, too. Outside of it are
    libraries, loaded kernels and CUDA's context. That is there before anything can be asked and is seen together with
    what other processes take; so what was there before the weights were loaded (`outside`) counts as the lesser of that
    and of what contexts are known to take, and to it comes what was added since.

    Run on a few layers: of the further ones each takes what the one before has left. Torch keeps what the steps took.
    """
    device = runner.device
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    loaded = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    few = shallow_runner(runner, bounds, _LAYERS)
    few.allocate_cache(1)
    _run(few, worst_steps(few, bounds))
    torch.cuda.synchronize(device)
    peak, added = torch.cuda.max_memory_reserved(device), outside_bytes(device) - outside
    context = min(CUDA_CONTEXT_BYTES, max(0, outside))
    rounding = max(0, loaded - weights) + runner.config.num_layers * _CUDA_SEGMENT_BYTES
    return peak - loaded + max(0, added) + context + rounding


def graph_bytes(runner: ModelRunner, max_model_len: int, used_bytes: Callable[[], int]) -> int:
    """What all graphs take: their buffers, their pool and themselves, of the memory that `used_bytes` tells.

    The largest one's pool serves the others too. What these add is seen on the next few, the larger ones that a start
    waits for, and taken for what each adds.
    """
    before = used_bytes()
    graphs = runner.make_graphs(max_model_len)
    if graphs is None:
        return 0
    graphs.capture_next()
    largest, others = used_bytes() - before, graphs.num_pending
    tried = min(_TRIED_GRAPHS, graphs.num_first - 1)
    for _ in range(tried):
        graphs.capture_next()
    added = max(0, used_bytes() - before - largest)
    total = largest + (-(-added * others // tried) if tried else 0)
    log.info(
        "graphs: %s (%s with the largest alone, %s by %d more)",
        *(human_bytes(total), human_bytes(largest), human_bytes(added), tried),
    )
    return total


def _driver_bytes(device: torch.device) -> int:
    """What is taken of the device's memory by whomever, torch's free pieces given back before."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _resident_growth(run: Callable[[], None]) -> int | None:
    """By how much the memory of this process grows at most while `run` runs; None where Linux does not tell.

    What is dead is let go before: growth into its place, or beside its end, would not be seen.
    """
    gc.collect()
    give_memory_back()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the high-water mark to where it is now
        before = _status_bytes("VmRSS")
        run()
        return max(0, _status_bytes("VmHWM") - before)
    except OSError:
        run()
        return None


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status does not tell {name}")


def reserved_bytes(device: torch.device) -> int:
    """What torch's allocator holds of a GPU's memory."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def reserve(runner: ModelRunner, bounds: StepBounds, before: int) -> None:
    """On CUDA, once the KV cache is there: makes torch take what the worst steps need, so that no other process can.

    before: `reserved_bytes` after `measure`, when it had that. It may have given it back to make room for the cache.
    """
    pages = runner.kv_cache[0][0].shape[0] * runner.bytes_per_page
    if reserved_bytes(runner.device) - pages < before:
        few = shallow_runner(runner, bounds, _LAYERS)
        few.kv_cache = runner.kv_cache[: few.config.num_layers]
        _run(few, worst_steps(few, bounds))
    reserved, planned = torch.cuda.memory_reserved(runner.device), runner.planned_bytes
    log.info("torch has reserved %s of GPU memory; %s are planned with", human_bytes(reserved), human_bytes(planned))
