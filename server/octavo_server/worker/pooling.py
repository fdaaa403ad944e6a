"""One vector of a prompt's last hidden states: those of its first token (CLS), of its last one, or their mean.

A prompt comes in chunks, and how it is cut depends on what else is computed. So that the mean's bits do not, hidden
states are rounded to multiples of 2⁻³² (far less than the last bit of a float32 that matters) and added in float64:
such sums are exact below 2²¹, in whatever order, and beyond that they are as good as any of float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from octavo_server.step import SampledRow
from octavo_server.worker.input_batch import ScheduledRow
from octavo_server.worker.transfer import download

NOT_FINITE: Final = "the model's hidden states of this prompt are not finite numbers"
_SCALE: Final = 2.0**32
_ROWS_AT_ONCE: Final = 128  # whose copies in float64 are there at a time


@dataclass(frozen=True, slots=True)
class PooledTensors:
    """values: [n, hidden] float32 of `rows`, in host memory, which CUDA may still have to write."""

    rows: Sequence[ScheduledRow]
    values: torch.Tensor

    def results(self) -> list[SampledRow]:
        """What there is to say of each row: its vector, or that it is none."""
        finite = self.values.isfinite().all(dim=-1).tolist()
        vectors = self.values.numpy().astype("<f4", copy=False)
        return [
            SampledRow(row.state.request_id, embedding=vector.tobytes())
            if is_finite
            else SampledRow(row.state.request_id, error=NOT_FINITE)
            for row, vector, is_finite in zip(self.rows, vectors, finite, strict=True)
        ]


def pooled_bytes(hidden_size: int) -> int:
    """What a request holds at most between its chunks."""
    return 8 * hidden_size


def launch_pooling(rows: Sequence[ScheduledRow], hidden: torch.Tensor) -> PooledTensors | None:
    """Takes in the step's part of each row that pools, and makes the vectors of those that are through; only enqueues.

    hidden: [T, hidden] of the step's tokens, after the final norm. None if none is through.
    """
    found = []
    for row in rows:
        if row.state.pooling:
            _take_in(row, hidden)
            if row.end == row.state.num_tokens:
                found.append(row)
    if not found:
        return None
    return PooledTensors(found, download(torch.stack([_vector(row) for row in found])))


def _take_in(row: ScheduledRow, hidden: torch.Tensor) -> None:
    """Keeps copies: `hidden` is as large as the step."""
    state, part = row.state, hidden[row.offset : row.last_index + 1]
    match state.pooling:
        case "cls":
            if row.start == 0:
                state.pooled = part[0].to(torch.float32, copy=True)
        case "last":
            if row.end == state.num_tokens:
                state.pooled = part[-1].to(torch.float32, copy=True)
        case "mean":
            for begin in range(0, len(part), _ROWS_AT_ONCE):
                whole = part[begin : begin + _ROWS_AT_ONCE].to(torch.float64).mul_(_SCALE).round_().sum(dim=0)
                state.pooled = whole if state.pooled is None else state.pooled.add_(whole)


def _vector(row: ScheduledRow) -> torch.Tensor:
    """[hidden] float32 of a row that is through."""
    state = row.state
    if state.pooled is None:
        raise RuntimeError(f"{state.request_id}: the chunk that its pooling needs was not computed")
    return (state.pooled / (_SCALE * state.num_tokens)).float() if state.pooling == "mean" else state.pooled
