"""The memory bill: what a model takes and how many tokens and requests fit beside it.

One pure function, for the server at its start and for `octavo plan` before there is one. Sizes are bytes.
"""

from dataclasses import dataclass
from typing import Final

from octavo_common.model_config import ModelConfig

ELEMENT_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
CPU_DEFAULT_KV_BYTES: Final = 2**30
CUDA_CONTEXT_BYTES: Final = 700 * 2**20  # context, library handles, loaded kernels
DEFAULT_SWAP_BYTES: Final = 4 * 2**30
_LOGPROB_CHUNK_BYTES: Final = (
    4 * 64 * 2**20
)  # the sampler's and log-probabilities' chunk of 64 MiB, with what is made of it
_KIB, _GIB = 2**10, 2**30
_SPARE_BYTES: Final = 128 * 2**20
_SPARES_AT_MOST: Final = 64
_LARGE_GPU_BYTES: Final = 39 * 2**30  # of what is sold as 40 GB a little is missing
_LARGE_MODEL: Final = 3_000_000_000  # parameters: 2048 tokens keep an H100 for 20 ms


class DoesNotFit(ValueError):
    """The model does not fit as asked. The message says the numbers and which flags to change."""


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """What bounds the bill: the server's flags of these names, None where one is not given.

    `dtype` is resolved: "float32", "float16" or "bfloat16". `total_bytes` is the GPU's memory, and not needed for the
    CPU. `swap_space` is in GiB; `host_bytes` the host memory that is free for it, None if that is not known.
    """

    device: str
    dtype: str
    total_bytes: int | None = None
    block_size: int = 16
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    swap_space: float | None = None
    host_bytes: int | None = None
    disk_cache: bool = False  # whether --disk-cache-dir is given
    preemption_mode: str = "auto"


@dataclass(frozen=True, slots=True)
class MeasuredMemory:
    """What a server that has read its weights can measure. `how` says what of the workspace was, in a word or two."""

    weights_bytes: int
    workspace_bytes: int
    how: str = "measured"


