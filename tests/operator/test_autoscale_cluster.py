"""What is done to pods of a cluster before fewer are asked for, and what stands in the way of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from kube_fixture import ControlPlane, Faults, Kube
from octavo_operator.autoscale.cluster import Cluster, write_costs
from octavo_operator.autoscale.pods import COST, costs_to_write
from octavo_operator.kube import Kube as OurKube
from octavo_operator.kube import KubeError, connect
from octavo_operator.store import Store

Object = dict[str, Any]


def pod(name: str) -> Object:
    metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}"}
    return {"kind": "Pod", "metadata": metadata, "spec": {"containers": []}, "status": {}}


class Answers(OurKube):
    """Keeps what would be written, and answers as it is told to, pod by pod."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.written: list[tuple[str, Mapping[str, str | None]]] = []
        self.pods: list[Object] = []
        self.deployment: Object | None = None

    async def annotate(self, live: Mapping[str, Any], annotations: Mapping[str, str | None]) -> Object:
        status = self.statuses.pop(0) if self.statuses else 200
        if status != 200:
            raise KubeError(status, "no")
        self.written.append((live["metadata"]["name"], annotations))
        return dict(live)

    async def select(self, kind: str, namespace: str, selector: str = "") -> list[Object]:
        return self.pods

    async def find_ours(self, kind: str, namespace: str, name: str) -> Object | None:
        return self.deployment


@pytest.mark.parametrize(
    ("status", "may_go", "written"),
    [
        (200, True, ["a", "b"]),
        (404, True, ["b"]),  # gone already
        (409, True, ["b"]),  # another one of that name
        (403, True, []),  # an older role: Kubernetes chooses
        (500, False, []),
        (0, False, []),  # no answer, or the Lease may be another's by now
    ],
)
async def test_fewer_may_be_asked_for_when_all_costs_are_written_that_can_be(
    status: int, may_go: bool, written: list[str]
) -> None:
    kube = Answers(status)
    assert await write_costs(kube, costs_to_write([pod("a"), pod("b")], ["a", "b"])) is may_go
    assert [name for name, _ in kube.written] == written


async def test_costs_stay_until_those_that_have_them_are_gone() -> None:
    kube = Answers()
    kube.pods, kube.deployment = [pod("a"), pod("b")], {"spec": {"replicas": 1}}
    cluster = Cluster(kube, Store(), lambda _: None)
    assert await cluster.prepare(("default", "demo"), ["a"])
    kube.pods[0]["metadata"]["annotations"] = dict(kube.written.pop()[1])
    assert await cluster.prepare(("default", "demo"), [])
    assert kube.written == [], "its controller has yet to choose"
    kube.deployment = {"spec": {"replicas": 2}}
    assert await cluster.prepare(("default", "demo"), [])
    assert [(name, annotations[COST]) for name, annotations in kube.written] == [("a", None)]


async def test_who_may_not_lead_any_more_marks_no_pod(
    control_plane: ControlPlane, octavo: Kube, faults: Faults
) -> None:
    container = {"name": "server", "image": "i"}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [container]}}
    made = await octavo.create(body)
    async with connect(control_plane.kubeconfig) as kube:
        late = OurKube(kube.api, may_write=lambda: False)
        faults.reset()
        assert not await write_costs(late, costs_to_write([made], ["a"]))
        assert faults.writes() == []
        assert await write_costs(kube, costs_to_write([made], ["a"]))
    found = await octavo.get("v1", "Pod", "a")
    assert found["metadata"]["annotations"][COST] == "-1"
