"""Digests of files on disk, in the forms in which sources tell them.

- `sha256:HEX`
- `git-sha1:HEX`: of "blob SIZE\\0" and the content, as git names a file
- `md5:HEX`: the ETag of an S3 object that was uploaded at once
- `md5-parts:HEX-N`: the ETag of one uploaded in N parts: the MD5 of the parts' MD5s. The size of the parts is not told.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from octavo_pull.plan import batches

READ_BYTES: Final = 4 * 1024 * 1024
_MIB: Final = 1024 * 1024
_USUAL_PARTS: Final = (8, 5, 16, 10, 15, 20, 25, 32, 50, 64, 100, 128, 256, 512, 1024)


def matches(path: Path, digest: str, tick: Callable[[], None]) -> bool | None:
    """Whether the file has this digest; None where that cannot be told. `tick` is called between reads.

    Raises:
        OSError: the file cannot be read.
    """
    kind, _, value = digest.partition(":")
    size = path.stat().st_size
    if kind == "md5-parts":
        return _has_parts(path, size, value, tick)
    # Not for security where it is not SHA-256: git and S3 chose them.
    hashed = hashlib.new({"git-sha1": "sha1"}.get(kind, kind), usedforsecurity=False)
    if kind == "git-sha1":
        hashed.update(f"blob {size}\0".encode())
    for piece in _pieces(path, 0, size, tick):
        hashed.update(piece)
    return hashed.hexdigest() == value


def has_digest(content: bytes, digest: str | None) -> bool | None:
    """The same of a small file in memory."""
    kind, _, value = (digest or "").partition(":")
    if kind not in ("sha256", "git-sha1"):
        return None
    hashed = hashlib.new({"git-sha1": "sha1"}.get(kind, kind), usedforsecurity=False)
    hashed.update((f"blob {len(content)}\0".encode() if kind == "git-sha1" else b"") + content)
    return hashed.hexdigest() == value


def _has_parts(path: Path, size: int, value: str, tick: Callable[[], None]) -> bool | None:
    expected, _, count = value.partition("-")
    for part in part_sizes(size, int(count)):
        outer = hashlib.md5(usedforsecurity=False)
        for start, end in batches(0, size, part):
            inner = hashlib.md5(usedforsecurity=False)
            for piece in _pieces(path, start, end, tick):
                inner.update(piece)
            outer.update(inner.digest())
        if outer.hexdigest() == expected:
            return True
    return None


def part_sizes(size: int, count: int) -> list[int]:
    """Sizes in whole MiB, at most three, the usual ones first, by which `size` bytes make `count` parts."""
    fitting = [mib * _MIB for mib in _USUAL_PARTS if -(-size // (mib * _MIB)) == count]
    least = -(-size // (count * _MIB))
    if least * _MIB not in fitting and -(-size // (least * _MIB)) == count:
        fitting.append(least * _MIB)
    return fitting[:3]


def _pieces(path: Path, start: int, end: int, tick: Callable[[], None]) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        left = end - start
        while left > 0 and (piece := file.read(min(READ_BYTES, left))):
            tick()
            left -= len(piece)
            yield piece
