"""What the tests of `octavo pull` share: a small model, options without long pauses, the command as a process."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from octavo_common.pulled_model import MARKER, PARTIAL
from octavo_pull.open_origin import Options
from octavo_pull.pull import Pulled, pull
from octavo_pull.source import parse_source
from octavo_pull.tally import Tally
from octavo_pull.web import Patience

QUICK: Final = Patience(attempts=4, first_pause=0.01, longest_pause=0.02)
PART: Final = 256 * 1024


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress, the same each time."""
    return random.Random(seed).randbytes(size)


def model_files(size: int = 3_000_001, seed: int = 0) -> dict[str, bytes]:
    """Enough of a model to be one by its names."""
    return {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b'{"version": "1.0"}',
        "model.safetensors": noise(size, seed),
    }


def options(**given: Any) -> Options:
    """Small parts, short pauses."""
    return Options(**{"patience": QUICK, "part_bytes": PART, "connections": 4, **given})


def fetch(
    text: str, directory: Path, *, sha256: str | None = None, endpoint: str | None = None, **given: Any
) -> Pulled:
    """A pull in this process."""
    source = parse_source(text, sha256=sha256, endpoint=endpoint)
    return pull(source, directory, options(**given), given.get("tally") or Tally())


def contents(directory: Path) -> dict[str, bytes]:
    """All files by path, but for the marker."""
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != MARKER)
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def nothing_shows(directory: Path) -> bool:
    """Whether there is no such directory, and nothing beside it but what is hidden."""
    return not directory.exists() and {path.name for path in directory.parent.iterdir()} <= {PARTIAL}


def command(*arguments: str | Path, **environment: str) -> "subprocess.Popen[str]":
    """`octavo pull …` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "octavo_cli.main", "pull", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
    )
