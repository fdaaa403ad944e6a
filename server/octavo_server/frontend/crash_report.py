"""What is left of an engine that died: how it ended, what it was, and its last scheduler steps. No text of anybody's.

The report is logged, and written to a file: logs may be cut, and the files of a container go with it.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from octavo_common.version import __version__
from octavo_server.config import EngineConfig
from octavo_server.ipc import EngineStats

log = logging.getLogger(__name__)

KEPT: Final = 10
PREFIX: Final = "octavo-crash-"


@dataclass(frozen=True, slots=True)
class Crash:
    """An engine's end. `phase`: "ready", or that of its start; `steps`: the last ones, oldest first."""

    ended: str
    pid: int
    phase: str
    lived_seconds: float
    open_choices: int
    some_ids: Sequence[str]  # of these; they are within the answers' ids, which the log has beside the requests' ids
    stats: EngineStats | None
    steps: Sequence[str]

    def report(self, config: EngineConfig) -> str:
        """The report, as lines of text."""
        state = "none was told" if self.stats is None else msgspec.json.encode(self.stats).decode()
        lines = [
            f"octavo {__version__}: {self.ended}",
            f"process {self.pid}, {self.lived_seconds:.1f} s after its start, phase: {self.phase}",
            " ".join((f"open choices: {self.open_choices}", *self.some_ids)),
            f"state after its last step: {state}",
            f"configuration: {config.model_dump_json()}",
            f"last steps ({len(self.steps)}):",
            *(f"  {step}" for step in self.steps),
        ]
        return "\n".join(lines) + "\n"


def keep_report(report: str, directory: Path | None) -> Path | None:
    """Write a report to a new file that is ours alone, and delete old ones. None (and a warning) if that fails.

    `directory` None: the system's for temporary files.
    """
    directory = Path(tempfile.gettempdir()) if directory is None else directory
    name = f"{PREFIX}{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{os.getpid()}.txt"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Never through what somebody else put there: in a shared directory names can be guessed.
        descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(report)
        _delete_old(directory)
    except OSError as error:
        log.warning("the crash report is not written: %s", error)
        return None
    return directory / name


def _delete_old(directory: Path) -> None:
    """Names sort by time. Those of others are left alone."""
    ours = [path for path in directory.glob(f"{PREFIX}*.txt") if path.lstat().st_uid == os.geteuid()]
    for path in sorted(ours)[:-KEPT]:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
