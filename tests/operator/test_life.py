"""The life of an LLMDeployment in a whole cluster: rest, scaling down, lost nodes, deletion, adoption, a new server."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from kube_fixture import ControlPlane, Faults, Kube, add_node, delete_pod, finish_job, run_deployment
from kube_fixture.real import RealControlPlane
from llm_deployments import (
    API,
    KIND,
    conditions,
    llm_deployment,
    operating,
    reconciling,
    until_condition,
)
from octavo_operator.api import parse
from octavo_operator.render import cache_name
from octavo_operator.status import condition
from octavo_operator.workqueue import Retry

pytestmark = pytest.mark.real
Object = dict[str, Any]
CHILDREN = (
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
)
CACHED: Object = {
    "model": {"source": {"huggingFace": {"repo": "org/model"}}},
    "storage": {"cache": {"size": "1Gi"}},
}
COST = "controller.kubernetes.io/pod-deletion-cost"


@pytest.fixture(autouse=True)
def _whole(control_plane: ControlPlane) -> None:
    if not (control_plane.has_controller_manager and control_plane.has_scheduler):
        pytest.skip("needs a kube-controller-manager and a kube-scheduler")


@contextlib.asynccontextmanager
async def nodes(kube: Kube, *names: str) -> AsyncIterator[list[Object]]:
    made = [await add_node(kube, f"{name}-{kube.namespace}", gpus=1) for name in names]
    try:
        yield made
    finally:
        for node in made:
            with contextlib.suppress(Exception):
                await kube.delete(node)


async def pods(kube: Kube, name: str = "demo") -> list[Object]:
    return await kube.list("v1", "Pod", labels=f"octavo.dev/deployment={name}")


def ending(found: list[Object]) -> list[Object]:
    return [pod for pod in found if "deletionTimestamp" in pod["metadata"]]


async def until_pods(kube: Kube, check: Callable[[list[Object]], bool], what: str) -> list[Object]:
    async def reached() -> list[list[Object]]:
        found = await pods(kube)
        return [found] if check(found) else []

    return (await kube.until(reached, 30, what))[0]


async def until_status(kube: Kube, check: Callable[[Object], bool], what: str) -> Object:
    """The status that passed: its parts are of one pass, but what they tell of is heard by several watches."""

    async def reached() -> Object | None:
        status: Object = (await kube.get(API, KIND, "demo"))["status"]
        return status if check(status) else None

    found = await kube.until(reached, 30, what)
    assert found is not None
    return found


async def uids(kube: Kube, name: str = "demo") -> list[str]:
    return [(await kube.get(*kind, name))["metadata"]["uid"] for kind in CHILDREN]


@pytest.mark.usefixtures("node")
async def test_suspension_drains_keeps_everything_else_and_is_ready_when_no_pod_is_left(
    control_plane: ControlPlane, octavo: Kube
) -> None:
    async with operating(control_plane, octavo.namespace):
        made = await octavo.create(llm_deployment(replicas=2))
        await until_condition(octavo, "Progressing", "True")
        await run_deployment(octavo, control_plane, "demo")
        await until_condition(octavo, "Ready", "True")
        kept = await uids(octavo)
        made = await octavo.patch(made, {"spec": {"suspend": True}})
        await until_condition(octavo, "Progressing", "True", reason="Draining")
        seen = await conditions(octavo)
        assert seen["Progressing"][2] == "no replica is wanted; 2 pods end their requests"
        assert seen["Ready"][:2] == ("False", "Draining") and seen["Available"][:2] == ("False", "Suspended")
        for pod in await pods(octavo):
            # Drain as at any other end: the wait for clients, the requests, and a margin.
            assert pod["metadata"]["deletionGracePeriodSeconds"] == 10 + 120 + 30
            await delete_pod(octavo, pod)
        await until_condition(octavo, "Ready", "True", reason="Suspended")
        await octavo.patch(made, {"spec": {"replicas": 3}}, subresource="scale")
        await until_condition(octavo, "Ready", "True", reason="Suspended")
        live = await octavo.get(API, KIND, "demo")
        assert live["spec"]["replicas"] == 3 and live["status"]["desiredReplicas"] == live["status"]["replicas"] == 0
        assert await pods(octavo) == [] and await uids(octavo) == kept
        await octavo.patch(live, {"spec": {"suspend": False}})
        await until_condition(octavo, "Progressing", "True")
        await run_deployment(octavo, control_plane, "demo")
        await until_condition(octavo, "Ready", "True", reason="ReplicasReady")
        assert len(await pods(octavo)) == 3 and await uids(octavo) == kept


@pytest.mark.usefixtures("node")
async def test_of_ready_replicas_the_one_with_the_least_deletion_cost_goes_and_drains(
    control_plane: ControlPlane, octavo: Kube
) -> None:
    """Whoever knows the load writes the cost; what is not ready goes before all others, whatever its cost."""
    async with operating(control_plane, octavo.namespace):
        made = await octavo.create(
            llm_deployment(replicas=3, termination={"propagationSeconds": 7, "drainSeconds": 60})
        )
        await until_condition(octavo, "Progressing", "True")
        await run_deployment(octavo, control_plane, "demo")
        await until_condition(octavo, "Ready", "True")
        found = await pods(octavo)
        for pod, cost in zip(found, ("50", "-5", "10"), strict=True):
            await octavo.patch(pod, {"metadata": {"annotations": {COST: cost}}})
        await octavo.patch(made, {"spec": {"replicas": 2}}, subresource="scale")
        left = await until_pods(octavo, lambda all_of_them: len(ending(all_of_them)) == 1, "one pod to end")
        (gone,) = ending(left)
        assert gone["metadata"]["uid"] == found[1]["metadata"]["uid"]
        assert gone["metadata"]["deletionGracePeriodSeconds"] == 7 + 60 + 30
        await until_condition(octavo, "Ready", "True")
        assert (await octavo.get(API, KIND, "demo"))["status"]["replicas"] == 2


async def test_a_replica_on_a_node_that_does_not_answer_is_not_counted_and_is_replaced(
    control_plane: ControlPlane, octavo: Kube
) -> None:
    """What a kubelet and the controller of nodes would write is written here; the eviction is the cluster's own."""
    unreachable = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}
    spec: Object = {"replicas": 2, "resources": {"accelerator": {}}}
    spec["podTemplate"] = {"tolerations": [unreachable | {"operator": "Exists", "tolerationSeconds": 2}]}
    async with operating(control_plane, octavo.namespace), nodes(octavo, "a", "b") as (first, _):
        await octavo.create(llm_deployment(**spec))
        await until_condition(octavo, "Progressing", "True")
        await run_deployment(octavo, control_plane, "demo")
        await until_condition(octavo, "Ready", "True")
        lost = next(pod for pod in await pods(octavo) if pod["spec"]["nodeName"] == first["metadata"]["name"])
        said = [
            each | ({"status": "False"} if each["type"] == "Ready" else {}) for each in lost["status"]["conditions"]
        ]
        await octavo.patch(lost, {"status": {"conditions": said}}, subresource="status")
        words = f"1 on node {first['metadata']['name']}, which does not answer"
        status = await until_status(
            octavo, lambda now: words in condition(now, "Progressing")["message"], "the node's silence to be told"
        )
        assert condition(status, "Ready")["status"] == "False"
        assert condition(status, "Available")["status"] == "True" and status["readyReplicas"] == 1
        await octavo.patch(first, {"spec": {"taints": [unreachable]}})
        await until_pods(octavo, lambda found: len(ending(found)) == 1 and len(found) == 3, "the eviction")
        # Its accelerator is taken, and the other node's, too: its successor has no node.
        await until_condition(octavo, "Scheduled", "False")
        # The scheduler may be done before its ReplicaSet and its Deployment have counted it: until then it is one.
        status = await until_status(octavo, lambda now: now["replicas"] == 2, "the successor to be counted")
        assert condition(status, "Scheduled")["status"] == "False" and status["readyReplicas"] == 1
        assert len(await pods(octavo)) == 3
        await octavo.delete(first)
        await delete_pod(octavo, lost)
        async with nodes(octavo, "c"):
            await run_deployment(octavo, control_plane, "demo")
            await until_condition(octavo, "Ready", "True")


