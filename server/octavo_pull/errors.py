"""Errors of a pull, each a line that says what to change; what matters most is whether trying again can help.

- `PullError`
    - `RefusedError`: it would fail again: no such model, no access, a wrong digest, a name that leads elsewhere
    - `UnfinishedError`: it may succeed when it is run again, and goes on where it was
        - `ChangedError`: the source is no longer what was begun with; the next run begins anew
"""

from typing import Final

LONGEST_MESSAGE: Final = 1000  # fits a pod's termination message, beside what a status says around it


class PullError(Exception):
    """A pull that failed."""

    retryable = False

    def __init__(self, message: str) -> None:
        line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
        super().__init__(line if len(line) <= LONGEST_MESSAGE else f"{line[: LONGEST_MESSAGE - 1]}…")


class RefusedError(PullError):
    """It would fail again. `status` is the answer's, where there was one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class UnfinishedError(PullError):
    """It may succeed when it is run again."""

    retryable = True


class ChangedError(UnfinishedError):
    """The source is no longer what was begun with."""
