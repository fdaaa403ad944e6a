"""The judgement of `make soak`: it must see a leak, and none where there is none."""

import math
import os
import random

import pytest
from benchmarks.soak import _anonymous, floors, grows, slope

MINUTES = 24  # what is left of half an hour after the warm-up
TIMES = [0.5 * index for index in range(120 * MINUTES)]


def memory(per_hour: float, seed: int, breath: float = 5.0) -> list[float]:
    """MiB, as a working process has it: steps take memory, and malloc gives it back at some moment or other.

    The line it rests on is known. The load differs from one part of the time to another, and so does the mean.
    """
    draw, taken, values = random.Random(seed), 0.0, []
    for second in TIMES:
        busy = 0.5 + 0.5 * math.sin(second / 300 + seed)
        taken = 0.0 if draw.random() < 0.04 else max(taken, breath * busy * draw.random())
        values.append(220 + per_hour * second / 3600 + taken + draw.gauss(0, 0.02))
    return values


@pytest.mark.parametrize("seed", range(8))
def test_a_leak_of_two_mib_an_hour_is_found_under_five_that_come_and_go(seed: int) -> None:
    found, low, high = slope(TIMES, memory(2.0, seed))
    assert grows(found, 30)
    assert low < 2.0 < high
    assert not grows(slope(TIMES, memory(0.0, seed))[0], 30)


def test_a_minute_of_something_else_does_not_count() -> None:
    values = memory(0.0, 0)
    for index in range(100):
        values[-1 - index] += 50.0
    assert not grows(slope(TIMES, values)[0], 30)


def test_a_line_is_measured_exactly() -> None:
    values = [300 + 7.25 * second / 3600 for second in TIMES]
    assert slope(TIMES, values) == pytest.approx((7.25, 7.25, 7.25))


def test_floors_are_the_least_of_equal_parts() -> None:
    assert floors([0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 3.0, 4.0, 1.0, 2.0], parts=2) == ([1.0, 3.0], [3.0, 1.0])
    assert floors([], []) == ([], [])


def test_memory_is_what_the_process_allocated() -> None:
    before = _anonymous(os.getpid())
    held = bytearray(os.urandom(64 * 2**20))
    assert _anonymous(os.getpid()) - before >= 60
    del held


def test_a_short_run_fails_for_megabytes_only() -> None:
    assert not grows(60.0, minutes=2)
    assert grows(300.0, minutes=2)


def test_too_few_samples_say_nothing() -> None:
    assert slope([0.0, 1.0], [1.0, 9.0]) == (0.0, -math.inf, math.inf)
