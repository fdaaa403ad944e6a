"""Host memory that is left, by files as Linux writes them."""

from pathlib import Path

import pytest

from octavo_common.free_memory import free_host_bytes

MIB = 2**20


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """8 MiB are available, and no control group says anything."""
    write(tmp_path / "proc/meminfo", "MemTotal: 16384 kB\nMemFree: 1 kB\nMemAvailable: 8192 kB\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def free(root: Path) -> int | None:
    return free_host_bytes(root / "proc", root / "sys")


def group(folder: Path, limit: str, used: int, cache: int = 0) -> None:
    write(folder / "memory.max", f"{limit}\n")
    write(folder / "memory.current", f"{used}\n")
    write(folder / "memory.stat", f"anon {used - cache}\nactive_file 5\ninactive_file {cache}\n")


def test_without_control_groups_it_is_what_the_machine_has_left(machine: Path) -> None:
    assert free(machine) == 8 * MIB


def test_in_a_container_its_limit_counts_and_page_cache_is_free(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "0::/\n")
    group(machine / "sys", str(5 * MIB), 3 * MIB, cache=MIB)
    assert free(machine) == 3 * MIB


def test_a_limit_of_a_group_above_counts_too(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "1:name=systemd:/x\n0::/pods/ours\n")
    group(machine / "sys/pods/ours", "max", MIB)
    group(machine / "sys/pods", str(6 * MIB), 2 * MIB)
    assert free(machine) == 4 * MIB
    group(machine / "sys/pods/ours", str(2 * MIB), MIB)
    assert free(machine) == MIB


def test_a_limit_above_what_the_machine_has_changes_nothing_and_one_that_is_passed_leaves_nothing(
    machine: Path,
) -> None:
    write(machine / "proc/self/cgroup", "0::/\n")
    group(machine / "sys", str(500 * MIB), 3 * MIB)
    assert free(machine) == 8 * MIB
    group(machine / "sys", str(2 * MIB), 3 * MIB)
    assert free(machine) == 0


def test_groups_of_version_1_are_read(machine: Path) -> None:
    folder = machine / "sys/memory"
    write(folder / "memory.limit_in_bytes", str(4 * MIB))
    write(folder / "memory.usage_in_bytes", str(3 * MIB))
    write(folder / "memory.stat", f"inactive_file 7\ntotal_inactive_file {MIB}\n")
    assert free(machine) == 2 * MIB


def test_where_nothing_is_told_nothing_is_known(tmp_path: Path) -> None:
    assert free(tmp_path) is None


def test_this_machine_tells() -> None:
    assert (free_host_bytes() or 0) > MIB
