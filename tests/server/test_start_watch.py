"""A start that takes long and one that hangs, by figures that the test makes up; and the figures of real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from octavo_server.frontend.start_watch import START_HANG_SECONDS, Activity, StartWatch, activity_of


class Process:
    """What a process did, and what time it is."""

    cpu = 0.0
    read = 0
    now = 50.0
    said = 50.0

    def watch(self) -> StartWatch:
        return StartWatch(1, lambda _: Activity(self.cpu, self.read), lambda: self.now)

    def hangs(self, watch: StartWatch, seconds: float, *, cpu: float = 0.0, read: int = 0) -> bool:
        """Whether it does after so many seconds with a look each, in which it did a little in all."""
        looks = int(seconds)
        found = False
        for _ in range(looks):
            self.now += 1
            self.cpu += cpu / looks
            self.read += read // looks
            found = watch.hangs(self.now - self.said)
        return found


@pytest.fixture
def process() -> Process:
    return Process()


def test_a_start_without_a_word_and_without_work_hangs(process: Process) -> None:
    watch = process.watch()
    assert not process.hangs(watch, START_HANG_SECONDS)
    assert process.hangs(watch, 1)


def test_a_timer_that_ticks_in_a_hanging_process_is_no_work(process: Process) -> None:
    assert process.hangs(process.watch(), START_HANG_SECONDS + 1, cpu=0.05, read=10_000)


@pytest.mark.parametrize("work", [{"cpu": 3.0}, {"read": 100 * 2**20}])
def test_a_start_that_reads_or_computes_for_an_hour_without_a_word_is_let_be(
    process: Process, work: dict[str, int]
) -> None:
    watch = process.watch()
    for _ in range(36):
        assert not process.hangs(watch, 100, **work)  # type: ignore[arg-type]


def test_a_word_begins_the_time_anew(process: Process) -> None:
    watch = process.watch()
    assert not process.hangs(watch, START_HANG_SECONDS - 1)
    process.said = process.now
    assert not process.hangs(watch, START_HANG_SECONDS - 1)
    assert process.hangs(watch, 3)  # the word is noticed at the next look


def test_where_nothing_is_known_of_a_process_it_is_let_be() -> None:
    now = 0.0
    watch = StartWatch(1, lambda _: None, lambda: now)
    for now in range(0, 1000, 10):
        assert not watch.hangs(now)


def test_the_figures_of_a_process_are_its_own(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(bytes(8 * 2**20))
    code = (
        "import sys, time\nopen(sys.argv[1], 'rb').read()\n"
        "while time.process_time() < 0.3: pass\nprint('done', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGSTOP)
        before, after = activity_of(child.pid), activity_of(child.pid)
        child.kill()
    assert before is not None and before == after
    assert before.cpu_seconds >= 0.29
    assert before.bytes_read >= 8 * 2**20
    assert activity_of(os.getpid()) != before
    assert activity_of(2**22 + 1) is None
