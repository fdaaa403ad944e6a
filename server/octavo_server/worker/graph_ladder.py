"""Which steps have a graph: by rows where every row decodes one token, else by tokens and rows.

A decode step is the reading of weights and of contexts, and a row more costs next to nothing: rungs are near each other
where batches are small, and up to 7 (from 256 rows on, 31) rows fill up. The tokens of a mixed step are work: from 128
on, rungs are a tile of matrix products apart. What its rows cost is logits and empty programs of attention, so there
are five bounds. Few rows are one of them: only then are the keys of a long context split over many programs. One row is
another: a prompt alone needs no kernel for single tokens, in any layer, and has nobody to wait for but itself.
"""

from typing import Final, NamedTuple

MOST_ROWS: Final = 512
MOST_TOKENS: Final = 2048  # above it the device takes longer than the launches, and graphs longer to capture
_TILE: Final = 128
_ROW_BOUNDS: Final = (1, 8, 64, 256)


class GraphShape(NamedTuple):
    """Tokens and requests that a graph has room for.

    is_decode: each request has one token, and samples. shares: a decode graph that reads shared prefixes once.
    """

    tokens: int
    rows: int
    is_decode: bool
    shares: bool = False

    @property
    def is_alone(self) -> bool:
        """Whether it is for one request with two tokens or more."""
        return not self.is_decode and self.rows == 1 < self.tokens


def decode_ladder(largest: int) -> list[int]:
    """Batch sizes: 1, 2, 4, 8, multiples of 8 up to 256, then of 32, and `largest` itself."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, largest, 32)]
    return [*(size for size in sizes if size < largest), largest]


def sharing_ladder(largest: int) -> list[GraphShape]:
    """Of decode graphs that read shared prefixes once: 8, 16, 24, 32, 48, 64, 96 and so on rows, and the largest."""
    sizes = {8, largest, *(rung << power for power in range(3, largest.bit_length()) for rung in (1, 3))}
    return [GraphShape(size, size, True, True) for size in sorted(sizes) if 8 <= size <= largest]


def mixed_ladder(tokens: int, rows: int) -> list[GraphShape]:
    """Up to so many tokens and rows: 32, 64, multiples of 128 up to 1024, then of 256, and `tokens` itself."""
    sizes = [32, 64, *range(_TILE, 1024, _TILE), *range(1024, tokens, 2 * _TILE), tokens]
    return [
        GraphShape(size, bound, False)
        for size in sorted({size for size in sizes if 0 < size <= tokens})
        for bound in sorted({min(bound, size, rows) for bound in (*_ROW_BOUNDS, rows)})
    ]


def capture_order(tokens: int, rows: int, *, shares: bool = False) -> tuple[list[GraphShape], list[GraphShape]]:
    """All shapes in two parts: what a start waits for, and what is left for later. tokens 0: no mixed steps.

    shares: some read shared prefixes once. The largest of these belongs to the first part: it compiles their kernels.
    The largest first: its memory is the pool, in which the others find room. Then the powers of two, so that from the
    start no batch is filled up to more than twice its size, or to the largest; of mixed steps from 128 tokens on, each
    with the most rows that it can have.
    """
    mixed = mixed_ladder(tokens, rows)[::-1]
    decode = [GraphShape(size, size, True) for size in decode_ladder(rows)]
    sharing = sharing_ladder(rows) if shares else []
    first = [
        *(shape for shape in mixed if shape.rows == min(shape.tokens, rows) and _waits(shape.tokens, tokens)),
        decode[-1],
        *(shape for shape in decode[:-1] if _is_power_of_two(shape.rows)),
        *sharing[-1:],
    ]
    return first, [shape for shape in (*sharing, *mixed[::-1], *decode) if shape not in first]


def _waits(size: int, largest: int) -> bool:
    return size == largest or (size >= _TILE and _is_power_of_two(size))


def _is_power_of_two(size: int) -> bool:
    return size & (size - 1) == 0
