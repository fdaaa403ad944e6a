"""Errors that the command line tells as one line, and the exit codes of `octavo`.

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | it was tried and failed: a replica died, a request was refused, a cluster could not be reached |
| 2 | it would fail again: a wrong command line or manifest, a part that is not installed, no such model to pull |
| 3 | `octavo plan --diff` could not ask the cluster, or was refused; its 0 is no difference, its 1 some |
| 130 | interrupted by Ctrl-C before it was done; what was started has been stopped |
| 129, 143 | likewise by SIGHUP and SIGTERM |
"""

from typing import Final

FAILED: Final = 1
WRONG_INPUT: Final = 2
NOT_COMPARED: Final = 3
INTERRUPTED: Final = 130


class CommandError(Exception):
    """Ends the command with one line on stderr that says what to change, and with `exit_code`."""

    def __init__(self, message: str, *, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code
