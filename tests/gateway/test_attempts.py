"""Who is silent is given up: replicas that say nothing, and clients that do not read."""

import asyncio

import pytest

from octavo_gateway.attempts import GONE_SECONDS, UNREAD_SECONDS, Attempt, Attempts
from octavo_gateway.discovery import Endpoint
from octavo_gateway.replica import Replica
from octavo_gateway.replicas_http import ReplicaLost


async def given_up_after(attempts: Attempts, attempt: Attempt, seconds: float) -> bool:
    """Whether it is, when it has been silent for so long."""
    now = asyncio.get_running_loop().time()
    attempt.latest = now
    attempts.look(now + seconds)
    await asyncio.sleep(0.001)
    return False


@pytest.mark.parametrize(
    ("begun", "gone", "heard", "limit"),
    [
        (True, False, 0.0, 60.0),  # within a stream
        (False, True, 0.0, GONE_SECONDS),  # of a replica that is not listed any more
        (False, False, 0.001, 60.0),  # that does not tell its figures any more, either
    ],
)
async def test_a_silent_replica_is_given_up_in_time_and_not_before(
    begun: bool, gone: bool, heard: float, limit: float
) -> None:
    attempts, replica = Attempts(60.0), Replica(Endpoint("a", "http://x"), gone=gone, heard=heard)
    with pytest.raises(ReplicaLost):
        async with attempts.at(replica) as attempt:
            attempt.begun = begun
            assert not await given_up_after(attempts, attempt, limit - 1)
            await given_up_after(attempts, attempt, limit + 1)
            raise AssertionError("it is still waited for")


async def test_a_prompt_may_take_its_time_at_a_replica_that_is_alive() -> None:
    attempts, replica = Attempts(60.0), Replica(Endpoint("a", "http://x"))
    async with attempts.at(replica) as attempt:
        replica.heard = asyncio.get_running_loop().time() + 3600
        assert not await given_up_after(attempts, attempt, 3600)


async def test_a_slow_client_is_not_its_replicas_fault_and_is_given_up_itself() -> None:
    attempts, replica = Attempts(60.0), Replica(Endpoint("a", "http://x"))
    with pytest.raises(ConnectionResetError):
        async with attempts.at(replica) as attempt:
            attempt.begun, attempt.writing = True, asyncio.get_running_loop().time()
            assert not await given_up_after(attempts, attempt, UNREAD_SECONDS - 1)
            await given_up_after(attempts, attempt, UNREAD_SECONDS + 1)
            raise AssertionError("it is still waited for")


async def test_a_timeout_of_somebody_elses_stays_one() -> None:
    with pytest.raises(TimeoutError):
        async with Attempts(60.0).at(Replica(Endpoint("a", "http://x"))):
            raise TimeoutError