async def left_over(kube: Kube, foreign: str, retained: str) -> list[str]:
    """All but what is foreign, and what belongs to the volume that is retained. Pods that end are let end."""
    left = []
    kinds = (*CHILDREN, (API, KIND), ("v1", "Pod"), ("apps/v1", "ReplicaSet"), ("batch/v1", "Job"))
    for kind in (*kinds, ("v1", "PersistentVolumeClaim")):
        for each in await kube.list(*kind):
            name, labels = each["metadata"]["name"], each["metadata"].get("labels") or {}
            if name != foreign and labels.get("octavo.dev/cache") != retained:
                left.append(f"{kind[1]} {name}")
                if kind[1] == "Pod" and "deletionTimestamp" in each["metadata"]:
                    await delete_pod(kube, each)
    return left


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("operator", ["down", "up"])
async def test_deleted_in_any_phase_nothing_is_left_and_nothing_foreign_is_touched(
    control_plane: ControlPlane, octavo: Kube, faults: Faults, operator: str
) -> None:
    made: dict[str, Object] = {}
    for name, spec in {
        "untouched": {},
        "half-made": {},
        "downloading": CACHED,
        "sharing": CACHED,
        "pending": {"resources": {"accelerator": {"resourceName": "example.com/none"}}},
        "ready": {"replicas": 2},
        "rolling": {},
        "suspended": {"suspend": True},
        "invalid": {"storage": {"cache": {"size": "1Gi"}}, "model": CACHED["model"], "observability": {}},
        "retained": {**CACHED, "storage": {"cache": {"size": "1Gi", "retain": True, "storageClassName": "other"}}},
    }.items():
        made[name] = await octavo.create(llm_deployment(name, **spec))
    volume = cache_name(parse(made["retained"]))
    config: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ready"}, "data": {"a": "b"}}
    port = [{"port": 80}]
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "theirs"}, "spec": {"ports": port}}
    foreign = [await octavo.create(config), await octavo.create(theirs)]
    async with reconciling(control_plane, octavo.namespace) as passes:
        faults.fail_write(3, "disconnect", match=lambda record: "half-made" in (record.name or ""))
        with pytest.raises(Retry):
            await passes.once("half-made")
        for name in set(made) - {"untouched", "half-made"}:
            await passes.once(name)
        await run_deployment(octavo, control_plane, "ready")
        await run_deployment(octavo, control_plane, "rolling")
        await octavo.patch(made["rolling"], {"spec": {"server": {"maxModelLength": 99}}})
        await passes.once("rolling")
    async with contextlib.AsyncExitStack() as stack:
        if operator == "up":
            await stack.enter_async_context(operating(control_plane, octavo.namespace))
            await until_condition(octavo, "Progressing", "True", "untouched")
        faults.reset()
        for each in made.values():
            await octavo.delete(each, propagation="Foreground" if each["metadata"]["name"] == "ready" else "Background")

        async def gone() -> bool:
            left[:] = await left_over(octavo, "theirs", volume or "")
            return not left

        left: list[str] = []
        with contextlib.suppress(TimeoutError):
            await octavo.until(gone, 60)
        assert left == []
        created = [each for each in faults.writes() if each.method == "PATCH" and each.subresource is None]
        assert operator == "up" or created == []
    for each in foreign:
        found = await octavo.get(each["apiVersion"], each["kind"], each["metadata"]["name"])
        assert found["metadata"]["resourceVersion"] == each["metadata"]["resourceVersion"]
    kept = await octavo.get("v1", "PersistentVolumeClaim", volume or "")
    assert "deletionTimestamp" not in kept["metadata"]


