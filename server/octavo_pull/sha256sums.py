"""SHA256SUMS, as `sha256sum` writes it: a digest and a name a line."""

import re
from typing import Final

from octavo_pull.errors import RefusedError

LIST_NAME: Final = "SHA256SUMS"
LONGEST_LIST: Final = 4 * 1024 * 1024
_LINE: Final = re.compile(r"([0-9a-fA-F]{64}) [ *](.{1,1024})")


def parse_sums(data: bytes, where: str) -> dict[str, str]:
    """SHA-256 by name.

    Raises:
        RefusedError: a line is none of such a list.
    """
    found: dict[str, str] = {}
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise RefusedError(f"{where}: {LIST_NAME} is no text in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise RefusedError(f"{where}: line {number} of {LIST_NAME} is no digest and name")
        found[match[2].removeprefix("./")] = match[1].lower()
    return found
