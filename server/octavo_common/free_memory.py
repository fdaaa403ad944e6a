"""How much more host memory this process may take: what the machine has left, and what its control groups leave."""

from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")


def free_host_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Bytes; None where nothing is known. In a container its limit counts, and page cache counts as free.

    proc, cgroups: where procfs and the control groups are mounted, of version 2 or 1.
    """
    rooms = [*_machine(proc), *_version_2(proc, cgroups), *_version_1(cgroups)]
    return max(0, min(rooms)) if rooms else None


def _machine(proc: Path) -> list[int]:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            return [int(line.split()[1]) * 1024]
    return []


def _version_2(proc: Path, cgroups: Path) -> list[int]:
    """The room in our group and in each above it: any of them may have a limit."""
    groups = [line.removeprefix("0::/") for line in _lines(proc / "self/cgroup") if line.startswith("0::/")]
    rooms = []
    for group in groups[:1]:
        folder = cgroups / group
        for place in (folder, *folder.parents):
            if not place.is_relative_to(cgroups):
                break
            rooms += _room(place / "memory.max", place / "memory.current", place / "memory.stat", "inactive_file")
    return rooms


def _version_1(cgroups: Path) -> list[int]:
    place = cgroups / "memory"
    return _room(
        place / "memory.limit_in_bytes",
        place / "memory.usage_in_bytes",
        place / "memory.stat",
        "total_inactive_file",
    )


def _room(limit: Path, usage: Path, stat: Path, reclaimable: str) -> list[int]:
    try:
        bound, used = int("".join(_lines(limit))), int("".join(_lines(usage)))
    except ValueError:  # "max", or no such file
        return []
    pairs = (line.split() for line in _lines(stat))
    return [bound - used + sum(int(pair[1]) for pair in pairs if pair[0] == reclaimable)]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
