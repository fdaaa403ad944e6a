"""What machines would do: nodes with accelerators, pods that become ready, on a control plane that has no kubelet."""

from __future__ import annotations

import contextlib
from typing import Any

from kubernetes.aio.client.exceptions import ApiException

from kube_fixture.client import Kube, Object
from kube_fixture.emulator.store import now
from kube_fixture.plane import ControlPlane

GPU = "nvidia.com/gpu"


async def add_node(
    kube: Kube,
    name: str,
    *,
    gpus: int = 8,
    cpu: str = "64",
    memory: str = "512Gi",
    disk: str = "4Ti",
    labels: dict[str, str] | None = None,
) -> Object:
    """A Node that is ready and has room. A scheduler binds pods to it. It is the caller's to delete."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels or {}}}
    await kube.create(node)
    room = {"cpu": cpu, "memory": memory, "ephemeral-storage": disk, "pods": "110", GPU: str(gpus)}
    ready = _condition("Ready", "KubeletReady")
    status = {"capacity": room, "allocatable": room, "conditions": [ready]}
    await kube.patch(node, {"status": status}, subresource="status")
    # Admission taints a new node, and the controller that takes the taint away wants a kubelet's lease.
    return await kube.patch(node, {"spec": {"taints": None}})


async def set_pod_ready(kube: Kube, pod: Object, *, ready: bool = True) -> Object:
    """What a kubelet writes to a pod that runs and is ready, or is not."""
    names = [container["name"] for container in pod["spec"]["containers"]]
    state = {"running": {"startedAt": now()}}
    containers = [
        {"name": name, "ready": ready, "restartCount": 0, "image": "", "imageID": "", "started": True, "state": state}
        for name in names
    ]
    kinds = ("Ready", "ContainersReady")
    conditions = [_condition("PodScheduled", ""), *(_condition(kind, "", ready) for kind in kinds)]
    address = {"podIP": "10.1.0.1", "podIPs": [{"ip": "10.1.0.1"}], "hostIP": "10.2.0.1", "startTime": now()}
    status = {"phase": "Running", "conditions": conditions, "containerStatuses": containers, **address}
    return await kube.patch(pod, {"status": status}, subresource="status")


async def delete_pod(kube: Kube, pod: Object) -> None:
    """At once, as when its kubelet has seen it end; no error where it is gone already."""
    with contextlib.suppress(ApiException):
        await kube.delete(pod, grace=0)


async def run_deployment(
    kube: Kube,
    plane: ControlPlane,
    name: str,
    *,
    ready: int | None = None,
    on_nodes: bool = True,
    timeout: float = 30,
) -> Object:
    """Bring a Deployment to where its controller and kubelets would, with `ready` (None: all) of its replicas ready.

    Where there is a controller manager it makes the pods and counts them, and this only makes pods ready. Elsewhere
    pods are made and counted here, so that a test reads the same on every control plane. Returns the Deployment.

    Where there is a scheduler a pod is made ready when it has a node, as by a kubelet: the scheduler may say of one
    that has none, at any time after, that it is unschedulable. `on_nodes` false: also pods that never get one.
    """
    on_nodes = on_nodes and plane.has_scheduler
    deployment = await kube.get("apps/v1", "Deployment", name)
    wanted = int(deployment["spec"].get("replicas", 1))
    target = wanted if ready is None else min(ready, wanted)
    if not plane.has_controller_manager:
        return await _stand_in(kube, deployment, wanted, target)

    async def settled() -> Object | None:
        now_at = await kube.get("apps/v1", "Deployment", name)
        pods = await _pods(kube, now_at)
        for index, pod in enumerate(pods):
            if "deletionTimestamp" in pod["metadata"]:
                await delete_pod(kube, pod)
            elif _is_ready(pod) != (index < target) and (pod["spec"].get("nodeName") or not on_nodes):
                await set_pod_ready(kube, pod, ready=index < target)
        status = now_at.get("status", {})
        counted = (status.get("replicas", 0), status.get("readyReplicas", 0), status.get("updatedReplicas", 0))
        current = status.get("observedGeneration", 0) >= now_at["metadata"]["generation"]
        return now_at if current and counted == (wanted, target, wanted) and len(pods) == wanted else None

    return await kube.until(settled, timeout, f"{name} to have {target} of {wanted} replicas ready", retry=(404, 409))


async def finish_job(
    kube: Kube, plane: ControlPlane, name: str, *, exit_code: int = 0, words: str = "", timeout: float = 30
) -> None:
    """End a Job's pod as its container would, with an exit code and last words, and wait until the Job says so.

    Where there is no controller manager the pod is made here, and the Job's condition written: as if the code were one
    that its podFailurePolicy ends the Job for.
    """
    job = await kube.get("batch/v1", "Job", name)
    labels = job["spec"]["template"]["metadata"]["labels"]
    if not plane.has_controller_manager:
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
        metadata = {"generateName": f"{name}-", "labels": labels, "ownerReferences": [owner | {"controller": True}]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": job["spec"]["template"]["spec"]}
        await _end_pod(kube, await kube.create(body), exit_code, words)
        condition = _condition("Failed" if exit_code else "Complete", "")
        await kube.patch(job, {"status": {"conditions": [condition]}}, subresource="status")
        return

    async def ended() -> bool:
        live = await kube.get("batch/v1", "Job", name)
        done = {each["type"] for each in live.get("status", {}).get("conditions", []) if each["status"] == "True"}
        if done & {"Complete", "Failed"}:
            return True
        for pod in await kube.list("v1", "Pod", labels=f"batch.kubernetes.io/job-name={name}"):
            if pod["status"]["phase"] == "Pending":
                await _end_pod(kube, pod, exit_code, words)
        return False

    await kube.until(ended, timeout, f"the Job {name} to end", retry=(404, 409))


async def _end_pod(kube: Kube, pod: Object, exit_code: int, words: str) -> None:
    (container,) = pod["spec"]["containers"]
    end = {
        "exitCode": exit_code,
        "message": words,
        "reason": "Error" if exit_code else "Completed",
        "finishedAt": now(),
    }
    told = {"name": container["name"], "ready": False, "restartCount": 0, "image": "", "imageID": "", "started": False}
    statuses = [told | {"state": {"terminated": end}}]
    status = {"phase": "Failed" if exit_code else "Succeeded", "containerStatuses": statuses}
    await kube.patch(pod, {"status": status}, subresource="status")


async def _stand_in(kube: Kube, deployment: Object, wanted: int, target: int) -> Object:
    metadata = deployment["metadata"]
    pods = await _pods(kube, deployment)
    for pod in pods[wanted:]:
        await delete_pod(kube, pod)
    for index in range(len(pods), wanted):
        template = deployment["spec"]["template"]
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"], "uid": metadata["uid"]}
        labels = {**template["metadata"], "generateName": f"{metadata['name']}-", "ownerReferences": [owner]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": labels, "spec": template["spec"]}
        pods.append(await kube.create(body, manager=f"stand-in-{index}"))
    for index, pod in enumerate(pods[:wanted]):
        await set_pod_ready(kube, pod, ready=index < target)
    available = _condition("Available", "", target == wanted)
    status: dict[str, Any] = {
        "observedGeneration": metadata["generation"],
        "replicas": wanted,
        "updatedReplicas": wanted,
        "readyReplicas": target,
        "availableReplicas": target,
        "conditions": [available],
    }
    return await kube.patch(deployment, {"status": status}, subresource="status")


async def _pods(kube: Kube, deployment: Object) -> list[Object]:
    wanted = deployment["spec"]["selector"]["matchLabels"]
    labels = ",".join(f"{name}={value}" for name, value in wanted.items())
    return await kube.list("v1", "Pod", labels=labels)


def _is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _condition(kind: str, reason: str, true: bool = True) -> Object:
    status = "True" if true else "False"
    return {"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": now()}
