"""The faults that tests inject do what they say, on the emulator and on a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from kubernetes.aio.client.exceptions import ApiException

from kube_fixture import ControlPlane, Faults, Kube
from kube_fixture.widget import GROUP, Widget

pytestmark = pytest.mark.every_control_plane
Object = dict[str, Any]


@pytest.fixture
async def subject(control_plane: ControlPlane, kube: Kube, widget: Widget, faults: Faults) -> AsyncIterator[Kube]:
    """A client on the road that faults are on, as what is under test would be."""
    async with Kube.connect(control_plane.kubeconfig, kube.namespace) as client:
        await client.list(f"{GROUP}/v1", "Widget")
        faults.reset()
        yield client


async def names(kube: Kube) -> list[str]:
    return [held["metadata"]["name"] for held in await kube.list(f"{GROUP}/v1", "Widget")]


@pytest.mark.parametrize("status", [409, 429, 500])
async def test_the_kth_write_is_refused_and_nothing_written(
    subject: Kube, kube: Kube, widget: Widget, faults: Faults, status: int
) -> None:
    fault = faults.fail_write(2, status)
    await subject.create(widget("one"))
    assert not fault.hit.is_set()
    with pytest.raises(ApiException) as error:
        await subject.create(widget("two"))
    assert error.value.status == status and fault.hit.is_set()
    assert fault.record is not None and fault.record.plural == "widgets"
    await subject.create(widget("three"))
    assert await names(kube) == ["one", "three"]


async def test_a_disconnected_write_is_not_written(subject: Kube, kube: Kube, widget: Widget, faults: Faults) -> None:
    faults.fail_write(1, "disconnect")
    with pytest.raises(aiohttp.ClientError):
        await subject.create(widget())
    assert await names(kube) == []


async def test_a_write_whose_answer_is_lost_is_written(
    subject: Kube, kube: Kube, widget: Widget, faults: Faults
) -> None:
    faults.fail_write(1, "after")
    with pytest.raises(aiohttp.ClientError):
        await subject.create(widget())
    assert await names(kube) == ["w"]


async def test_a_write_can_be_written_and_never_answered(
    subject: Kube, kube: Kube, widget: Widget, faults: Faults
) -> None:
    fault = faults.fail_write(1, "hang")
    waiting = asyncio.create_task(subject.create(widget()))
    await fault.happened()
    assert await names(kube) == ["w"] and not waiting.done()
    faults.reset()
    with pytest.raises(aiohttp.ClientError):
        await waiting


async def test_dry_runs_and_leases_do_not_count_as_writes_unless_told(
    subject: Kube, widget: Widget, faults: Faults
) -> None:
    fault = faults.fail_write(1, 500)
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {}}
    await subject.create(widget(), dry_run=True)
    made = await subject.create(lease)
    assert not fault.hit.is_set()
    faults.reset()
    faults.fail_write(1, 500, match=lambda record: record.plural == "leases")
    await subject.create(widget())
    with pytest.raises(ApiException):
        await subject.replace(made)


async def test_every_request_is_recorded_and_the_tests_own_are_not(
    subject: Kube, kube: Kube, widget: Widget, faults: Faults
) -> None:
    made = await kube.create(widget("own"))
    await subject.apply(widget(), manager="octavo-operator")
    await subject.patch(made, {"status": {"phase": "Ready"}}, subresource="status")
    await subject.get(f"{GROUP}/v1", "Widget", "w")
    applied, status = faults.writes()
    path = f"/apis/{GROUP}/v1/namespaces/{kube.namespace}/widgets"
    assert (applied.method, applied.path, applied.status) == ("PATCH", f"{path}/w", 201)
    assert (applied.field_manager, applied.content_type) == ("octavo-operator", "application/apply-patch+yaml")
    assert applied.json["spec"] == {"size": 3}
    assert (status.plural, status.name, status.subresource) == ("widgets", "own", "status")
    assert [record.method for record in faults.requests if record.plural == "widgets"] == ["PATCH", "PATCH", "GET"]


async def events(subject: Kube, since: str = "") -> list[tuple[str, str]]:
    """What one watch is told until it ends, however it does."""
    seen = []
    try:
        async for kind, held in subject.watch(f"{GROUP}/v1", "Widget", since=since):
            seen.append((kind, held["metadata"].get("name") or str(held.get("code"))))
    except (aiohttp.ClientError, ConnectionError):
        pass
    return seen


async def begun(kube: Kube, faults: Faults) -> None:
    """Until the watch that was just started is answered."""

    async def answered() -> bool:
        return any(record.watch and record.status for record in faults.requests)

    await kube.until(answered, what="the watch")


async def test_a_dropped_watch_goes_on_where_it_was(subject: Kube, kube: Kube, widget: Widget, faults: Faults) -> None:
    since = (await subject.list_raw(f"{GROUP}/v1", "Widget"))["metadata"]["resourceVersion"]
    watching = asyncio.create_task(events(subject, since))
    await begun(kube, faults)
    faults.drop_watches()
    assert await watching == []
    made = await kube.create(widget())
    async for kind, held in subject.watch(f"{GROUP}/v1", "Widget", since=since):
        assert (kind, held["metadata"]["uid"]) == ("ADDED", made["metadata"]["uid"])
        break


async def test_an_expired_watch_is_told_410_and_must_list_again(
    subject: Kube, kube: Kube, widget: Widget, faults: Faults
) -> None:
    since = (await subject.list_raw(f"{GROUP}/v1", "Widget"))["metadata"]["resourceVersion"]
    watching = asyncio.create_task(events(subject, since))
    await begun(kube, faults)
    await kube.create(widget())
    faults.expire_watches()
    assert (await watching)[-1] == ("ERROR", "410")
    assert await events(subject, since) == [("ERROR", "410")]
    listed = await subject.list_raw(f"{GROUP}/v1", "Widget")
    async for _ in subject.watch(f"{GROUP}/v1", "Widget", since=listed["metadata"]["resourceVersion"], seconds=1):
        pytest.fail("there was nothing new")


async def test_what_vanishes_while_watches_are_down_is_never_reported(
    subject: Kube, kube: Kube, widget: Widget, faults: Faults
) -> None:
    made = await kube.create(widget())
    since = (await subject.list_raw(f"{GROUP}/v1", "Widget"))["metadata"]["resourceVersion"]
    with faults.watches_down():
        with pytest.raises(ApiException) as error:
            await events(subject, since)
        assert error.value.status == 503
        await kube.delete(made)
    assert await events(subject, since) == [("ERROR", "410")]
    assert await names(subject) == []


async def test_a_stale_list_is_what_was_answered_before(
    subject: Kube, kube: Kube, widget: Widget, faults: Faults
) -> None:
    made = await kube.create(widget())
    assert await names(subject) == ["w"]
    await kube.delete(made)
    with faults.stale_lists():
        assert await names(subject) == ["w"]
        assert await subject.find(f"{GROUP}/v1", "Widget", "w") is None
    assert await names(subject) == []


async def test_an_unreachable_server_refuses_or_hangs_and_comes_back(
    subject: Kube, widget: Widget, faults: Faults
) -> None:
    with faults.unreachable("refuse"), pytest.raises(aiohttp.ClientError):
        await names(subject)
    with faults.unreachable("hang"), pytest.raises(TimeoutError):
        await asyncio.wait_for(names(subject), timeout=0.3)
    assert await names(subject) == []


@pytest.mark.real
async def test_a_token_that_is_not_the_proxys_gives_nobody_more_than_it_does(
    control_plane: ControlPlane, kube: Kube
) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{control_plane.url}/api/v1/secrets", ssl=False, headers={"Authorization": "Bearer x"}) as answer,
    ):
        assert answer.status == 401
