"""A download on the disk: what is there survives a kill, and shows as a model only when all of it is there.

PARENT/.octavo-partial/NAME/
    lock.N     who is at it (`octavo_pull.lock`)
    plan.json  what is fetched, pinned
    journal    which bytes are there, which files are verified: a line each, appended
    archives/  what is unpacked, by its number in the plan
    model/     what becomes PARENT/NAME by one rename
"""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from octavo_common.pulled_model import MARKER, PARTIAL, PulledFile, PulledModel
from octavo_pull.errors import PullError, RefusedError, UnfinishedError
from octavo_pull.plan import File, Plan
from octavo_pull.ranges import Ranges

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Partial:
    """The download of what is to become `target`. Methods may be called by several threads."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.directory = target.parent / PARTIAL / target.name
        self.model = self.directory / "model"
        self.ranges: list[Ranges] = []
        self.verified: set[int] = set()
        self.unpacked: set[int] = set()
        self.unchecked: set[int] = set()
        self.digests: dict[str, str] = {}  # of unpacked files, by their paths in `model`
        self._plan: Plan | None = None
        self._same_boot = False
        self._writing = threading.Lock()

    @property
    def plan(self) -> Plan:
        """What is fetched. Only after `resume` or `begin`."""
        if self._plan is None:
            raise RuntimeError("the download has not begun")
        return self._plan

    def resume(self, source: str) -> bool:
        """Go on with what an earlier run left of the same source; False, and nothing is left, if there is none."""
        try:
            plan = Plan.from_json((self.directory / "plan.json").read_text())
        except (OSError, ValueError):
            plan = None
        if plan is None or plan.source != source:
            self.discard()
            return False
        self._take(plan)
        self._read_journal()
        self._append(f"\nb 0 {boot_id()}\n")  # the line before it may have been cut off
        return True

    def begin(self, plan: Plan) -> None:
        """Begin anew with this plan."""
        self.discard()
        self._take(plan)
        self.model.mkdir(parents=True, exist_ok=True)
        (self.directory / "archives").mkdir(exist_ok=True)
        self._append(f"b 0 {boot_id()}\n")
        new = self.directory / "plan.json.new"
        new.write_text(plan.to_json())
        new.replace(self.directory / "plan.json")

    def discard(self) -> None:
        """Remove all but the lock."""
        for name in ("plan.json", "journal"):
            (self.directory / name).unlink(missing_ok=True)
        for name in ("model", "archives"):
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def path(self, index: int) -> Path:
        """Where the bytes of a file of the plan lie."""
        file = self.plan.files[index]
        return self.directory / "archives" / str(index) if file.unpack else self.model / file.name

    def open(self, index: int) -> int:
        """A descriptor to write the file, at its full length."""
        path = self.path(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        os.ftruncate(descriptor, self.plan.files[index].size)
        return descriptor

    def record(self, index: int, start: int, end: int) -> None:
        """These bytes have been written."""
        self._append(f"r {index} {start} {end}\n")
        with self._writing:
            self.ranges[index].add(start, end)

    def forget(self, index: int) -> None:
        """None of its bytes count any more."""
        self._append(f"x {index}\n")
        with self._writing:
            self.ranges[index] = Ranges()

    def verify(self, index: int, *, checked: bool) -> None:
        """The file is whole, and on the disk; `checked` if a digest says so."""
        self._append(f"{'v' if checked else 's'} {index}\n")
        with self._writing:
            self.verified.add(index)
            if not checked:
                self.unchecked.add(index)

    def took(self, name: str, sha256: str) -> None:
        """A file was unpacked."""
        self._append(f"d 0 {sha256} {name}\n")
        self.digests[name] = f"sha256:{sha256}"

    def unpack(self, index: int) -> None:
        """The archive's files are in the model's directory, and the archive is needed no more."""
        self._append(f"u {index}\n")
        self.unpacked.add(index)
        self.path(index).unlink(missing_ok=True)

    def commit(self, root: Path, files: tuple[PulledFile, ...], still_ours: Callable[[], None]) -> PulledModel:
        """Make `root`, which is the model's directory or in it, the target, whole."""
        pulled = PulledModel(self.plan.source, self.plan.revision, files)
        with (root / MARKER).open("w") as marker:
            marker.write(pulled.to_json())
            marker.flush()
            os.fsync(marker.fileno())
        for folder in {root, *((root / file.name).parent for file in files)}:
            sync_directory(folder)
        still_ours()
        try:
            root.rename(self.target)
        except OSError as error:
            raise RefusedError(f"{self.target} cannot be put in place: {error.strerror}") from error
        sync_directory(self.target.parent)
        return pulled

    def clear(self) -> None:
        """Remove what is left when the target is there."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.clear_empty()

    def clear_empty(self) -> None:
        """Remove the directories if nothing is in them."""
        with contextlib.suppress(OSError):
            self.directory.rmdir()
        with contextlib.suppress(OSError):  # another model's download is under way
            self.directory.parent.rmdir()

    def done(self, index: int) -> int:
        """Bytes of the file that are there."""
        return self.plan.files[index].size if index in self.unpacked else self.ranges[index].covered

    def _take(self, plan: Plan) -> None:
        self._plan = plan
        self.ranges = [Ranges() for _ in plan.files]
        self.verified, self.unpacked, self.unchecked, self.digests = set(), set(), set(), {}

    def _append(self, line: str) -> None:
        with self._writing, (self.directory / "journal").open("a") as journal:
            journal.write(line)

    def _read_journal(self) -> None:
        """A line that a kill cut off, and all that cannot be, is left out: its bytes are fetched again.

        Bytes that a machine lost when it crashed show by the digest. Of a file without one that can be relied on, only
        what this machine has written since it started counts.
        """
        self._same_boot = False
        with contextlib.suppress(OSError):
            for line in (self.directory / "journal").read_text(errors="replace").splitlines(keepends=True):
                with contextlib.suppress(ValueError, IndexError):
                    self._replay(line)
        for index in range(len(self.plan.files)):
            if index not in self.unpacked and not self._has_length(index):
                self.ranges[index] = Ranges()
                self.verified.discard(index)

    def _replay(self, line: str) -> None:
        kind, index, *rest = line.removesuffix("\n").split(" ", 3)
        number = int(index)
        if not line.endswith("\n") or not 0 <= number < len(self.plan.files):
            return
        match kind:
            case "r":
                start, end = map(int, rest)
                file = self.plan.files[number]
                sure = self._same_boot or (file.digest is not None and not file.digest.startswith("md5-parts"))
                if sure and 0 <= start <= end <= file.size:
                    self.ranges[number].add(start, end)
            case "b":
                self._same_boot = rest == [boot_id()] != [""]
            case "x":
                self.ranges[number] = Ranges()
            case "v" | "s":
                self.verified.add(number)
                if kind == "s":
                    self.unchecked.add(number)
            case "u":
                self.unpacked.add(number)
            case "d":
                self.digests[rest[1]] = f"sha256:{rest[0]}"

    def _has_length(self, index: int) -> bool:
        try:
            return self.path(index).stat().st_size == self.plan.files[index].size
        except OSError:
            return False


def boot_id() -> str:
    """What tells this machine's start from others, and from those of other machines; empty where none is told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def sync_directory(path: Path) -> None:
    """Put a directory's names on the disk, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_space(partial: Partial) -> None:
    """Raises UnfinishedError if what is still to come does not fit. An archive's files count as much as itself."""
    files: tuple[File, ...] = partial.plan.files
    needed = sum(file.size - partial.done(index) for index, file in enumerate(files))
    needed += sum(file.size for index, file in enumerate(files) if file.unpack and index not in partial.unpacked)
    free = shutil.disk_usage(partial.directory).free
    if needed > free:
        raise UnfinishedError(_no_room(partial.target, needed, free))


def disk_error(error: OSError, partial: Partial) -> PullError:
    """What a write that failed means."""
    if error.errno in _FULL:
        needed = sum(file.size - partial.done(index) for index, file in enumerate(partial.plan.files))
        with contextlib.suppress(OSError):
            return UnfinishedError(_no_room(partial.target, needed, shutil.disk_usage(partial.directory).free))
    return UnfinishedError(f"{partial.directory} cannot be written: {error.strerror or error}")


def _no_room(target: Path, needed: int, free: int) -> str:
    return (
        f"no room for {target}: {gib(needed)} more are needed and {gib(free)} are free; "
        "free some, or give a larger volume: what is there is kept"
    )


def gib(size: int) -> str:
    """1.5 GiB, or 3 KiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
