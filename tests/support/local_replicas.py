"""Stand-ins for replicas on this machine: how they are started, and waiting for what becomes of them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import fake_replica
from octavo_operator.local.replica import Launch, ReplicaState
from octavo_operator.local.supervisor import Supervisor

FAKE = str(Path(fake_replica.__file__).resolve())


def launch(mark: dict[str, str], fault: str = "none") -> Launch:
    return Launch(
        command=lambda port: [sys.executable, "-S", FAKE, fault, "--port", str(port)],
        environment={**os.environ, **mark},
        poll_seconds=0.02,
        first_delay=0.02,
        grace_seconds=20.0,
    )


async def wait_for(supervisor: Supervisor, holds: Callable[[tuple[ReplicaState, ...]], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds(supervisor.states):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
