"""Which files there are, how large they are, and which of them was wanted longest ago."""

import heapq


class FileOrder:
    """Files by path, each with its size in bytes and the time at which it was last wanted."""

    def __init__(self) -> None:
        self.total = 0  # bytes
        self._files: dict[str, tuple[float, int]] = {}
        self._heap: list[tuple[float, str]] = []  # what is not as in `_files` is out of date

    def paths(self) -> list[str]:
        """The one wanted longest ago first."""
        return sorted(self._files, key=lambda path: (self._files[path][0], path))

    def size(self, path: str) -> int | None:
        """None if there is no such file."""
        return None if (found := self._files.get(path)) is None else found[1]

    def when(self, path: str) -> float | None:
        """None if there is no such file."""
        return None if (found := self._files.get(path)) is None else found[0]

    def put(self, path: str, size: int, when: float) -> None:
        """Adds a file, or notes its new size and time."""
        self.drop(path)
        self._files[path] = (when, size)
        self.total += size
        if len(self._heap) > 2 * len(self._files) + 64:
            self._heap = [(when, path) for path, (when, _) in self._files.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (when, path))

    def drop(self, path: str) -> None:
        """Forgets a file, if it is there."""
        if (found := self._files.pop(path, None)) is not None:
            self.total -= found[1]

    def pop_oldest(self) -> str | None:
        """Forgets the file that was wanted longest ago; None if there is none."""
        while self._heap:
            when, path = heapq.heappop(self._heap)
            if (found := self._files.get(path)) is not None and found[0] == when:
                self.drop(path)
                return path
        return None
