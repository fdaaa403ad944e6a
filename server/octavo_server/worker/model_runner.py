"""Runs steps on the device: model, KV cache, sampler."""

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch

from octavo_common.memory import human_bytes
from octavo_common.model_config import ModelConfig
from octavo_server.engine.step import SampledRow, SchedulerOutput
from octavo_server.errors import ConfigError, EngineError
from octavo_server.ipc import TokenLogprobs
from octavo_server.worker.input_batch import InputBatch, ScheduledRow
from octavo_server.worker.logprobs import rows_per_chunk, token_logprobs
from octavo_server.worker.models.interface import ForwardBatch, KVCacheSpec
from octavo_server.worker.sampler import Sampler

KVCache = list[tuple[torch.Tensor, torch.Tensor]]
_NO_DISTRIBUTION = (
    "there are no probabilities for the next token (the model's logits are not finite numbers, or all are excluded)"
)


class Decoder(Protocol):
    """What the runner needs of a model."""

    def forward(self, batch: ForwardBatch, kv_cache: KVCache, on_progress: Callable[[], None]) -> torch.Tensor:
        """[T, hidden]: the last hidden states; stores K and V of the batch's tokens in their slots.

        Calls `on_progress` whenever a part of the work is done, some times in each layer.
        """
        ...

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, vocab] float32 from [n, hidden]."""
        ...


class ModelRunner:
    """Holds all that lives on the device. `load`, then `allocate_cache`, then `execute` step by step."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        dtype: torch.dtype,
        block_size: int,
        eos_token_ids: Iterable[int] = (),
    ) -> None:
        """eos_token_ids: what ends an answer of this model, for `min_tokens`."""
        self.config = config
        self.device = device
        self.dtype = dtype
        self.batch = InputBatch(block_size, device)
        self.sampler = Sampler(eos_token_ids)
        self.kv_cache: KVCache = []
        self.decoder: Decoder | None = None

    def load(self, path: Path) -> None:
        """Builds the model and reads its weights. Raises ModelError if the directory cannot be served."""
        from octavo_server.worker.models.decoder import load_decoder

        self.decoder = load_decoder(path, self.config, self.dtype, self.device)

    def allocate_cache(self, num_blocks: int) -> None:
        """Reserves the pages of all layers. Raises ConfigError if the device has not that much memory."""
        spec = KVCacheSpec(
            num_layers=self.config.num_layers,
            num_blocks=num_blocks,
            block_size=self.batch.block_size,
            num_kv_heads=self.config.num_kv_heads,
            head_dim=self.config.head_dim,
            dtype=self.dtype,
            device=self.device,
        )
        try:
            self.kv_cache = spec.allocate()
        except RuntimeError as error:  # the CPU's allocator knows no other, CUDA's is a subclass
            raise ConfigError(
                f"no memory for a KV cache of {num_blocks} pages ({human_bytes(num_blocks * spec.bytes_per_block)}): "
                "lower --num-gpu-blocks-override, --kv-cache-memory-bytes or --gpu-memory-utilization"
            ) from error

    @torch.inference_mode()
    def execute(self, output: SchedulerOutput, on_progress: Callable[[], None] = lambda: None) -> list[SampledRow]:
        """Runs one step. Only requests with something to say have a row in the result.

        Calls `on_progress` whenever a part of the step is done: a step may take minutes, a part of it does not.
        """
        self.batch.apply(output)
        if self.decoder is None or not output.num_scheduled_tokens:
            return []
        rows = self.batch.advance(output.num_scheduled_tokens)
        hidden = self.decoder.forward(self.batch.build(rows), self.kv_cache, on_progress)
        prompt_logprobs = {
            row.state.request_id: self._prompt_logprobs(row, hidden, on_progress)
            for row in rows
            if row.state.wants_prompt_logprobs
        }
        result = self._sample([row for row in rows if row.samples], hidden, prompt_logprobs)
        result += [SampledRow(request_id, prompt_logprobs=found) for request_id, found in prompt_logprobs.items()]
        return result

    def recover(self) -> None:
        """After a step that broke. Raises EngineError if the device can run no further one."""
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        except RuntimeError as error:  # an illegal access, for one, spoils the process's context for good
            raise EngineError("the GPU reports an error from which only a restart of the engine recovers") from error

    def _sample(
        self,
        rows: list[ScheduledRow],
        hidden: torch.Tensor,
        prompt_logprobs: dict[str, list[TokenLogprobs | None]],
    ) -> list[SampledRow]:
        """Draws the next token of each row, appends it, and takes the row's prompt log-probabilities along."""
        if not rows:
            return []
        last = torch.tensor([row.last_index for row in rows], device=self.device)
        logits = self._logits(hidden[last])
        result = []
        drawn = self.sampler.sample(logits, [row.state.sampling_row() for row in rows])
        for row, sampled in zip(rows, drawn, strict=True):
            request_id = row.state.request_id
            if sampled.token_id is None:
                result.append(SampledRow(request_id, error=_NO_DISTRIBUTION))
                prompt_logprobs.pop(request_id, None)
                continue
            row.state.append(sampled.token_id)
            prompt = prompt_logprobs.pop(request_id, None)
            result.append(SampledRow(request_id, sampled.token_id, sampled.logprobs, prompt))
        return result

    def _prompt_logprobs(
        self, row: ScheduledRow, hidden: torch.Tensor, on_progress: Callable[[], None]
    ) -> list[TokenLogprobs | None]:
        """Of the prompt tokens that this step's tokens predict; the very first token is predicted by none.

        Logits are made for some rows at a time: those of a long prompt would take gigabytes.
        """
        state, count = row.state, row.state.sampling.prompt_logprobs or 0
        found: list[TokenLogprobs | None] = [None] if row.start == 0 else []
        end = min(row.end, state.num_prompt - 1)
        step = rows_per_chunk(self.config.vocab_size)
        for begin in range(row.start, end, step):
            stop = min(begin + step, end)
            offset = row.offset - row.start
            logits = self._logits(hidden[begin + offset : stop + offset])
            targets = state.token_ids[begin + 1 : stop + 1].tolist()
            found += token_logprobs(logits, targets, [count] * len(targets))
            on_progress()
        return found

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        if self.decoder is None:
            raise RuntimeError("the model is not loaded")
        return self.decoder.logits(rows)


def pick_device(name: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda". Raises ConfigError if there is no such device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device; use --device cpu, or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """The dtype of weights and cache; "auto" is the model's own on a GPU and float32 on the CPU."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else config.dtype
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, and the container's quota if there is one."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, math.ceil(int(quota) / int(period))))


def fix_threads(device: torch.device) -> None:
    """Sets torch's threads once: by the CPUs there are, and never changed, as their number shows in rounding."""
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cpus())
