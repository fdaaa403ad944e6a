"""The Lease: one leads, another takes over what is not renewed, and a leader that cannot renew stops first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest

from kube_fixture import ControlPlane, Faults, Kube
from octavo_operator.election import LEASE_NAME, Election, LeadershipLostError, Timing
from octavo_operator.kube import connect

TIMING = Timing(duration=2.0, deadline=1.0, retry=0.1)


@asynccontextmanager
async def candidate(plane: ControlPlane, namespace: str, identity: str) -> AsyncIterator[Election]:
    async with connect(plane.kubeconfig) as api:
        yield Election(api, namespace, identity, TIMING)


async def holder(kube: Kube) -> str:
    return str((await kube.get("coordination.k8s.io/v1", "Lease", LEASE_NAME))["spec"]["holderIdentity"])


async def test_the_first_leads_and_renews(control_plane: ControlPlane, kube: Kube) -> None:
    async with candidate(control_plane, kube.namespace, "a") as a:
        await a.acquire()
        before = await kube.get("coordination.k8s.io/v1", "Lease", LEASE_NAME)
        holding = asyncio.create_task(a.hold())

        async def renewed() -> bool:
            now = await kube.get("coordination.k8s.io/v1", "Lease", LEASE_NAME)
            return bool(now["spec"]["renewTime"] > before["spec"]["renewTime"])

        await kube.until(renewed)
        holding.cancel()
        assert await holder(kube) == "a"


async def test_whoever_leads_may_act_until_the_deadline_however_late_that_is_noticed(
    control_plane: ControlPlane, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with candidate(control_plane, kube.namespace, "a") as a:
        assert not a.may_act()
        await a.acquire()
        assert a.may_act()
        monkeypatch.setattr("octavo_operator.election.monotonic", lambda: monotonic() + TIMING.deadline)
        assert not a.may_act()


async def test_a_lease_that_stands_still_is_taken_after_its_duration(control_plane: ControlPlane, kube: Kube) -> None:
    async with candidate(control_plane, kube.namespace, "a") as a, candidate(control_plane, kube.namespace, "b") as b:
        await a.acquire()
        started = monotonic()
        await asyncio.wait_for(b.acquire(), 20)
        assert monotonic() - started >= TIMING.duration
        assert await holder(kube) == "b"
        with pytest.raises(LeadershipLostError):
            await asyncio.wait_for(a.hold(), 20)


async def test_a_leader_that_finds_another_in_its_lease_stops(control_plane: ControlPlane, kube: Kube) -> None:
    async with candidate(control_plane, kube.namespace, "a") as a:
        await a.acquire()
        lease = await kube.get("coordination.k8s.io/v1", "Lease", LEASE_NAME)
        await kube.patch(lease, {"spec": {"holderIdentity": "b"}})
        with pytest.raises(LeadershipLostError, match="held by b"):
            await asyncio.wait_for(a.hold(), 20)


async def test_a_released_lease_is_taken_at_once(control_plane: ControlPlane, kube: Kube) -> None:
    async with candidate(control_plane, kube.namespace, "a") as a, candidate(control_plane, kube.namespace, "b") as b:
        await a.acquire()
        await a.release()
        assert await holder(kube) == ""
        await asyncio.wait_for(b.acquire(), TIMING.duration)
        await a.release()  # of what is not ours: nothing
        assert await holder(kube) == "b"
        lease = await kube.get("coordination.k8s.io/v1", "Lease", LEASE_NAME)
        assert lease["spec"]["leaseTransitions"] >= 2


async def test_a_standby_tells_once_for_whom_it_waits(
    control_plane: ControlPlane, kube: Kube, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "octavo_operator.election")
    async with candidate(control_plane, kube.namespace, "a") as a, candidate(control_plane, kube.namespace, "b") as b:
        await a.acquire()
        await asyncio.wait_for(b.acquire(), 20)
    told = [text for text in caplog.messages if text.startswith("standing by")]
    assert told == [f"standing by: the Lease {LEASE_NAME} in {kube.namespace} is held by a"]


@pytest.mark.parametrize("how", ["refuse", "hang"])
async def test_a_leader_that_cannot_reach_the_api_server_stops_before_another_may_start(
    control_plane: ControlPlane, kube: Kube, faults: Faults, how: str
) -> None:
    async with candidate(control_plane, kube.namespace, "a") as a:
        await a.acquire()
        holding = asyncio.create_task(a.hold())
        with faults.unreachable("refuse" if how == "refuse" else "hang"):
            started = monotonic()
            with pytest.raises(LeadershipLostError, match="in time"):
                await asyncio.wait_for(holding, 20)
            assert monotonic() - started < TIMING.duration


async def test_a_short_outage_costs_no_leadership(control_plane: ControlPlane, kube: Kube, faults: Faults) -> None:
    async with candidate(control_plane, kube.namespace, "a") as a:
        faults.fail_write(1, 500, match=lambda record: record.plural == "leases")
        await asyncio.wait_for(a.acquire(), 20)
        holding = asyncio.create_task(a.hold())
        hits = [faults.fail_write(1, status, match=lambda record: record.plural == "leases") for status in (409, 500)]

        async def all_hit() -> bool:
            return all(each.hit.is_set() for each in hits)

        await kube.until(all_hit)
        before = (await kube.get("coordination.k8s.io/v1", "Lease", LEASE_NAME))["spec"]["renewTime"]

        async def renewed() -> bool:
            lease = await kube.get("coordination.k8s.io/v1", "Lease", LEASE_NAME)
            return bool(lease["spec"]["renewTime"] > before)

        await kube.until(renewed)
        assert not holding.done()
        holding.cancel()


async def test_of_two_that_start_together_one_leads(control_plane: ControlPlane, kube: Kube) -> None:
    async with candidate(control_plane, kube.namespace, "a") as a, candidate(control_plane, kube.namespace, "b") as b:
        first, second = asyncio.create_task(a.acquire()), asyncio.create_task(b.acquire())
        done, pending = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        for task in pending:
            task.cancel()
