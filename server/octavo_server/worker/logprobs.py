"""Log-probabilities of the model's own distribution, with the likeliest alternatives.

In two halves: `launch_logprobs` enqueues the work and waits for nothing, `LogprobTensors.results` reads the outcome.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from octavo_kernels.ops import has_triton
from octavo_server.ipc import TokenLogprobs
from octavo_server.worker.input_batch import ScheduledRow
from octavo_server.worker.transfer import download, upload

# What one chunk of rows may take at 8 bytes a vocabulary entry, whatever a request asks for.
CHUNK_BYTES = 64 * 2**20
MOST_ON_DEVICE: Final = 32  # alternatives that the kernel finds; OpenAI's API has 20 at most


def rows_per_chunk(vocab_size: int) -> int:
    """Rows of the vocabulary that are worked on at once."""
    return max(1, CHUNK_BYTES // (8 * vocab_size))


@dataclass(frozen=True, slots=True)
class LogprobTensors:
    """Log-probabilities of n rows; in each the token itself, then the likeliest ones.

    ids: [n, 1 + k] int64. values: [n, 1 + k] float32. ranks: [n] int64, of the token itself. `counts[r]`: how many of
    the k likeliest row r wants.
    """

    ids: torch.Tensor
    values: torch.Tensor
    ranks: torch.Tensor
    counts: Sequence[int]

    def to_host(self) -> "LogprobTensors":
        """The same in host memory, which CUDA has still to write."""
        return LogprobTensors(download(self.ids), download(self.values), download(self.ranks), self.counts)

    def results(self) -> list[TokenLogprobs]:
        """A row's entry each. Waits for the device if the tensors are still there."""
        rows = zip(self.ids.tolist(), self.values.tolist(), self.ranks.tolist(), self.counts, strict=True)
        return [TokenLogprobs(ids[: count + 1], values[: count + 1], rank) for ids, values, rank, count in rows]


def launch_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, counts: Sequence[int], rows: torch.Tensor | None = None
) -> LogprobTensors:
    """For each row the token's log-probability and rank, and the `counts[r]` likeliest tokens with theirs.

    logits: [n, vocab] float32, as the model gave them. token_ids: [n] integers, on the same device. Ranks begin at 1;
    equally likely tokens share theirs, and are listed by rising id. A count above the vocabulary's size gives all of
    it. n is 1 or more. rows: [m] int64, those that are wanted; None for all of them. What is told of a token below 0
    means nothing.
    """
    vocab_size = logits.shape[-1]
    most = min(max(counts), vocab_size)
    if has_triton(logits.device) and most <= MOST_ON_DEVICE:
        from octavo_kernels.logprobs import logprobs

        if rows is None:
            rows = torch.arange(len(logits), device=logits.device)
        return LogprobTensors(*logprobs(logits, token_ids, rows, most), counts)
    if rows is not None:
        logits, token_ids = logits[rows], token_ids[rows]
    step, token_ids = rows_per_chunk(vocab_size), token_ids.to(torch.int64).clamp(min=0)
    chunks = [
        _chunk(logits[begin : begin + step], token_ids[begin : begin + step], most)
        for begin in range(0, len(counts), step)
    ]
    ids, values, ranks = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return LogprobTensors(ids, values, ranks, counts)


def token_logprobs(logits: torch.Tensor, token_ids: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    """Both halves at once, for tokens that are known on the host; see `launch_logprobs`."""
    return launch_logprobs(logits, upload(token_ids, torch.int64, logits.device), counts).results()


def launch_prompt_logprobs(
    row: ScheduledRow,
    hidden: torch.Tensor,
    logits: Callable[[torch.Tensor], torch.Tensor],
    vocab_size: int,
    on_progress: Callable[[], None],
) -> list[LogprobTensors]:
    """Of the prompt tokens that this step's tokens predict, in host memory.

    hidden: [T, hidden] of the step's tokens. logits: makes those of some rows of it, some rows at a time: those of a
    long prompt would take gigabytes.
    """
    state, count = row.state, row.state.sampling.prompt_logprobs or 0
    end = min(row.end, state.num_prompt - 1)
    step = rows_per_chunk(vocab_size)
    found = []
    for begin in range(row.start, end, step):
        stop = min(begin + step, end)
        offset = row.offset - row.start
        part = logits(hidden[begin + offset : stop + offset])
        targets = upload(state.token_ids[begin + 1 : stop + 1], torch.int64, hidden.device)
        found.append(launch_logprobs(part, targets, [count] * (stop - begin)).to_host())
        on_progress()
    return found


def _chunk(logits: torch.Tensor, token_ids: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    chosen = token_ids[:, None]
    ranks = (logits > logits.gather(-1, chosen)).sum(-1) + 1
    ids = torch.cat([chosen, likeliest(logits, most)], dim=-1)
    return ids, logits.log_softmax(-1).gather(-1, ids), ranks


def likeliest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """[n, count] int64: the ids of the `count` greatest logits by falling logit, equal ones by rising id.

    `topk` leaves open which of equal values it takes, and models of 16 bits have many equal ones. So it is given keys
    without ties: the float's bits in an order that integers share, above the id counted down.
    """
    bits = (logits + 0.0).view(torch.int32).to(torch.int64)  # + 0.0 makes -0.0 equal to 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ids = torch.arange(logits.shape[-1], dtype=torch.int64, device=logits.device)
    return ordered.mul_(1 << 32).add_((1 << 32) - 1 - ids).topk(count, dim=-1).indices
