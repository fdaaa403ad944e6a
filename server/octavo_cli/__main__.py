"""Where `octavo` begins: Ctrl-C is one line already while the libraries are imported, which takes a moment."""

import os
import signal
from types import FrameType
from typing import NoReturn


def run() -> NoReturn:
    """Import the command line and run it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else who started this wants it ignored
        signal.signal(signal.SIGINT, _end)
    from octavo_cli.main import main

    signal.signal(signal.SIGINT, before)
    main()


def _end(number: int, frame: FrameType | None) -> None:
    """At once: an exception might be caught by the import that it interrupts."""
    os.write(2, b"octavo: interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    run()
