"""The judgement of `make soak`: it must see a leak, and none where there is none."""

import math
import random

import pytest
from benchmarks.soak import grows, slope

MINUTES = 24  # what is left of half an hour after the warm-up
TIMES = [float(second) for second in range(60 * MINUTES)]


def memory(per_hour: float, noise: float, seed: int) -> list[float]:
    """MiB: a line with noise whose neighbours are alike, as the memory of a working process has it."""
    draw, drift, values = random.Random(seed), 0.0, []
    for second in TIMES:
        drift = 0.9 * drift + draw.gauss(0, noise)
        values.append(300 + per_hour * second / 3600 + drift)
    return values


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_of_two_mib_an_hour_is_found_and_noise_is_none(seed: int) -> None:
    leaking, error = slope(TIMES, memory(2.0, 0.01, seed))
    assert grows(leaking, 30)
    assert abs(leaking - 2.0) < 4 * error
    assert not grows(slope(TIMES, memory(0.0, 0.01, seed))[0], 30)


def test_a_line_is_measured_exactly() -> None:
    found, error = slope(TIMES, memory(7.25, 0.0, 0))
    assert found == pytest.approx(7.25)
    assert error == pytest.approx(0.0, abs=1e-6)


def test_a_short_run_fails_for_megabytes_only() -> None:
    assert not grows(60.0, minutes=2)
    assert grows(300.0, minutes=2)


def test_too_few_samples_say_nothing() -> None:
    assert slope([0.0, 1.0], [1.0, 9.0]) == (0.0, math.inf)
