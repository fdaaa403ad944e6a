"""What a first and a second Ctrl-C do."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from octavo_cli.signals import ENDING, run_until_signal


def never() -> None:
    raise AssertionError("nobody was in a hurry")


@pytest.fixture
def terminal() -> Iterator[None]:
    """As at a terminal: whoever runs the tests with `nohup` has SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", ENDING)
async def test_a_signal_cancels_the_work_which_may_clean_up(number: signal.Signals) -> None:
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned = True

    assert await run_until_signal(work(), never) == number
    assert cleaned


@pytest.mark.usefixtures("terminal")
async def test_under_nohup_the_end_of_the_terminal_cancels_nothing() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def work() -> None:
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGHUP)

    assert await run_until_signal(work(), never) is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


async def test_the_second_signal_hurries_the_clean_up() -> None:
    hurried = asyncio.Event()

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            await hurried.wait()

    async with asyncio.timeout(30):
        assert await run_until_signal(work(), hurried.set) == signal.SIGINT


async def test_work_that_ends_by_itself_has_no_signal_and_its_errors_are_its_own() -> None:
    async def fail() -> None:
        raise ValueError("mine")

    assert await run_until_signal(asyncio.sleep(0), never) is None
    with pytest.raises(ValueError, match="mine"):
        await run_until_signal(fail(), never)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
