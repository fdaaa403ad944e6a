"""One page of the KV cache in one file, so that whatever is wrong with the file is a miss and never a wrong token.

    magic, version, lengths of tokens and payload, the page's hash and its parent's    56 bytes, little-endian
    the token ids, as `page_hash.pack` packs them
    CRC-32 of all the rest of the file                                                 4 bytes
    payload: K and V of all layers

What stands before the checksum follows from the key alone: it is compared, never parsed. CRC-32 rather than a hash:
it guards against disks and crashes, and is two to four times as fast as blake2b; who can write these files can write
their checksums too, so that files are the owner's alone (mode 0600).
"""

import fcntl
import os
import secrets
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from octavo_server.step import PageKey

SUFFIX: Final = ".page"
TEMPORARY: Final = ".tmp"
_MAGIC: Final = b"octavoKV"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sIIQ16s16s")
_CHECKSUM: Final = struct.Struct("<I")


def file_bytes(key: PageKey, payload_bytes: int) -> int:
    """Size of the file that holds this page."""
    return _HEADER.size + len(key.tokens) + _CHECKSUM.size + payload_bytes


def write(path: Path, key: PageKey, payload: memoryview, *, modified: float | None = None) -> None:
    """Writes the file, whole or not at all: to a temporary name beside it, which is then renamed.

    No fsync: what a power failure leaves torn, the checksum tells. `modified`: its time of modification, in seconds
    since 1970, if not now. Raises OSError.
    """
    header = _header(key, len(payload))
    checksum = zlib.crc32(payload, zlib.crc32(header))
    with _temporary(path) as (descriptor, temporary):
        for part in (memoryview(header + _CHECKSUM.pack(checksum)), payload):
            _write_all(descriptor, part)
        touch(descriptor, modified)
        temporary.rename(path)


def read(path: Path, key: PageKey, into: memoryview) -> bool:
    """Reads the payload of the page `key`; False if the file is not exactly that page's. Raises OSError.

    into: as long as the payload, writable; what stands there after False is of no meaning.
    """
    expected = _header(key, len(into))
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size != file_bytes(key, len(into)):
            return False
        found = bytearray(len(expected) + _CHECKSUM.size)
        if not _read_all(descriptor, memoryview(found)) or found[: len(expected)] != expected:
            return False
        if not _read_all(descriptor, into):
            return False
        (checksum,) = _CHECKSUM.unpack(found[len(expected) :])
        return bool(zlib.crc32(into, zlib.crc32(expected)) == checksum)
    finally:
        os.close(descriptor)


def touch(path: Path | int, modified: float | None = None) -> None:
    """Sets the time of modification; now, if not given: by a clock that is finer than the file system's own."""
    when = time.time() if modified is None else modified
    os.utime(path, (when, when))


def remove_leftover(path: Path) -> None:
    """Removes a temporary file whose writer is gone; one that is being written is locked and left alone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except OSError:
        return
    finally:
        os.close(descriptor)


def _header(key: PageKey, payload_bytes: int) -> bytes:
    fixed = _HEADER.pack(_MAGIC, _VERSION, len(key.tokens), payload_bytes, key.page_hash, key.parent)
    return fixed + key.tokens


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[int, Path]]:
    """A new file beside `path`, locked as long as it is open; removed if something goes wrong."""
    temporary = path.with_name(f"{path.stem}-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with suppress(OSError):  # some volumes know no locks; then leftovers stay
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor, temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _read_all(descriptor: int, into: memoryview) -> bool:
    while into:
        count = os.readv(descriptor, [into])
        if count == 0:
            return False
        into = into[count:]
    return True
