"""Which replica is believed to hold which beginnings of prompts in its KV cache. Pure: the time is passed in.

A prompt is cut into blocks whose names are chained: a block's name stands for all that comes before it, too. So two
prompts share the names of as many blocks as they share from their beginning on, and nobody needs a tokenizer to see it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

BLOCK_BYTES: Final = 256  # of the first blocks: about four pages of 16 tokens
GROWTH: Final = 16  # later blocks are as long as this part of what comes before them: 16 MiB are 150 blocks
BYTES_PER_TOKEN: Final = 4  # about, of a text; only what is compared with each other is estimated by it
_SHRINK: Final = 0.9
_GROW: Final = 1.01
_LEAST_SHARE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is known of a prompt without its tokens.

    chain: the names of its whole blocks; tokens: of each of them, estimated; total: tokens, with what is behind them.
    home: stands for what later requests of the same conversation will begin with, too; all gateways find the same.
    """

    chain: tuple[int, ...]
    tokens: tuple[int, ...]
    total: int
    home: int


def prompt_of(text: bytes, *, opening: int | None = None, salt: bytes = b"") -> Prompt:
    """The prompt with this text (any canonical form of it).

    opening: bytes that every turn of a conversation begins with: up to its first question, say; without it, one block.
    salt: keeps apart what does not share pages.
    """
    running = hashlib.blake2b(salt, digest_size=8, person=b"octavo prefix")
    start = running.copy()
    chain, tokens, at = [], [], 0
    while (end := at + max(BLOCK_BYTES, at // GROWTH)) <= len(text):
        running.update(text[at:end])
        chain.append(int.from_bytes(running.digest()))
        tokens.append((end - at) // BYTES_PER_TOKEN)
        at = end
    start.update(text[: BLOCK_BYTES if opening is None else opening])
    return Prompt(tuple(chain), tuple(tokens), max(1, len(text) // BYTES_PER_TOKEN), int.from_bytes(start.digest()))


class BelievedPrefixes:
    """The blocks that one replica is believed to hold: what was sent there lately, as far as it fits.

    A block is forgotten before the blocks that it follows, so that what is held is always whole beginnings.
    """

    def __init__(self, capacity_tokens: int, most_blocks: int, max_age: float) -> None:
        """capacity_tokens: of its KV cache; max_age: seconds after which nothing is believed of a block not used."""
        self.capacity_tokens = capacity_tokens
        self._most = most_blocks
        self._max_age = max_age
        self._blocks: OrderedDict[int, tuple[int, float]] = OrderedDict()  # name → tokens, time; the latest used last
        self._held = 0
        self._share = 1.0  # of the cache, that what is sent from here has

    def __len__(self) -> int:
        return len(self._blocks)

    def matched(self, prompt: Prompt, now: float) -> int:
        """Blocks of the prompt, from its beginning on, that are believed to be there."""
        low, high = 0, len(prompt.chain)
        while low < high:  # what is held are whole beginnings: search by halves
            middle = (low + high + 1) // 2
            if self._holds(prompt.chain[middle - 1], now):
                low = middle
            else:
                high = middle - 1
        return low

    def _holds(self, name: int, now: float) -> bool:
        found = self._blocks.get(name)
        return found is not None and now - found[1] <= self._max_age

    def add(self, prompt: Prompt, now: float) -> None:
        """The prompt was sent there: its last block first, so that it is forgotten first."""
        for name, tokens in zip(reversed(prompt.chain), reversed(prompt.tokens), strict=True):
            known = self._blocks.pop(name, None)
            self._held += tokens if known is None else 0
            self._blocks[name] = (tokens if known is None else known[0], now)
        room = self.capacity_tokens * self._share
        while self._blocks and (self._held > room or len(self._blocks) > self._most):
            self._held -= self._blocks.popitem(last=False)[1][0]

    def found(self, expected: int, found: float) -> None:
        """Of `expected` tokens that were believed to be there, so many were.

        Where it was less than half, others fill the cache, too: less of it is taken for ours, until it is right again.
        """
        share = self._share * _SHRINK if found < expected / 2 else self._share * _GROW
        self._share = min(1.0, max(_LEAST_SHARE, share))


def tokens_of(prompt: Prompt, blocks: int) -> int:
    """Tokens in so many blocks from the beginning on."""
    return sum(prompt.tokens[:blocks])


def rendezvous(key: int, ids: Sequence[str]) -> str:
    """One of the ids, the same for whoever asks with the same key; where one goes, only its keys move.

    Highest random weight: Thaler and Ravishankar, "A name-based mapping scheme for rendezvous", 1996.

    Raises:
        ValueError: there are no ids.
    """
    name = key.to_bytes(8)
    return max(ids, key=lambda each: hashlib.blake2b(each.encode(), digest_size=8, key=name).digest())
