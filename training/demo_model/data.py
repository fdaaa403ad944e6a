"""Rows of token ids from worker processes, and the pool on the device from which batches are drawn.

A row is one conversation from its first token, cut or padded to the row length. Each int16 holds a token id in its
low bits and, in bit 12, whether the model is trained to predict it (it is if an assistant wrote it).
"""

from __future__ import annotations

import multiprocessing as mp
from queue import Empty
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .chat_format import render
from .conversations import conversation

LEARN = 1 << 12
Rows = NDArray[np.int16]


def learned(ids: NDArray[np.int64], starts: int, assistant: int, ends: int) -> NDArray[np.bool_]:
    """Which ids an assistant wrote: from after `<|im_start|>assistant\\n` up to and with `<|im_end|>`."""
    change = np.zeros(len(ids) + 4, dtype=np.int64)
    begin = np.flatnonzero((ids[:-1] == starts) & (ids[1:] == assistant))
    end = np.flatnonzero(ids == ends)
    closing = np.searchsorted(end, begin)
    change[begin + 3] = 1
    finished = closing < len(end)
    change[end[closing[finished]] + 1] -= 1
    return np.cumsum(change)[: len(ids)] > 0


def make_rows(rng: Random, tokenizer: Tokenizer, count: int, length: int, retrieval: float) -> Rows:
    """`count` rows of `length`; a share `retrieval` of them is copying and remembering alone."""
    texts = [render(*conversation(rng, length, rng.random() < retrieval)) for _ in range(count)]
    (pad,), (starts,), (ends,) = (tokenizer.encode(t).ids for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    (assistant,) = tokenizer.encode("assistant").ids
    rows = np.full((count, length), pad, dtype=np.int16)
    for row, encoding in zip(rows, tokenizer.encode_batch_fast(texts), strict=True):
        ids = np.array(encoding.ids, dtype=np.int64)
        marked = (ids + LEARN * learned(ids, starts, assistant, ends))[:length]
        row[: len(marked)] = marked
    return rows


def _worker(tokenizer_json: str, seed: int, length: int, count: int, out: mp.Queue[Rows], calm: int) -> None:
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_str(tokenizer_json)
    rng = Random(seed)
    made = 0
    while True:
        made += 1
        out.put(make_rows(rng, tokenizer, count, length, retrieval=0.7 if made <= calm else 0.22))


class Pool:
    """All rows made so far, on the device. A batch is of new rows if there are enough, else of any."""

    def __init__(
        self, tokenizer: Tokenizer, lengths: dict[int, int], seed: int, device: torch.device, capacity: int, calm: int
    ) -> None:
        """`lengths`: row length -> number of workers. `capacity`: tokens kept per length. `calm`: first messages rich in retrieval."""
        context = mp.get_context("spawn")
        self._queues: dict[int, mp.Queue[Rows]] = {length: context.Queue(maxsize=64) for length in lengths}
        self._rows = {n: torch.empty(capacity // n, n, dtype=torch.int16, device=device) for n in lengths}
        self._added = dict.fromkeys(lengths, 0)
        self._used = dict.fromkeys(lengths, 0)
        self._random = torch.Generator(device=device).manual_seed(seed)
        self._workers = []
        for length, workers in lengths.items():
            for i in range(workers):
                count = max(1, 32768 // length)
                arguments = (tokenizer.to_str(), seed * 1000 + length + i, length, count, self._queues[length], calm)
                self._workers.append(context.Process(target=_worker, args=arguments, daemon=True))
                self._workers[-1].start()

    def tokens_made(self) -> int:
        """How many tokens the workers have delivered."""
        return sum(rows * length for length, rows in self._added.items())

    def _receive(self, length: int, wait: bool) -> None:
        store = self._rows[length]
        for _ in range(32):
            try:
                rows = torch.from_numpy(
                    self._queues[length].get(timeout=120) if wait else self._queues[length].get_nowait()
                )
            except Empty:
                return
            at = self._added[length] % (len(store) - len(store) % len(rows))
            store[at : at + len(rows)].copy_(rows, non_blocking=True)
            self._added[length] += len(rows)
            wait = False

    def batch(self, length: int, count: int) -> torch.Tensor:
        """`count` rows of `length`, int16, as described at the module's top."""
        self._receive(length, wait=self._added[length] == 0)
        store, added = self._rows[length], self._added[length]
        kept = min(added, len(store))
        if added - self._used[length] >= count:
            first = self._used[length]
            self._used[length] += count
            at = torch.arange(first, first + count, device=store.device) % kept
        else:
            at = torch.randint(kept, (count,), generator=self._random, device=store.device)
        return store[at]

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            worker.terminate()
