"""Files that may be replaced while the server runs: keys and certificates. A thread of its own looks at them.

Polling, because what a mounted Secret, a network file system or an editor does is seen by it alike.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from octavo_common.errors import ConfigError

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 1.0
_SETTLED_SECONDS: Final = 2.0  # a file may change again without a new time, as long as its time is as young as this
Signature = tuple[tuple[object, ...], ...]


@dataclass(slots=True)
class _Watched:
    """What is done again when one of the files changes. `seen` is None where what was read may be half of it."""

    files: Sequence[Path]
    reload: Callable[[], str | None]
    seen: Signature | None = None
    failure: str | None = None  # that was told: not every second again


class FileWatch:
    """Reloads what has changed."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` tells the time of files."""
        self._clock = clock
        self._watched: list[_Watched] = []
        self._end = threading.Event()

    def add(self, files: Sequence[Path], reload: Callable[[], str | None]) -> None:
        """From now on `reload` is called, in the thread, when the files have changed.

        It says what is new, None if nothing is, or raises ConfigError and leaves all as it was. It is called at the
        first look, too: the files may have changed since they were read.
        """
        if files:
            self._watched.append(_Watched(files, reload))

    def start(self) -> None:
        """Begin to look. The thread holds up no end: a file system may hang."""
        if self._watched:
            threading.Thread(target=self._run, name="file watch", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._end.set()

    def look(self) -> None:
        """Reload what has changed since the last look; the thread does this every second."""
        for watched in self._watched:
            self._look(watched)

    def _run(self) -> None:
        while not self._end.wait(POLL_SECONDS):
            try:
                self.look()
            except Exception:  # without this thread a key that is taken back would stay valid
                log.exception("files could not be looked at")

    def _look(self, watched: _Watched) -> None:
        before = self._clock()
        signature = tuple(entry for path in watched.files for entry in _entries(path))
        if signature == watched.seen:
            return
        try:
            news, level = watched.reload(), logging.INFO
            watched.failure = None
        except ConfigError as error:
            news = None if str(error) == watched.failure else f"{error}; what was read before stays"
            watched.failure, level = str(error), logging.ERROR
        if news is not None:
            log.log(level, "%s", news)
        youngest = max((entry[-1] for entry in signature if isinstance(entry[-1], int)), default=0) / 1e9
        watched.seen = signature if before - youngest > _SETTLED_SECONDS else None


def _entries(path: Path) -> Iterator[tuple[object, ...]]:
    try:
        yield _of(path)
        if path.is_dir():
            for name in sorted(os.listdir(path)):  # noqa: PTH208 (names alone)
                if not name.startswith("."):
                    yield _of(path / name)
    except OSError as error:
        yield (str(path), error.errno)


def _of(path: Path) -> tuple[object, ...]:
    """Of what a link leads to: a Secret's link stays the same when it is swapped."""
    found = path.stat()
    return str(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
