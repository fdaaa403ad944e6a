"""The sampling kernels and their twin in torch, drawing for the same requests side by side."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from octavo_server.ipc import SamplingParams
from octavo_server.step import NewRequest
from octavo_server.worker.device_sampler import DeviceSampler
from octavo_server.worker.grammar import RowMasks
from octavo_server.worker.input_batch import RequestState, ScheduledRow
from octavo_server.worker.logits_processors import SamplingRow
from octavo_server.worker.sampler import Sampled, Sampler
from octavo_server.worker.sampling_slots import SamplingSlots


class SamplingPair:
    """Requests in slots, of which the device is told once."""

    def __init__(
        self,
        params: Sequence[SamplingParams],
        tokens: Sequence[Sequence[int]],
        num_prompt: int,
        vocab_size: int,
        device: torch.device,
        eos: Sequence[int] = (),
    ) -> None:
        """tokens: what each request has so far, of which the first `num_prompt` are its prompt."""
        self.device, count = device, len(params)
        order = [(5 * index + 2) % (count + 3 + count % 5 % 2) for index in range(count)]
        slots = order if len(set(order)) == count else list(range(count))
        self.states = [
            RequestState(NewRequest(str(slot), list(known), num_prompt, len(known) + 50, param, [], 0), 16, slot)
            for slot, known, param in zip(slots, tokens, params, strict=True)
        ]
        self.slots = SamplingSlots(max(slots) + 1, vocab_size, eos, device)
        self.slots.apply(self.slots.changes(self.states, ()))
        self.sampler = DeviceSampler(self.slots, count, vocab_size)
        self.twin = Sampler(eos)
        self.last = torch.full((max(slots) + 1,), -7, dtype=torch.int64, device=device)

    def rows(self, which: Sequence[int]) -> list[ScheduledRow]:
        """Their next tokens are to be drawn."""
        return [
            ScheduledRow(state, state.num_tokens - 1, state.num_tokens, 0, True, True, False)
            for state in (self.states[index] for index in which)
        ]

    def step(
        self, logits: torch.Tensor, which: Sequence[int] | None = None, masks: RowMasks | None = None
    ) -> tuple[list[Sampled], list[Sampled]]:
        """What kernels and twin draw for the requests `which`, all by default; they go on with the kernels' tokens."""
        which = list(range(len(self.states))) if which is None else which
        rows = self.rows(which)
        slot = torch.tensor([row.state.slot for row in rows], device=self.device)
        asked = [SamplingRow(r.state.sampling, r.end, r.state.num_prompt, r.state.history) for r in rows]
        if masks is not None:
            each = zip(asked, masks.bits, masks.forced, strict=True)
            asked = [replace(row, mask=mask, forced=bool(forced)) for row, mask, forced in each]
        want = self.twin.sample(logits.cpu(), asked)
        got = self.sampler.launch(logits.clone(), slot, rows, self.last, masks).results()
        for row, sampled in zip(rows, got, strict=True):
            assert self.last[row.state.slot] == (sampled.token_id or 0)
            row.state.num_tokens += 1
            row.state.learn(row.end, sampled.token_id or 0)
        return got, want