@dataclass(frozen=True, slots=True)
class MemoryBill:
    """The bill. `num_blocks` pages of `block_size` tokens are the KV cache; `warnings` are sentences for people.

    `workspace_bytes` is what a step takes at most, and on a GPU CUDA's context with its libraries; `workspace_is` says
    how it is known. `swap_bytes` of host memory take `num_host_blocks` pages that leave the device and, with a disk
    cache behind it, `num_spare_blocks` more that are on their way to the disk.
    """

    device: str
    total_bytes: int | None
    budget_bytes: int | None  # total times utilization
    weights_bytes: int
    workspace_bytes: int
    kv_bytes_per_token: int
    num_blocks: int
    block_size: int
    max_model_len: int
    warnings: tuple[str, ...] = ()
    workspace_is: str = "estimate"
    swap_bytes: int = 0
    disk_cache: bool = False

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return self.block_size * self.kv_bytes_per_token

    @property
    def num_host_blocks(self) -> int:
        """Pages that the swap space keeps."""
        return slots_within(self.swap_bytes, self.page_bytes, disk=self.disk_cache)

    @property
    def num_spare_blocks(self) -> int:
        """Pages in the swap space besides, which only pass through it to the disk."""
        return self.swap_bytes // self.page_bytes - self.num_host_blocks

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of all pages."""
        return self.kv_cache_tokens * self.kv_bytes_per_token

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens that fit into the KV cache."""
        return self.num_blocks * self.block_size

    @property
    def needed_bytes(self) -> int:
        """Weights, workspace and KV cache together."""
        return self.weights_bytes + self.workspace_bytes + self.kv_cache_bytes

    @property
    def full_length_requests(self) -> float:
        """Requests of `max_model_len` tokens that fit into the KV cache side by side."""
        return self.num_blocks / -(-self.max_model_len // self.block_size)

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) of each line, for a table."""
        memory = []
        if self.total_bytes is not None and self.budget_bytes is not None:
            memory = [("memory", human_bytes(self.total_bytes)), ("of which used", human_bytes(self.budget_bytes))]
        return [
            *memory,
            ("weights", human_bytes(self.weights_bytes)),
            (f"workspace ({self.workspace_is})", human_bytes(self.workspace_bytes)),
            ("KV cache", human_bytes(self.kv_cache_bytes)),
            ("KV cache per token", human_bytes(self.kv_bytes_per_token)),
            ("pages", f"{self.num_blocks:,} of {self.block_size} tokens"),
            ("tokens that fit", f"{self.kv_cache_tokens:,}"),
            ("longest request", f"{self.max_model_len:,} tokens"),
            ("requests of that length that fit", f"{self.full_length_requests:,.1f}"),
            ("swap space on the host", human_bytes(self.swap_bytes)),
            ("pages in swap space", f"{self.num_host_blocks:,}"),
            *([("pages on their way to the disk", f"{self.num_spare_blocks:,} more")] if self.disk_cache else []),
        ]

    def table(self) -> str:
        """The rows, one a line, indented and aligned."""
        rows = self.rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"  {label:<{width}}  {value}" for label, value in rows)


def memory_bill(model: ModelConfig, limits: MemoryLimits, measured: MeasuredMemory | None = None) -> MemoryBill:
    """Works out the bill; weights and workspace are computed and estimated where they are not `measured`.

    The KV cache is `num_gpu_blocks_override` pages, else `kv_cache_memory_bytes`, else on a GPU what weights and
    workspace leave of its share, and on the CPU 1 GiB or what `max_num_seqs` requests of full length take, if that is
    less. Without `max_model_len` it is the model's, lowered to what the pages hold. The swap space is `swap_space`,
    else on a GPU 4 GiB or a quarter of `host_bytes`, if that is less, and none on the CPU. Raises DoesNotFit.
    """
    element = ELEMENT_BYTES[limits.dtype]
    longest = limits.max_model_len or context_length(model)
    if longest > context_length(model):
        raise DoesNotFit(
            f"--max-model-len {longest}: the model was made for {context_length(model)} tokens; give that or less"
        )
    known = measured or MeasuredMemory(model.num_parameters * element, workspace_estimate(model, limits), "estimate")
    weights, workspace = known.weights_bytes, known.workspace_bytes
    per_token = model.kv_bytes_per_token(element)
    budget = None if limits.total_bytes is None else int(limits.total_bytes * limits.gpu_memory_utilization)
    page = per_token * limits.block_size
    available = _kv_cache_bytes(limits, -(-longest // limits.block_size) * page, budget, weights + workspace)
    num_blocks = limits.num_gpu_blocks_override or available // page
    fits = num_blocks * limits.block_size
    if fits < 2 or (longest > fits and limits.max_model_len is not None):
        raise DoesNotFit(_too_small(longest, num_blocks, page, limits))
    return MemoryBill(
        device=limits.device,
        total_bytes=limits.total_bytes,
        budget_bytes=budget,
        weights_bytes=weights,
        workspace_bytes=workspace,
        kv_bytes_per_token=per_token,
        num_blocks=num_blocks,
        block_size=limits.block_size,
        max_model_len=min(longest, fits),
        warnings=tuple(_warnings(longest, fits, weights + workspace + num_blocks * page, budget)),
        workspace_is=known.how,
        swap_bytes=_swap_bytes(limits, page),
        disk_cache=limits.disk_cache,
    )


def context_length(model: ModelConfig) -> int:
    """Tokens that the model's positions reach.

    `max_position_embeddings` counts before "linear" and "yarn" stretch it, and after "llama3" has.
    """
    rope = model.rope
    if rope.kind == "yarn":
        return int((rope.original_max_position_embeddings or model.max_position_embeddings) * rope.factor)
    if rope.kind == "linear":
        return int(model.max_position_embeddings * rope.factor)
    return model.max_position_embeddings


def workspace_estimate(model: ModelConfig, limits: MemoryLimits) -> int:
    """What a step needs at most beside weights and KV cache: an estimate, not a measurement.

    The activations that live at once in a layer (residual twice, normed, and the wider of attention's and the MLP's
    inputs and outputs), the logits of a full batch with a copy for sampling, and one chunk of the vocabulary's rows. A
    model without a head has no logits.
    """
    element = ELEMENT_BYTES[limits.dtype]
    attention = 2 * (model.num_attention_heads + model.num_kv_heads) * model.head_dim
    layer = 3 * model.hidden_size + max(attention, 3 * model.intermediate_size)
    activations = limits.max_num_batched_tokens * layer * element
    logits = 2 * min(limits.max_num_seqs, limits.max_num_batched_tokens) * model.vocab_size * 4 + _LOGPROB_CHUNK_BYTES
    context = CUDA_CONTEXT_BYTES if limits.device == "cuda" else 0
    return activations + (logits if model.generates else 0) + context


def spare_slots(page_bytes: int, num_slots: int) -> int:
    """Pages of host memory that a disk cache needs besides `num_slots`, for what is on its way to the disk.

    At least two: one that is being written, and one for the next.
    """
    return min(_SPARES_AT_MOST, max(2, min(num_slots // 8, _SPARE_BYTES // page_bytes)))


def slots_within(host_bytes: int, page_bytes: int, *, disk: bool) -> int:
    """Pages that so much host memory keeps, with the spare ones for a disk cache beside them."""
    total = host_bytes // page_bytes
    return max(0, total - spare_slots(page_bytes, total)) if disk else total


def default_num_seqs(gpu_bytes: int | None) -> int:
    """Requests in a step at most where no flag says so, by the GPU's memory, if there is a GPU.

    The more run at once, the more tokens are made of each reading of the weights, as long as their contexts fit.
    """
    return 512 if gpu_bytes is not None and gpu_bytes >= _LARGE_GPU_BYTES else 256


def default_batched_tokens(gpu_bytes: int | None, num_parameters: int) -> int:
    """Tokens in a step at most where no flag says so, by the GPU's memory, if there is a GPU, and the model's size.

    While a step runs, answers that are under way wait for it: on a CPU, which gains nothing by more, it holds less. On
    a GPU more than 2048 are taken only while many wait; what such a step needs beside the weights must not hurt, and as
    it has no graph, the device must have longer to do than the host has to launch it.
    """
    if gpu_bytes is None:
        return 512
    return 8192 if gpu_bytes >= _LARGE_GPU_BYTES and num_parameters >= _LARGE_MODEL else 2048


def human_bytes(count: int) -> str:
    """1536 → "1.5 KiB"."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while value >= _KIB and len(units) > 1:
        value /= _KIB
        units.pop(0)
    return f"{value:,.0f} {units[0]}" if units[0] == "B" else f"{value:,.1f} {units[0]}"


