"""What only a real control plane can tell: collection, /scale, Pod Security, columns, what kubectl says."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube_fixture import ControlPlane, Kube, run_deployment
from llm_deployments import API, KIND, Passes, conditions, llm_deployment, operating, reconciling, until_condition

pytestmark = pytest.mark.real
Object = dict[str, Any]


@pytest.fixture
async def passes(control_plane: ControlPlane, octavo: Kube) -> AsyncIterator[Passes]:
    async with reconciling(control_plane, octavo.namespace) as made:
        yield made


def kubectl(plane: ControlPlane, namespace: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("there is no kubectl on the PATH")
    command = [program, f"--kubeconfig={plane.direct_kubeconfig}", f"--namespace={namespace}", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)


async def test_children_are_collected_with_their_llmdeployment_while_no_operator_runs(
    control_plane: ControlPlane, octavo: Kube, passes: Passes
) -> None:
    if not control_plane.has_controller_manager:
        pytest.skip("needs a kube-controller-manager")
    made = await octavo.create(llm_deployment())
    await passes.once()
    await octavo.delete(made)

    async def collected() -> bool:
        left = await octavo.list("apps/v1", "Deployment") + await octavo.list("v1", "Service")
        return not left

    await octavo.until(collected, 60)


async def test_deletion_in_the_foreground_is_held_up_by_nobody(control_plane: ControlPlane, octavo: Kube) -> None:
    if not control_plane.has_controller_manager:
        pytest.skip("needs a kube-controller-manager")
    async with operating(control_plane, octavo.namespace):
        made = await octavo.create(llm_deployment())
        await until_condition(octavo, "Progressing", "True")
        await octavo.delete(made, propagation="Foreground")

        async def gone() -> bool:
            return await octavo.find(API, KIND, "demo") is None

        await octavo.until(gone, 60)
        assert await octavo.list("apps/v1", "Deployment") == []


async def test_scale_reads_and_writes_replicas(octavo: Kube, passes: Passes) -> None:
    made = await octavo.create(llm_deployment(replicas=2))
    await passes.once()
    await octavo.patch(made, {"spec": {"replicas": 3}}, subresource="scale")
    await passes.once()
    assert (await octavo.get("apps/v1", "Deployment", "demo"))["spec"]["replicas"] == 3
    live = await octavo.get(API, KIND, "demo")
    assert live["spec"]["replicas"] == 3
    scale = await octavo.patch(live, {}, subresource="scale")
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"]["selector"] == "octavo.dev/deployment=demo"


@pytest.mark.usefixtures("node")
async def test_a_restricted_namespace_admits_the_pods(
    control_plane: ControlPlane, octavo: Kube, passes: Passes
) -> None:
    if not control_plane.has_controller_manager:
        pytest.skip("needs a kube-controller-manager")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    await octavo.patch(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": octavo.namespace}},
        {"metadata": {"labels": labels}},
    )
    init = {"name": "fetch", "image": "busybox"}
    source = {"persistentVolumeClaim": {"claimName": "models", "path": "llama"}}
    spec: Object = {
        "model": {"source": source},
        "podTemplate": {"initContainers": [init]},
        "resources": {"accelerator": {}},
    }
    await octavo.create(llm_deployment(**spec))
    await passes.once()

    async def admitted() -> list[Object]:
        return await octavo.list("v1", "Pod")

    (pod,) = await octavo.until(admitted, 30)
    assert pod["spec"]["automountServiceAccountToken"] is False
    await octavo.create(llm_deployment("rootful", podTemplate={"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}))
    await passes.once("rootful")

    async def refused() -> bool:
        await passes.once("rootful")
        return (await conditions(octavo, "rootful"))["Degraded"][1] == "PodsRefused"

    await octavo.until(refused, 30)
    assert "hostPath" in (await conditions(octavo, "rootful"))["Degraded"][2]


async def test_what_the_scheduler_says_is_quoted(control_plane: ControlPlane, octavo: Kube, passes: Passes) -> None:
    if not control_plane.has_scheduler:
        pytest.skip("needs a kube-scheduler")
    await octavo.create(llm_deployment(resources={"accelerator": {"resourceName": "example.com/none"}}))
    await passes.once()

    async def told() -> bool:
        await passes.once()
        return (await conditions(octavo))["Scheduled"][0] == "False"

    await octavo.until(told, 30)
    seen = await conditions(octavo)
    (pod,) = await octavo.list("v1", "Pod")
    words = next(each["message"] for each in pod["status"]["conditions"] if each["type"] == "PodScheduled")
    assert "nodes" in words
    assert seen["Scheduled"][1] == "Unschedulable" and seen["Scheduled"][2].startswith("1 of 1 pods have no node: ")
    assert "nodes" in seen["Ready"][2]


async def test_a_quota_that_is_used_up_is_told(control_plane: ControlPlane, octavo: Kube, passes: Passes) -> None:
    if not control_plane.has_controller_manager:
        pytest.skip("needs a kube-controller-manager")
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    await octavo.create(quota)

    async def counted() -> bool:
        return bool((await octavo.get("v1", "ResourceQuota", "none")).get("status", {}).get("hard"))

    await octavo.until(counted, 30)
    await octavo.create(llm_deployment())
    await passes.once()

    async def told() -> bool:
        await passes.once()
        return (await conditions(octavo))["Degraded"][:2] == ("True", "PodsRefused")

    await octavo.until(told, 30)
    assert "exceeded quota" in (await conditions(octavo))["Degraded"][2]


@pytest.mark.usefixtures("node")
async def test_kubectl_get_shows_ready_and_desired_replicas_model_url_and_age(
    control_plane: ControlPlane, octavo: Kube, passes: Passes
) -> None:
    source = {"source": {"builtin": {"name": "demo"}}}
    await octavo.create(llm_deployment(replicas=2, model={"name": "demo-chat"} | source))
    await passes.once()
    await run_deployment(octavo, control_plane, "demo", ready=1)
    await passes.once()
    shown = kubectl(control_plane, octavo.namespace, "get", "llmd")
    head, row = shown.stdout.splitlines()
    assert head.split() == ["NAME", "READY", "DESIRED", "MODEL", "URL", "AGE"]
    url = f"http://demo.{octavo.namespace}.svc:8000/v1"
    assert row.split()[:5] == ["demo", "1", "2", "demo-chat", url]
    assert "demo" in kubectl(control_plane, octavo.namespace, "get", "octavo").stdout


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ("replcas: 2", "spec.replcas"),
        ("replicas: two", "spec.replicas"),
        ("server: {dtype: fp16}", "spec.server.dtype"),
        ("server: {args: [--port=1]}", "spec.server.args"),
    ],
)
async def test_kubectl_apply_refuses_a_typo_with_the_path_of_the_field(
    control_plane: ControlPlane, octavo: Kube, wrong: str, path: str
) -> None:
    text = yaml.safe_dump(llm_deployment()) + f"  {wrong}\n"
    refused = kubectl(control_plane, octavo.namespace, "apply", "-f", "-", given=text)
    assert refused.returncode != 0 and path in refused.stderr


async def test_kubectl_apply_refuses_two_sources(control_plane: ControlPlane, octavo: Kube) -> None:
    both = {"source": {"builtin": {"name": "demo"}, "path": {"path": "/x"}}}
    text = yaml.safe_dump(llm_deployment(model=both))
    refused = kubectl(control_plane, octavo.namespace, "apply", "-f", "-", given=text)
    assert refused.returncode != 0 and "spec.model.source" in refused.stderr
    assert "exactly one source must be given" in refused.stderr


async def test_the_crd_fits_a_client_side_apply_and_explains_itself(control_plane: ControlPlane, octavo: Kube) -> None:
    """An annotation, which client-side apply keeps the whole object in, holds 256 KiB."""
    crd = Path("crds/octavo.dev_llmdeployments.yaml")
    applied = kubectl(control_plane, octavo.namespace, "apply", "--dry-run=server", "-f", str(crd))
    assert applied.returncode == 0, applied.stderr
    explained = kubectl(control_plane, octavo.namespace, "explain", "llmd.spec.termination.drainSeconds")
    assert "Default: 120." in " ".join(explained.stdout.split())


@pytest.mark.usefixtures("node")
async def test_in_a_whole_cluster_kubectl_apply_gives_pods_that_a_kubelet_would_accept(
    control_plane: ControlPlane, octavo: Kube, node: str
) -> None:
    if not (control_plane.has_controller_manager and control_plane.has_scheduler):
        pytest.skip("needs a kube-controller-manager and a kube-scheduler")
    spec: Object = {"replicas": 2, "resources": {"accelerator": {"products": ["H100"]}, "cpu": "4", "memory": "48Gi"}}
    async with operating(control_plane, octavo.namespace):
        applied = kubectl(control_plane, octavo.namespace, "apply", "-f", "-", given=json.dumps(llm_deployment(**spec)))
        assert applied.returncode == 0, applied.stderr

        async def bound() -> list[Object]:
            pods = await octavo.list("v1", "Pod", labels="octavo.dev/deployment=demo")
            return pods if len(pods) == 2 and all(pod["spec"].get("nodeName") == node for pod in pods) else []

        pods = await octavo.until(bound, 60, "the scheduler to bind both pods")
        container = pods[0]["spec"]["containers"][0]
        assert container["args"][:6] == ["serve", "demo", "--served-model-name", "demo", "--host", "0.0.0.0"]
        assert container["ports"] == [{"name": "http", "containerPort": 8000, "protocol": "TCP"}]
        assert container["startupProbe"]["httpGet"]["path"] == "/ready"
        assert container["livenessProbe"]["httpGet"]["path"] == "/health"
        assert container["resources"] == {
            "requests": {"cpu": "4", "memory": "48Gi", "nvidia.com/gpu": "1"},
            "limits": {"memory": "48Gi", "nvidia.com/gpu": "1"},
        }
        assert container["lifecycle"] == {"preStop": {"sleep": {"seconds": 10}}}
        assert pods[0]["spec"]["terminationGracePeriodSeconds"] == 160
        await run_deployment(octavo, control_plane, "demo")
        await until_condition(octavo, "Ready", "True")
        await until_condition(octavo, "Scheduled", "True")
        listed = kubectl(control_plane, octavo.namespace, "wait", "--for=condition=Ready", "llmd/demo", "--timeout=10s")
        assert listed.returncode == 0, listed.stderr
