"""The judgement of `make soak`: it must see a leak, and none where there is none."""

import asyncio
import math
import os
import random

import pytest
from benchmarks.soak import RESTS, Gate, _anonymous, grows, slope

TIMES = [360 + 1440 * rest / (RESTS - 1) for rest in range(RESTS)]  # of half an hour


def memory(per_hour: float, seed: int) -> list[float]:
    """MiB at rests: a line that is known, what the allocator has not given back, and some rests that were none."""
    draw = random.Random(seed)
    values = [220 + per_hour * second / 3600 + draw.gauss(0, 0.05) for second in TIMES]
    for _ in range(3):
        values[draw.randrange(RESTS)] += 10.0
    return values


@pytest.mark.parametrize("seed", range(8))
def test_a_leak_of_two_mib_an_hour_is_found_and_noise_is_none(seed: int) -> None:
    found, low, high = slope(TIMES, memory(2.0, seed))
    assert grows(found, 30)
    assert low < 2.0 < high
    assert not grows(slope(TIMES, memory(0.0, seed))[0], 30)


def test_a_line_is_measured_exactly() -> None:
    values = [300 + 7.25 * second / 3600 for second in TIMES]
    assert slope(TIMES, values) == pytest.approx((7.25, 7.25, 7.25))


def test_memory_is_what_the_process_allocated() -> None:
    before = _anonymous(os.getpid())
    held = bytearray(os.urandom(64 * 2**20))
    assert _anonymous(os.getpid()) - before >= 60
    del held


async def test_a_gate_that_is_opened_for_an_instant_lets_nobody_in_behind_its_back() -> None:
    gate, log = Gate(), list[str]()

    async def user(name: str) -> None:
        async with gate:
            log.append(f"{name} in")
            await asyncio.sleep(0)
            log.append(f"{name} out")

    first = asyncio.create_task(user("a"))
    await asyncio.sleep(0)
    await gate.close()
    assert log == ["a in", "a out"]
    second = asyncio.create_task(user("b"))
    await asyncio.sleep(0)
    gate.open()
    await gate.close()
    for _ in range(5):
        await asyncio.sleep(0)
    assert log == ["a in", "a out"]
    gate.open()
    await asyncio.gather(first, second)
    assert log[2:] == ["b in", "b out"]


def test_a_short_run_fails_for_megabytes_only() -> None:
    assert not grows(60.0, minutes=2)
    assert grows(300.0, minutes=2)


def test_too_few_rests_say_nothing() -> None:
    assert slope([0.0, 1.0], [1.0, 9.0]) == (0.0, -math.inf, math.inf)
