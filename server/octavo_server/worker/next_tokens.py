"""The tokens sampled last: they stay on the device, where the next step takes them, one slot for each request."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from octavo_kernels.ops import has_triton
from octavo_server.worker.grammar import RowMasks
from octavo_server.worker.input_batch import RequestState, ScheduledRow
from octavo_server.worker.logits_processors import SamplingRow
from octavo_server.worker.sampler import SampledTensors, Sampler

if TYPE_CHECKING:
    from octavo_server.worker.device_sampler import DeviceSampler
    from octavo_server.worker.sampling_slots import SlotChanges

# Logits of rows that sample are made and worked on in chunks of this size: 256 MiB, whatever --max-num-seqs says.
_SAMPLED_LOGITS_BYTES: Final = 2**28


def rows_at_once(vocab_size: int) -> int:
    """Rows whose logits are there at a time."""
    return max(1, _SAMPLED_LOGITS_BYTES // (4 * vocab_size))


class NextTokens:
    """Draws tokens into their slots. `last`: [slots] int64.

    With Triton by kernels that know the requests (`device_sampler`), else in torch (`sampler`).
    """

    def __init__(self, num_slots: int, vocab_size: int, eos_token_ids: Sequence[int], device: torch.device) -> None:
        self.last = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._vocab_size = vocab_size
        self._sampler = Sampler(eos_token_ids)
        self._device_sampler = _device_sampler(num_slots, vocab_size, eos_token_ids, device)

    def request_bytes(self, length: int) -> int:
        """What a request of that length takes at most besides, by its penalties: 12 bytes for each token it has."""
        return 0 if self._device_sampler is None else 12 * min(length + 1, self._vocab_size)

    def needs_tokens(self, rows: Iterable[ScheduledRow]) -> bool:
        """Whether the host must know the tokens of the step before when it draws the next ones of these rows."""
        return self._device_sampler is None and any(row.pending and row.state.history is not None for row in rows)

    def changes(self, joining: Iterable[RequestState], leaving: Iterable[str]) -> "SlotChanges | None":
        """What a step that these requests join must bring, to be called before it counts their tokens."""
        return None if self._device_sampler is None else self._device_sampler.slots.changes(joining, leaving)

    @property
    def joining_words(self) -> int:
        """Of 8 bytes, that a request which joins brings to the device."""
        return 0 if self._device_sampler is None else self._device_sampler.slots.joining_words

    def apply(self, changes: "SlotChanges | None", joining: torch.Tensor | None = None) -> None:
        """Brings it, before the step draws. Only enqueues.

        joining: [n, joining_words] int64 of pinned memory to use for it, which is the step's.
        """
        if self._device_sampler is not None and changes is not None:
            self._device_sampler.slots.apply(changes, joining)

    def are_plain(self, rows: Sequence[ScheduledRow]) -> bool:
        """Whether `draw_plain` draws for these rows; to be asked once their requests have joined."""
        return self._device_sampler is not None and self._device_sampler.slots.flags(rows) == 0

    def draw_plain(self, logits: torch.Tensor, slot: torch.Tensor, tokens: torch.Tensor) -> None:
        """Draws tokens [n] int32 for rows that ask for nothing but a temperature, and for none whose slot is below 0.

        Fit for a graph: only kernels, on what it is given and on memory that stays.
        """
        if self._device_sampler is None:
            return
        step = rows_at_once(self._vocab_size)
        for begin in range(0, len(slot), step):
            part = slice(begin, begin + step)
            self._device_sampler.draw_plain(logits[part], slot[part], tokens[part], self.last)

    def draw(
        self,
        rows: list[ScheduledRow],
        slot: torch.Tensor,
        logits: Callable[[slice], torch.Tensor],
        masks: RowMasks | None = None,
    ) -> list[tuple[list[ScheduledRow], SampledTensors]]:
        """The next token of each row, some rows at a time; on their way to the host, too.

        slot: [n] int64, where they go. logits: makes those of a part of the rows, [part, vocab] float32, which may be
        written over. masks: of rows that have grammars, all of them; of these an eighth at a time, as copies are made.
        """
        found, step = [], rows_at_once(self._vocab_size)
        step = step if masks is None else max(1, step // 8)
        for begin in range(0, len(rows), step):
            part = slice(begin, begin + step)
            masked = None if masks is None else RowMasks(masks.bits[part], masks.forced[part])
            if self._device_sampler is not None:
                sampled = self._device_sampler.launch(logits(part), slot[part], rows[part], self.last, masked)
            else:
                asked = [
                    SamplingRow(row.state.sampling, row.end, row.state.num_prompt, row.state.history)
                    for row in rows[part]
                ]
                if masked is not None:
                    each = zip(asked, masked.bits, masked.forced, strict=True)
                    asked = [replace(row, mask=mask, forced=bool(forced)) for row, mask, forced in each]
                sampled = self._sampler.launch(logits(part), asked)
                self.last.index_copy_(0, slot[part], sampled.tokens.clamp(min=0))
            found.append((rows[part], sampled.to_host()))
        return found


def _device_sampler(
    num_slots: int, vocab_size: int, eos_token_ids: Sequence[int], device: torch.device
) -> "DeviceSampler | None":
    if not has_triton(device):
        return None
    from octavo_server.worker.device_sampler import DeviceSampler
    from octavo_server.worker.sampling_slots import SamplingSlots

    slots = SamplingSlots(num_slots, vocab_size, eos_token_ids, device)
    return DeviceSampler(slots, min(num_slots, rows_at_once(vocab_size)), vocab_size)
