"""Runs work until it is done or a signal asks for its end; whatever it holds is given back in its own `finally`."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_until_signal(work: Coroutine[Any, Any, None], hurry: Callable[[], None]) -> int | None:
    """Run `work`; None when it is done, else the number of the signal that cancelled it.

    The first signal cancels it, and it may take its time to clean up; each further one calls `hurry`.
    Must be called in the main thread.
    """
    received: list[int] = []
    task = asyncio.ensure_future(work)

    def on_signal(number: int) -> None:
        received.append(number)
        if len(received) == 1:
            task.cancel()
        else:
            hurry()

    loop = asyncio.get_running_loop()
    # Who started this with `nohup` wants it to outlive the terminal.
    watched = [number for number in ENDING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    for number in watched:
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
        return received[0]
    finally:
        for number in watched:
            loop.remove_signal_handler(number)
    return None
