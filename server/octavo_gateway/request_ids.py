"""Ids of requests: the client's own, where one line can show it, else a random one."""

import os
import re
from typing import Final

_SANE: Final = re.compile(r"[!-~]{1,128}")


def sane_id(given: str | None) -> str | None:
    """An id that a client gives, if it is 1 to 128 printable ASCII characters without a space."""
    return given if given is not None and _SANE.fullmatch(given) else None


def new_id() -> str:
    """32 hexadecimal digits, never the same."""
    return os.urandom(16).hex()
