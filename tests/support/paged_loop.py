"""The simplest loop that drives a decoder over a paged cache: no scheduler, no sampler."""

import random
from dataclasses import dataclass, field

import torch

from octavo_server.worker.models.decoder import Decoder
from octavo_server.worker.models.interface import ForwardBatch, KVCacheSpec


@dataclass
class Sequence:
    """A request: its pages in the order of positions, and how many tokens are in the cache."""

    pages: list[int] = field(default_factory=list)
    length: int = 0


class PagedLoop:
    """Gives out pages in random order and runs batches. The cache starts full of NaN, so that no other page is read."""

    def __init__(self, decoder: Decoder, *, num_blocks: int, block_size: int, seed: int = 0) -> None:
        config = decoder.config
        self.decoder = decoder
        self.block_size = block_size
        spec = KVCacheSpec(
            num_layers=config.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=decoder.embedding.dtype,
            device=decoder.embedding.device,
        )
        self.kv_cache = spec.allocate()
        for k, v in self.kv_cache:
            k.fill_(torch.nan)
            v.fill_(torch.nan)
        self.free = list(range(num_blocks))
        random.Random(seed).shuffle(self.free)

    def step(self, batch: list[tuple[Sequence, list[int]]]) -> list[torch.Tensor]:
        """Runs the new tokens of each sequence; their logits, [new tokens, vocab] each."""
        hidden = self.decoder.forward(self._forward_batch(batch), self.kv_cache)
        return list(torch.split(self.decoder.logits(hidden), [len(tokens) for _, tokens in batch]))

    def release(self, sequence: Sequence) -> None:
        """Gives the pages back as they are: what stands in them stays."""
        self.free.extend(sequence.pages)
        sequence.pages, sequence.length = [], 0

    def greedy(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        """The likeliest `count` tokens after each prompt, all prompts in one batch."""
        sequences = [Sequence() for _ in prompts]
        found: list[list[int]] = [[] for _ in prompts]
        feed = prompts
        for _ in range(count):
            logits = self.step(list(zip(sequences, feed, strict=True)))
            feed = [[int(rows[-1].argmax())] for rows in logits]
            for tokens, new in zip(found, feed, strict=True):
                tokens += new
        for sequence in sequences:
            self.release(sequence)
        return found

    def _forward_batch(self, batch: list[tuple[Sequence, list[int]]]) -> ForwardBatch:
        positions, slots, starts, contexts = [], [], [0], []
        for sequence, tokens in batch:
            end = sequence.length + len(tokens)
            while len(sequence.pages) * self.block_size < end:
                sequence.pages.append(self.free.pop())
            for position in range(sequence.length, end):
                page = sequence.pages[position // self.block_size]
                slots.append(page * self.block_size + position % self.block_size)
                positions.append(position)
            sequence.length = end
            starts.append(starts[-1] + len(tokens))
            contexts.append(end)
        width = max(len(sequence.pages) for sequence, _ in batch)
        device = self.decoder.embedding.device
        return ForwardBatch(
            token_ids=torch.tensor([token for _, tokens in batch for token in tokens], device=device),
            positions=torch.tensor(positions, device=device),
            slot_mapping=torch.tensor(slots, device=device),
            query_start=torch.tensor(starts, dtype=torch.int32, device=device),
            context_lens=torch.tensor(contexts, dtype=torch.int32, device=device),
            block_tables=torch.tensor(
                [sequence.pages + [0] * (width - len(sequence.pages)) for sequence, _ in batch],
                dtype=torch.int32,
                device=device,
            ),
        )
