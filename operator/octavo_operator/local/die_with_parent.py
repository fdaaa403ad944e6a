"""Become another program that the kernel kills when the process that started it is gone, however that one ended.

Run as a script by path: `python -I -S die_with_parent.py PARENT_PID PROGRAM ARGUMENT…`. It is a program of its own,
and not code between fork and exec of the parent, because only async-signal-safe calls are sound there.
Linux only (`prctl(2)`, PR_SET_PDEATHSIG, which survives exec); elsewhere the program runs without this guard.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Set the guard, then exec. Exits 1 if the parent has died before the guard was up."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
