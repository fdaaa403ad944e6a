"""What is at hand follows the API server: through lists in pages, broken watches and kinds that are not there yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kube_fixture import ControlPlane, Faults, Kube
from octavo_operator import informer
from octavo_operator.cached import CachedKube
from octavo_operator.informer import Informer
from octavo_operator.kube import OURS, KubeError, connect
from octavo_operator.store import Store
from optional_kinds import definition, remove

Object = dict[str, Any]
LABELS = {"app.kubernetes.io/managed-by": "octavo-operator"}


def service(name: str, **metadata: Any) -> Object:
    spec = {"ports": [{"port": 80}], "clusterIP": "None"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": LABELS, **metadata},
        "spec": spec,
    }


class Followed:
    """An informer of Services, and all that it told."""

    def __init__(self, kube: Any, namespace: str, **more: Any) -> None:
        self.store = Store()
        self.told: list[tuple[str, bool]] = []
        kind = more.pop("kind", "Service")
        self.informer = Informer(kube, kind, namespace, self.store, self._hear, selector=OURS, **more)

    def _hear(self, body: Object, gone: bool) -> None:
        self.told.append((body["metadata"]["name"], gone))

    def written(self, kind: str, body: Object) -> None:
        self._hear(body, False)

    def names(self, namespace: str) -> list[str]:
        return [each["metadata"]["name"] for each in self.store.select(namespace)]


@contextlib.asynccontextmanager
async def following(plane: ControlPlane, namespace: str, **more: Any) -> AsyncIterator[Followed]:
    async with connect(plane.kubeconfig) as kube:
        followed = Followed(kube, namespace, **more)
        task = asyncio.create_task(followed.informer.run())
        try:
            await asyncio.wait_for(followed.informer.synced.wait(), 20)
            yield followed
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_a_list_in_pages_then_what_happens(
    control_plane: ControlPlane, kube: Kube, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_operator.kube.PAGE", 2)
    made = [await kube.create(service(f"s{index}")) for index in range(5)]
    await kube.create(service("not-ours", labels={}))
    async with following(control_plane, kube.namespace) as followed:
        assert followed.names(kube.namespace) == [f"s{index}" for index in range(5)]
        await kube.delete(made[0])
        await kube.patch(made[1], {"metadata": {"labels": {"app.kubernetes.io/managed-by": "somebody"}}})
        await kube.create(service("later"))

        async def followed_on() -> bool:
            return followed.names(kube.namespace) == ["later", "s2", "s3", "s4"]

        await kube.until(followed_on)
        assert followed.told[5:] == [("s0", True), ("s1", True), ("later", False)]


@pytest.mark.parametrize("how", ["drop", "expire", "down"])
async def test_whatever_breaks_the_watch_what_vanished_meanwhile_is_told(
    control_plane: ControlPlane, kube: Kube, faults: Faults, how: str
) -> None:
    made = await kube.create(service("gone"))
    async with following(control_plane, kube.namespace) as followed:
        if how == "drop":
            faults.drop_watches()
            await kube.delete(made)
        else:
            with faults.watches_down(expire=how == "expire"):
                await kube.delete(made)

        async def told() -> bool:
            return ("gone", True) in followed.told and followed.names(kube.namespace) == []

        await kube.until(told)
        assert followed.told.count(("gone", True)) == 1
        await kube.create(service("new"))

        async def goes_on() -> bool:
            return followed.names(kube.namespace) == ["new"]

        await kube.until(goes_on)
        lists = [each for each in faults.requests if each.plural == "services" and not each.watch]
        assert how != "drop" or len(lists) == 1  # it went on from where it was


@pytest.mark.real
async def test_a_kind_that_the_cluster_lacks_is_followed_when_it_is_there(
    control_plane: ControlPlane, octavo: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informer, "ABSENT_SECONDS", 0.2)
    appeared = asyncio.Event()
    crd = definition("monitoring.coreos.com", "PodMonitor")
    optional: Object = {"kind": "PodMonitor", "optional": True, "appeared": appeared.set}
    async with following(control_plane, octavo.namespace, **optional) as followed:
        assert followed.informer.is_missing and not appeared.is_set()
        cached = CachedKube(
            followed.informer._kube, {"PodMonitor": followed.store}, [followed.informer], followed.written
        )
        with pytest.raises(KubeError) as refused:
            await cached.find("PodMonitor", octavo.namespace, "demo")
        assert refused.value.status == 404
        await octavo.install_crd(crd)
        try:
            await asyncio.wait_for(appeared.wait(), 20)
            assert await cached.find("PodMonitor", octavo.namespace, "demo") is None
        finally:
            await remove(octavo, crd)


async def test_a_write_is_at_hand_at_once_and_what_is_deleted_until_it_is_gone(
    control_plane: ControlPlane, kube: Kube, faults: Faults
) -> None:
    async with following(control_plane, kube.namespace) as followed:
        cached = CachedKube(followed.informer._kube, {"Service": followed.store}, [followed.informer], followed.written)
        wanted = service("ours", namespace=kube.namespace)
        made = await cached.create_by_apply(wanted)
        assert await cached.find("Service", kube.namespace, "ours") is not None
        assert followed.told == [("ours", False)]  # once, by the answer or by the watch
        held = await kube.patch(made, {"metadata": {"finalizers": ["octavo.dev/test"]}})
        await cached.delete(made | {"kind": "Service"})
        ending = await cached.find_ours("Service", kube.namespace, "ours")
        assert ending is not None and "deletionTimestamp" in ending["metadata"]
        await kube.patch(held, {"metadata": {"finalizers": None}})

        async def told() -> bool:
            return followed.told[-1:] == [("ours", True)]

        await kube.until(told)


async def test_what_is_not_at_hand_is_looked_for_before_it_is_said_to_be_missing(
    control_plane: ControlPlane, kube: Kube, faults: Faults
) -> None:
    await kube.create(service("strange", labels={}))
    async with following(control_plane, kube.namespace) as followed:
        cached = CachedKube(followed.informer._kube, {"Service": followed.store}, [followed.informer], followed.written)
        assert await cached.find_ours("Service", kube.namespace, "strange") is None
        found = await cached.find("Service", kube.namespace, "strange")
        assert found is not None and found["kind"] == "Service"


async def test_who_may_not_write_any_more_sends_nothing(
    control_plane: ControlPlane, kube: Kube, faults: Faults
) -> None:
    async with connect(control_plane.kubeconfig) as api:
        late = CachedKube(api, {"Service": Store()}, [], lambda *_: None, lambda: False)
        faults.reset()
        with pytest.raises(KubeError, match="may be another's"):
            await late.create_by_apply(service("late", namespace=kube.namespace))
        assert faults.requests == []
