"""The tokens sampled last: they stay on the device, where the next step takes them, one slot for each request."""

from collections.abc import Callable, Iterable
from typing import Final

import torch

from octavo_server.worker.input_batch import ScheduledRow
from octavo_server.worker.logits_processors import SamplingRow
from octavo_server.worker.sampler import SampledTensors, Sampler

# Logits of rows that sample are made and worked on in chunks of this size: 256 MiB, whatever --max-num-seqs says.
_SAMPLED_LOGITS_BYTES: Final = 2**28


def rows_at_once(vocab_size: int) -> int:
    """Rows whose logits are there at a time."""
    return max(1, _SAMPLED_LOGITS_BYTES // (4 * vocab_size))


class NextTokens:
    """Draws tokens into their slots. `last`: [slots] int64; `memory`: the same, with room for more behind it."""

    def __init__(self, num_slots: int, room: int, eos_token_ids: Iterable[int], device: torch.device) -> None:
        self.memory = torch.zeros(num_slots + room, dtype=torch.int64, device=device)
        self.last = self.memory[:num_slots]
        self._sampler = Sampler(eos_token_ids)

    def draw(
        self, rows: list[ScheduledRow], slot: torch.Tensor, vocab_size: int, logits: Callable[[slice], torch.Tensor]
    ) -> list[tuple[list[ScheduledRow], SampledTensors]]:
        """The next token of each row, some rows at a time; on their way to the host, too.

        slot: [n] int64, where they go. logits: makes those of a part of the rows, [part, vocab] float32.
        """
        found, step = [], rows_at_once(vocab_size)
        for begin in range(0, len(rows), step):
            part = slice(begin, begin + step)
            asked = [
                SamplingRow(row.state.sampling, row.end, row.state.num_prompt, row.state.history) for row in rows[part]
            ]
            sampled = self._sampler.launch(logits(part), asked)
            self.last.index_copy_(0, slot[part], sampled.tokens)
            found.append((rows[part], sampled.to_host()))
        return found
