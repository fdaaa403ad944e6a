"""Shows how far a pull is: a bar on a terminal, a line now and then elsewhere, objects where a script reads."""

import json
import sys
import threading
import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from octavo_pull.partial import gib
from octavo_pull.tally import Snapshot, Tally

LINE_SECONDS: Final = 10.0
BAR_SECONDS: Final = 0.1


class PullProgress:
    """A context in which a thread looks at a tally and shows it: on stderr, or as JSON on stdout."""

    def __init__(self, tally: Tally, *, as_json: bool, console: Console | None = None) -> None:
        self._tally, self._as_json = tally, as_json
        self._console = console or Console(stderr=True)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._noted = 0
        self._told_phase = ""
        self._last: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        if self._console.is_terminal and not self._as_json:
            self._show_bar()
        else:
            self._write_lines()

    def _show_bar(self) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task("asking", total=None)
            while not self._ended.wait(BAR_SECONDS):
                now = self._tally.snapshot()
                progress.update(task, description=now.phase, completed=now.bytes, total=now.total or None)
                self._tell_notes()
        self._tell_notes()

    def _write_lines(self) -> None:
        due = time.monotonic()
        while True:
            ended = self._ended.wait(0.25)
            self._tell_notes()
            now = self._tally.snapshot()
            if not ended and (now.phase != self._told_phase or time.monotonic() >= due):
                due = time.monotonic() + LINE_SECONDS
                self._told_phase = now.phase
                self._line(now)
            if ended:
                return

    def _line(self, now: Snapshot) -> None:
        speed = self._speed(now)
        if self._as_json:
            event = {"event": "progress", "phase": now.phase, "bytes": now.bytes, "total": now.total}
            event |= {"files": now.files, "totalFiles": now.total_files, "bytesPerSecond": round(speed)}
            sys.stdout.write(json.dumps(event) + "\n")
            sys.stdout.flush()
            return
        text = now.phase
        if now.total:
            share = 100 * now.bytes // now.total
            text += f": {gib(now.bytes)} of {gib(now.total)} ({share} %), {now.files} of {now.total_files} files"
        if speed > 0:
            left = max(0, now.total - now.bytes) / speed
            text += f", {gib(int(speed))}/s, {left / 60:.0f} min left" if left >= 60 else f", {gib(int(speed))}/s"
        self._say(text)

    def _speed(self, now: Snapshot) -> float:
        """Bytes a second since the last line."""
        before, self._last = self._last, (time.monotonic(), now.bytes)
        if before is None or before[1] == 0 or self._last[0] <= before[0]:
            return 0.0
        return max(0.0, (self._last[1] - before[1]) / (self._last[0] - before[0]))

    def _tell_notes(self) -> None:
        notes = self._tally.notes[self._noted :]
        self._noted += len(notes)
        for note in notes:
            self._say(f"warning: {note}")

    def _say(self, text: str) -> None:
        self._console.print(f"octavo: {text}", markup=False, highlight=False, soft_wrap=True)
