"""A replica's prefix cache, by the blocks that a trace names."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

BLOCK_TOKENS: Final = 512
"""Tokens of a block in traces that name blocks."""


class Prefixes:
    """Blocks that lie in the KV cache, the least recently used evicted first."""

    def __init__(self, kv_tokens: int) -> None:
        self._room = kv_tokens // BLOCK_TOKENS
        self._blocks = OrderedDict[int, None]()

    def match(self, blocks: Sequence[int]) -> int:
        """How many of the first blocks are here."""
        known = self._blocks
        for index, block in enumerate(blocks):
            if block not in known:
                return index
        return len(blocks)

    def take(self, blocks: Sequence[int], length: int) -> int:
        """Use them and keep them all from now on: tokens that need not be computed; the last one always is."""
        found = self.match(blocks)
        known = self._blocks
        for block in blocks:
            known[block] = None
            known.move_to_end(block)
        while len(known) > self._room:
            known.popitem(last=False)
        return min(found * BLOCK_TOKENS, length - 1)
