"""Sampling by kernels: what `sampler.Sampler` does in torch, without a word of the host from one token to the next."""

from collections.abc import Sequence

import torch

from octavo_kernels import logit_entries
from octavo_kernels.few_tokens import draw_few
from octavo_kernels.sampling import SamplingWorkspace, draw_blocks, finish_draw
from octavo_kernels.token_mask import apply_token_mask
from octavo_kernels.truncation import count_distances, draw_cut
from octavo_server.worker.grammar import RowMasks
from octavo_server.worker.input_batch import ScheduledRow
from octavo_server.worker.logprobs import launch_logprobs
from octavo_server.worker.sampler import SampledTensors
from octavo_server.worker.sampling_slots import (
    ADJUSTED,
    CUT,
    FEW,
    LARGE_K,
    LOGPROBS,
    SAVED,
    WORDED,
    SamplingSlots,
)
from octavo_server.worker.transfer import upload, upload_together


class DeviceSampler:
    """Draws tokens for slots. Nothing waits for the device."""

    def __init__(self, slots: SamplingSlots, most_rows: int, vocab_size: int) -> None:
        """most_rows: that are drawn for at once."""
        self.slots = slots
        self._all_rows = torch.arange(most_rows, device=slots.table.device)
        self._workspace = SamplingWorkspace.allocate(most_rows, vocab_size, slots.table.device)

    def launch(
        self,
        logits: torch.Tensor,
        slot: torch.Tensor,
        rows: Sequence[ScheduledRow],
        last: torch.Tensor,
        masks: RowMasks | None = None,
    ) -> SampledTensors:
        """Enqueues the drawing of one token for each of the rows, and writes them into `last` at their slots.

        logits: [n, vocab] float32, changed where rows ask for it. slot: [n] int64. masks: of rows with grammars, all.
        """
        table, work, flags = self.slots.table, self._workspace, self.slots.flags(rows)
        untouched = logits.clone() if masks is not None and flags & LOGPROBS else logits
        if flags & ADJUSTED:
            logit_entries.adjust(logits, slot, table)
        if masks is not None:
            apply_token_mask(logits, *upload_together([masks.bits, masks.forced], logits.device))
        draw_blocks(logits, slot, table, work)
        if flags & FEW:
            draw_few(logits, slot, table, work)
        if flags & LARGE_K:
            count_distances(logits, slot, table, work)
        if flags & CUT:
            draw_cut(logits, slot, table, work)
        if flags & SAVED:
            logit_entries.restore(logits, slot, table)  # before the drawn token becomes an entry
        tokens = torch.empty(len(slot), dtype=torch.int32, device=logits.device)
        finish_draw(slot, table, work, last, tokens)
        if flags & WORDED:
            logit_entries.match_words(slot, table, tokens)
        return self._with_logprobs(untouched, tokens, rows) if flags & LOGPROBS else SampledTensors(tokens)

    def draw_plain(self, logits: torch.Tensor, slot: torch.Tensor, tokens: torch.Tensor, last: torch.Tensor) -> None:
        """The same into `tokens`, [n] int32, for rows without flags; a slot below 0 is nobody's."""
        draw_blocks(logits, slot, self.slots.table, self._workspace)
        finish_draw(slot, self.slots.table, self._workspace, last, tokens)

    def _with_logprobs(
        self, logits: torch.Tensor, tokens: torch.Tensor, rows: Sequence[ScheduledRow]
    ) -> SampledTensors:
        asked = {index: row.state.sampling.logprobs for index, row in enumerate(rows)}
        counts = {index: count for index, count in asked.items() if count is not None}
        if len(counts) == len(rows):
            which = self._all_rows[: len(rows)]
        else:
            which = upload(list(counts), torch.int64, logits.device)
        found = launch_logprobs(logits, tokens, list(counts.values()), which)
        return SampledTensors(tokens, found, list(counts))
