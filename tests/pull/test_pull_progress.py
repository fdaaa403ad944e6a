"""What people and scripts see of a pull: a bar, lines, objects; and the set of ranges that its figures come from."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from octavo_cli.pull_progress import PullProgress
from octavo_pull.partial import gib
from octavo_pull.ranges import Ranges
from octavo_pull.tally import Tally
from serving import until


def half_done() -> Tally:
    tally = Tally()
    tally.begin(done=0, total=4 * 2**30, files=1, total_files=3)
    tally.phase("downloading")
    tally.add(2 * 2**30)
    tally.note("a digest could not be compared")
    return tally


def test_where_there_is_no_terminal_lines_tell_how_far_it_is() -> None:
    out = io.StringIO()
    with PullProgress(half_done(), as_json=False, console=Console(file=out)):
        until(lambda: "GiB" in out.getvalue())
    assert "octavo: downloading: 2.0 GiB of 4.0 GiB (50 %), 1 of 3 files\n" in out.getvalue()
    assert "octavo: warning: a digest could not be compared\n" in out.getvalue()


def test_on_a_terminal_there_is_a_bar() -> None:
    out = io.StringIO()
    with PullProgress(half_done(), as_json=False, console=Console(file=out, force_terminal=True, width=120)):
        until(lambda: "2.1/4.3" in out.getvalue() or "2.0/4.0" in out.getvalue())
    assert "downloading" in out.getvalue()
    assert "━" in out.getvalue()


def test_scripts_read_objects(capsys: pytest.CaptureFixture[str]) -> None:
    told = ""

    def has_come() -> bool:
        nonlocal told
        told += capsys.readouterr().out
        return bool(told)

    with PullProgress(half_done(), as_json=True):
        until(has_come)
    event = json.loads(told.splitlines()[0])
    assert event["bytes"] * 2 == event["total"] == 4 * 2**30
    assert (event["event"], event["phase"], event["files"], event["totalFiles"]) == ("progress", "downloading", 1, 3)


def test_sizes_are_told_in_units_of_1024() -> None:
    assert [gib(size) for size in (5, 2048, 3 * 2**19, 2**30)] == ["5 bytes", "2.0 KiB", "1.5 MiB", "1.0 GiB"]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=30))
def test_ranges_are_the_set_of_bytes_that_were_added(added: list[tuple[int, int]]) -> None:
    ranges, there = Ranges(), set[int]()
    for start, end in added:
        ranges.add(start, end)
        there.update(range(start, end))
        assert ranges.covered == len(there)
        assert {byte for begin, finish in ranges for byte in range(begin, finish)} == there
        missing = [byte for begin, finish in ranges.missing(60) for byte in range(begin, finish)]
        assert missing == sorted(set(range(60)) - there)
