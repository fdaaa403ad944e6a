"""One puller at a time in a directory that several machines may share, without `flock`, which many volumes lack.

The lock is a file `lock.N` whose content changes every few seconds. Who finds it unchanged for long enough by its own
clock creates `lock.N+1`, which can succeed only once, and the holder of `lock.N`, should it still live, sees that and
stops. So no clocks are compared, and nobody removes a lock that another one may just have got.
"""

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from octavo_pull.errors import UnfinishedError

BEAT_SECONDS: Final = 5.0
STALE_SECONDS: Final = 45.0
POLL_SECONDS: Final = 1.0
_NAME: Final = re.compile(r"lock\.([0-9]{1,9})")
_WIDTH: Final = 512
_TAKEN: Final = "another pull into the same directory has taken over"


class Lock:
    """Held from `__enter__` to `__exit__`. `lost` is set when another one has taken it.

    `waiting` is called once a look while another one holds it; what it returns true for ends the wait without the lock.
    """

    def __init__(
        self,
        directory: Path,
        waiting: Callable[[str], bool],
        *,
        beat_seconds: float = BEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.lost = threading.Event()
        self.held = False
        self._directory = directory
        self._waiting = waiting
        self._beat_seconds, self._stale_seconds, self._poll_seconds = beat_seconds, stale_seconds, poll_seconds
        self._number = 0
        self._ended = threading.Event()
        self._me = {"id": uuid.uuid4().hex, "host": socket.gethostname(), **_process(os.getpid())}

    def __enter__(self) -> Self:
        self._acquire()
        if self.held:
            threading.Thread(target=self._beat, name="lock", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self.held and self.is_mine():
            self._path(self._number).unlink(missing_ok=True)
        self.held = False

    def check(self) -> None:
        """Raises UnfinishedError if it is no longer ours."""
        if self.lost.is_set() or not self.is_mine():
            self.lost.set()
            raise UnfinishedError(_TAKEN)

    def raise_if_lost(self) -> None:
        """As `check`, but of what is known without a look at the disk."""
        if self.lost.is_set():
            raise UnfinishedError(_TAKEN)

    def is_mine(self) -> bool:
        """Whether the newest lock on the disk is this one."""
        return self._newest() == self._number and _read(self._path(self._number)).get("id") == self._me["id"]

    def _acquire(self) -> None:
        seen, since = b"", time.monotonic()
        while True:
            self._directory.mkdir(parents=True, exist_ok=True)
            newest = self._newest()
            content = self._content(newest)
            if content != seen:
                seen, since = content, time.monotonic()
            holder = _parse(content)
            stale = time.monotonic() - since > self._stale_seconds
            if (newest == 0 or stale or self._is_dead(holder)) and self._create(newest + 1):
                self.held = True
                self._path(newest).unlink(missing_ok=True)
                return
            if newest and self._waiting(str(holder.get("host", "another host"))):
                return
            time.sleep(self._poll_seconds)

    def _create(self, number: int) -> bool:
        try:
            file = os.open(self._path(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except (FileExistsError, FileNotFoundError):  # another was quicker, or has removed the directory when done
            return False
        with os.fdopen(file, "wb") as opened:
            opened.write(self._line(0))
        self._number = number
        return True

    def _beat(self) -> None:
        beat = 0
        while not self._ended.wait(self._beat_seconds):
            beat += 1
            try:
                if not self.is_mine():
                    break
                with self._path(self._number).open("r+b") as file:
                    file.write(self._line(beat))
            except OSError:
                continue  # the volume may come back; if it does not, the others take over
        if not self._ended.is_set():
            self.lost.set()

    def _line(self, beat: int) -> bytes:
        """Of one width, so that it can be written over itself at once."""
        return json.dumps({**self._me, "beat": beat}).encode().ljust(_WIDTH - 1) + b"\n"

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        """Whether it was a process of this machine, seen from the same process namespace, that has ended."""
        mine = self._me
        if not holder.get("boot") or any(holder.get(key) != mine[key] for key in ("host", "boot", "namespace")):
            return False
        pid = holder.get("pid")
        return isinstance(pid, int) and _process(pid).get("started") != holder.get("started")

    def _newest(self) -> int:
        try:
            found = (_NAME.fullmatch(name) for name in os.listdir(self._directory))  # noqa: PTH208 - names are enough
            return max((int(match[1]) for match in found if match), default=0)
        except FileNotFoundError:
            return 0

    def _content(self, number: int) -> bytes:
        try:
            return self._path(number).read_bytes() if number else b""
        except FileNotFoundError:
            return b""

    def _path(self, number: int) -> Path:
        return self._directory / f"lock.{number}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_bytes())
    except OSError:
        return {}


def _parse(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _process(pid: int) -> dict[str, Any]:
    """What tells a process from a later one of the same number; empty texts where /proc does not say."""

    def told(path: str) -> str:
        try:
            return Path(path).read_text()
        except OSError:
            return ""

    try:
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path, a text
    except OSError:
        namespace = ""
    fields = told(f"/proc/{pid}/stat").rpartition(")")[2].split()
    started = fields[19] if len(fields) > 19 and fields[0] != "Z" else ""
    boot = told("/proc/sys/kernel/random/boot_id").strip()
    return {"boot": boot, "namespace": namespace, "pid": pid, "started": started}
