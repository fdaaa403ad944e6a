"""Files out of tar archives: only regular ones with wanted names, nothing outside the directory, sizes bounded."""

import gzip
import hashlib
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Final, cast

from octavo_pull.errors import RefusedError
from octavo_pull.names import MOST_FILES, WEIGHTS, check_model, is_wanted, safe_name
from octavo_pull.plan import Unpack

MOST_MEMBERS: Final = 1_000_000
MOST_TIMES: Final = 8  # weights hardly compress; what unpacks to more than this many times itself is no model
SLACK_BYTES: Final = 64 * 1024 * 1024
COPY_BYTES: Final = 1024 * 1024
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"


class _Bounded:
    """What an archive unpacks to, of which no more than `limit` bytes can be read."""

    def __init__(self, file: IO[bytes], limit: int, what: str, tick: Callable[[], None]) -> None:
        self._file, self._left, self._what, self._tick = file, limit, what, tick

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        self._tick()
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise RefusedError(f"{self._what} unpacks to more than {MOST_TIMES} times its size: that is no model")
        return data


def unpack(
    archive: Path, kind: Unpack, target: Path, what: str, *, tick: Callable[[], None], took: Callable[[str, str], None]
) -> None:
    """Put an archive's files into `target`, over those of earlier layers, whose deletion marks are obeyed.

    took: called with each file's name and SHA-256.

    Raises:
        RefusedError: it is broken, leads elsewhere, or unpacks to too much.
        OSError: the files cannot be written.
    """
    limit = MOST_TIMES * archive.stat().st_size + SLACK_BYTES
    try:
        with archive.open("rb") as raw:
            plain = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if kind == "tar+gzip" else raw
            source = cast("IO[bytes]", _Bounded(plain, limit, what, tick))
            with tarfile.open(fileobj=source, mode="r|", bufsize=COPY_BYTES) as tar:
                for count, member in enumerate(tar):
                    if count >= MOST_MEMBERS:
                        raise RefusedError(f"{what} has more than {MOST_MEMBERS} members")
                    _take(tar, member, target, what, took)
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, UnicodeError) as error:
        raise RefusedError(f"{what} is no whole archive: {error}") from error


def _take(
    tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, what: str, took: Callable[[str, str], None]
) -> None:
    if member.name.rstrip("/") in ("", "."):
        return
    name = safe_name(member.name.rstrip("/"))
    last = PurePosixPath(name).name
    if last.startswith(_WHITEOUT):
        _delete(target / PurePosixPath(name).parent, last)
        return
    if not _may_be_wanted(name):
        return
    if not member.isreg() or member.issparse():
        if member.isdir():
            return
        raise RefusedError(f"{what} has {name} as a link or a device; pack the files themselves (tar --dereference)")
    source = tar.extractfile(member)
    if source is None:
        raise RefusedError(f"{what} has no content for {name}")
    path = target / name
    _clear_way(target, path)
    hashed = hashlib.sha256()
    with path.open("wb") as file:
        while piece := source.read(COPY_BYTES):
            hashed.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if path.stat().st_size != member.size:
        raise RefusedError(f"{what} is cut off in {name}")
    took(name, hashed.hexdigest())


def _may_be_wanted(name: str) -> bool:
    """Weights may lie in a folder here, which may be the model's."""
    last = PurePosixPath(name).name
    hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
    return not hidden and (last.endswith(WEIGHTS) or is_wanted(name))


def _clear_way(target: Path, path: Path) -> None:
    """A later layer may have a folder where an earlier one has a file, and the other way round."""
    folder = target
    for part in path.relative_to(target).parts[:-1]:
        folder /= part
        if folder.is_file():
            folder.unlink()
        folder.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)


def _delete(folder: Path, mark: str) -> None:
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()) if mark == _OPAQUE else [folder / mark.removeprefix(_WHITEOUT)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def settle(target: Path, what: str, path: str) -> Path:
    """The model's own directory, with nothing left in it that serving does not read.

    path: where in `target` it must be; empty: wherever the only one is.

    Raises:
        RefusedError: there is no model, or more than one.
    """
    at_root = bool(path) or (target / "config.json").is_file()
    root = target / path if at_root else _folder(target, what)
    names = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    wanted = {name for name in names if is_wanted(name)}
    if len(wanted) > MOST_FILES:
        raise RefusedError(f"{what} has {len(wanted)} files; {MOST_FILES} are allowed")
    check_model(wanted, wanted, what)
    for name in set(names) - wanted:
        (root / name).unlink()
    return root


def _folder(target: Path, what: str) -> Path:
    found = [path.parent for path in target.rglob("config.json") if any(path.parent.glob(f"*{WEIGHTS}"))]
    if len(found) != 1:
        said = "no folder" if not found else f"{len(found)} folders"
        raise RefusedError(f"{what} has {said} with config.json and *.safetensors; one is needed")
    return found[0]