@pytest.mark.usefixtures("node")
async def test_what_was_orphaned_is_adopted_as_it_is_by_a_new_installation(
    control_plane: ControlPlane, octavo: Kube, faults: Faults
) -> None:
    """The operator is uninstalled, its LLMDeployment deleted without what it made, and both come again."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("there is no kubectl on the PATH")
    async with operating(control_plane, octavo.namespace):
        made = await octavo.create(llm_deployment(**CACHED))
        volume = cache_name(parse(made)) or ""
        await until_condition(octavo, "ModelCached", "False")
        await finish_job(octavo, control_plane, volume)
        await until_condition(octavo, "ModelCached", "True")
        await run_deployment(octavo, control_plane, "demo", on_nodes=False)  # its volume has no provisioner here
        await until_condition(octavo, "Ready", "True")
    before = [*await uids(octavo), *(pod["metadata"]["uid"] for pod in await pods(octavo))]
    cluster = [f"--kubeconfig={control_plane.direct_kubeconfig}", f"--namespace={octavo.namespace}"]
    command = [program, *cluster, "delete", "llmd/demo", "--cascade=orphan"]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
    for kind in (*CHILDREN, ("v1", "PersistentVolumeClaim")):
        name = volume if kind[1] == "PersistentVolumeClaim" else "demo"
        assert not (await octavo.get(*kind, name))["metadata"].get("ownerReferences")
    again = await octavo.create(llm_deployment(**CACHED))
    async with operating(control_plane, octavo.namespace):
        await until_condition(octavo, "Ready", "True")
    assert [*await uids(octavo), *(pod["metadata"]["uid"] for pod in await pods(octavo))] == before
    for kind in (*CHILDREN, ("v1", "PersistentVolumeClaim")):
        found = await octavo.get(*kind, volume if kind[1] == "PersistentVolumeClaim" else "demo")
        assert [each["uid"] for each in found["metadata"]["ownerReferences"]] == [again["metadata"]["uid"]]


def restart(real: RealControlPlane) -> None:
    with real.without_api_server():
        pass


async def test_a_new_api_server_is_followed_without_a_restart(control_plane: ControlPlane, octavo: Kube) -> None:
    """Killed, and started again on the same etcd: its watches begin anew, and older versions are gone (410)."""
    if control_plane.real is None:
        pytest.skip("needs an API server of its own")
    names = [f"model-{index}" for index in range(10)]
    async with operating(control_plane, octavo.namespace) as running:
        made = {name: await octavo.create(llm_deployment(name)) for name in names}
        for name in names:
            await until_condition(octavo, "Progressing", "True", name)
        restart(control_plane.real)  # in this thread: it would end with another
        for name in names[:5]:
            await octavo.patch(made[name], {"spec": {"replicas": 3}})
        await octavo.delete(await octavo.get("v1", "Service", names[9]))
        await octavo.create(llm_deployment("later"))

        async def converged() -> bool:
            deployments = {each["metadata"]["name"]: each for each in await octavo.list("apps/v1", "Deployment")}
            wanted = dict.fromkeys(names[:5], 3) | dict.fromkeys([*names[5:], "later"], 1)
            services = {each["metadata"]["name"] for each in await octavo.list("v1", "Service")}
            return (
                {name: each["spec"]["replicas"] for name, each in deployments.items()}
                == wanted
                == (wanted if services == set(wanted) else {})
            )

        await octavo.until(converged, 60, "everything as it is wanted", retry=(503,))
        assert not running.result.done()
