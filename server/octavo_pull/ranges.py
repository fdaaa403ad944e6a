"""Which bytes of a file are there: a set of half-open ranges."""

from bisect import bisect_left
from collections.abc import Iterator


class Ranges:
    """Disjoint, sorted, never touching each other."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._ranges)

    @property
    def covered(self) -> int:
        """Bytes in them."""
        return sum(end - start for start, end in self._ranges)

    def add(self, start: int, end: int) -> None:
        """Put [start, end) in, which may overlap what is there."""
        if start >= end:
            return
        first = bisect_left(self._ranges, start, key=lambda each: each[1])
        last = first
        while last < len(self._ranges) and self._ranges[last][0] <= end:
            start, end = min(start, self._ranges[last][0]), max(end, self._ranges[last][1])
            last += 1
        self._ranges[first:last] = [(start, end)]

    def missing(self, size: int) -> Iterator[tuple[int, int]]:
        """The ranges of [0, size) that are not in them."""
        begin = 0
        for start, end in self._ranges:
            if begin < start:
                yield begin, start
            begin = end
        if begin < size:
            yield begin, size
