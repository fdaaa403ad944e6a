"""What a pull has done so far, for whoever shows it: written by many threads, read now and then."""

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far it is: bytes and files done and in all, and what is being done, for people."""

    phase: str
    bytes: int
    total: int
    files: int
    total_files: int


class Tally:
    """The figures, changed by the pull."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phase, self._bytes, self._total, self._files, self._total_files = "asking", 0, 0, 0, 0
        self.notes: list[str] = []

    def phase(self, text: str) -> None:
        """Say what is being done."""
        with self._lock:
            self._phase = text

    def begin(self, *, done: int, total: int, files: int, total_files: int) -> None:
        """Set the figures at the start."""
        with self._lock:
            self._bytes, self._total, self._files, self._total_files = done, total, files, total_files

    def add(self, count: int) -> None:
        """Bytes that have come, or that no longer count where negative."""
        with self._lock:
            self._bytes += count

    def file_done(self) -> None:
        """A file is whole."""
        with self._lock:
            self._files += 1

    def note(self, text: str) -> None:
        """Something that people should read, once."""
        with self._lock:
            self.notes.append(text)

    def snapshot(self) -> Snapshot:
        """The figures of this moment."""
        with self._lock:
            return Snapshot(self._phase, self._bytes, self._total, self._files, self._total_files)