def _kv_cache_bytes(limits: MemoryLimits, full_length_bytes: int, budget: int | None, taken: int) -> int:
    if limits.kv_cache_memory_bytes is not None:
        return limits.kv_cache_memory_bytes
    if limits.device == "cpu":
        return min(CPU_DEFAULT_KV_BYTES, limits.max_num_seqs * full_length_bytes)
    if budget is None:
        if limits.num_gpu_blocks_override is not None:
            return 0
        raise ValueError("total_bytes is needed for a device that is not the CPU")
    return max(0, budget - taken)


def _swap_bytes(limits: MemoryLimits, page: int) -> int:
    if limits.swap_space is None:
        default = DEFAULT_SWAP_BYTES if limits.device == "cuda" else 0
        swap = default if limits.host_bytes is None else min(default, limits.host_bytes // 4)
    else:
        swap = int(limits.swap_space * _GIB)
        if limits.host_bytes is not None and swap > limits.host_bytes:
            raise DoesNotFit(
                f"--swap-space {limits.swap_space:g}: the host has {human_bytes(limits.host_bytes)} of memory left for "
                f"it: give {limits.host_bytes / _GIB:.2f} or less"
            )
        if 0 < swap < page:
            raise DoesNotFit(
                f"--swap-space {limits.swap_space:g}: a page takes {human_bytes(page)}: give {page / _GIB:.6f} or "
                "more, or 0"
            )
    if limits.preemption_mode == "swap" and swap < page:
        raise DoesNotFit("--preemption-mode swap: pages are swapped to host memory: give --swap-space above 0")
    if limits.disk_cache and slots_within(swap, page, disk=True) == 0:
        least = (1 + spare_slots(page, 1)) * page
        raise DoesNotFit(
            "--disk-cache-dir: pages come to the disk from host memory, which takes at least "
            f"{human_bytes(least)}: give --swap-space above 0, {least / _GIB:.6f} or more"
        )
    return swap


def _too_small(longest: int, num_blocks: int, page: int, limits: MemoryLimits) -> str:
    fits, pages = num_blocks * limits.block_size, -(-longest // limits.block_size)
    if limits.max_model_len is None:  # it would be lowered to what fits: a page is all that is needed
        longest, pages = limits.block_size, 1
    if limits.num_gpu_blocks_override is not None:
        raising = f"raise --num-gpu-blocks-override to {pages} or more"
    elif limits.kv_cache_memory_bytes is not None or limits.device == "cpu":
        raising = f"raise --kv-cache-memory-bytes to {pages * page} or more"
    else:
        raising = "raise --gpu-memory-utilization, lower --max-num-batched-tokens, or take a GPU with more memory"
    lowering = f"lower --max-model-len to {fits} or less, or " if fits > 1 else ""
    asked = (
        f"--max-model-len {longest}: a request of that length"
        if limits.max_model_len is not None
        else f"a page of {longest} tokens, the least there must be,"
    )
    return (
        f"{asked} takes {human_bytes(pages * page)} of KV cache, and there is room for "
        f"{human_bytes(num_blocks * page)} ({fits} tokens): {lowering}{raising}"
    )


def _warnings(longest: int, fits: int, needed: int, budget: int | None) -> list[str]:
    warnings = []
    if longest > fits:
        warnings.append(
            f"--max-model-len is lowered from the model's {longest} tokens to {fits}, which is what the KV cache holds"
        )
    if budget is not None and needed > budget:
        warnings.append(
            f"weights, workspace and KV cache take {human_bytes(needed)}, more than the {human_bytes(budget)} that "
            "--gpu-memory-utilization allows"
        )
    return warnings
