"""Finds the processes that a test started, whatever became of their parents: by a mark in their environment (Linux)."""

import os
import time
import uuid
from pathlib import Path

MARK = "OCTAVO_TEST_MARK"


def new_mark() -> dict[str, str]:
    """An environment variable that every descendant inherits."""
    return {MARK: uuid.uuid4().hex}


def marked(mark: dict[str, str]) -> dict[int, str]:
    """Living processes (no zombies, not this one) that carry the mark, with their command lines."""
    entry = f"{MARK}={mark[MARK]}".encode()
    found: dict[int, str] = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == os.getpid():
            continue
        try:
            if entry in (directory / "environ").read_bytes().split(b"\0"):
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(directory.name)] = command.strip()
        except OSError:
            continue
    return found


def wait_gone(mark: dict[str, str], seconds: float = 20.0) -> dict[int, str]:
    """Wait until no process carries the mark; what is left after `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left
