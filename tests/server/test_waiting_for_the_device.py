"""Waiting for a device: how long the host sleeps between two looks, and that it wakes up in time."""

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from octavo_server.worker import step_handle
from octavo_server.worker.device import wake_on_time
from octavo_server.worker.step_handle import Launched

GET_TIMERSLACK = 30


class LateEvent:
    """Has come when the clock says so; sleeping moves the clock on."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []
        self._seconds = seconds

    def query(self) -> bool:
        self.now += 1e-6  # to ask takes some time
        return self.now >= self._seconds

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("seconds", [2e-4, 6e-3, 0.05, 0.08])
def test_a_wait_becomes_longer_by_a_small_part_of_itself(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    event = LateEvent(seconds)
    monkeypatch.setattr(step_handle, "time", event)
    assert Launched(event=event).is_through(0.1)  # type: ignore[arg-type]
    assert event.now - seconds <= seconds / 500 + 3e-6
    assert len(event.sleeps) < 5000 and max(event.sleeps) <= 5e-5


def test_a_wait_ends_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    event = LateEvent(1.0)
    monkeypatch.setattr(step_handle, "time", event)
    assert not Launched(event=event).is_through(0.1)  # type: ignore[arg-type]
    assert 0.1 <= event.now < 0.1002


@pytest.mark.skipif(sys.platform != "linux", reason="a timer's slack is Linux's")
def test_sleeps_of_the_thread_end_on_time() -> None:
    libc = ctypes.CDLL(None)
    with ThreadPoolExecutor(1) as thread:  # whose slack ends with it
        thread.submit(wake_on_time).result()
        assert thread.submit(lambda: libc.prctl(GET_TIMERSLACK, 0, 0, 0, 0)).result() == 1000
