"""What a first and a second Ctrl-C do."""

import asyncio
import os
import signal

import pytest

from octavo_cli.signals import ENDING, run_until_signal


def never() -> None:
    raise AssertionError("nobody was in a hurry")


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
