"""The chart on a real API server: every object is taken, and what RBAC grants is enough for the operator's work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml
from kubernetes.aio.client import CoreV1Api

from kube_fixture import ControlPlane, Kube, add_node, run_deployment
from llm_deployments import RunningOperator, llm_deployment, until_condition
from octavo_operator.api.crd import custom_resource_definition
from octavo_operator.settings import OperatorSettings

pytestmark = pytest.mark.real

CHART = Path(__file__).resolve().parents[2] / "charts" / "octavo"
VALUES: list[dict[str, Any]] = [
    {},
    {
        "scope": "Cluster",
        "replicas": 2,
        "imagePullSecrets": [{"name": "pull"}],
        "podAnnotations": {"a/b": "c"},
        "podLabels": {"team": "search"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "x", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    },
]

Object = dict[str, Any]


def render(namespace: str, values: dict[str, Any]) -> list[Object]:
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values, name="octavo", namespace=namespace)
    texts = [text for path, text in files.items() if not path.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


@pytest.mark.parametrize("values", VALUES, ids=["Namespace", "Cluster"])
async def test_the_api_server_takes_every_object_with_no_field_unknown(kube: Kube, values: dict[str, Any]) -> None:
    for item in render(kube.namespace, values):
        await kube.create(item, dry_run=True)


async def test_the_operators_pod_is_admitted_where_pod_security_is_restricted(kube: Kube) -> None:
    level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await kube.patch({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": kube.namespace}}, level)
    objects = {item["kind"]: item for item in render(kube.namespace, {})}
    await kube.create(objects["ServiceAccount"])
    template = objects["Deployment"]["spec"]["template"]
    metadata = {"name": "operator", **template["metadata"]}
    await kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}, dry_run=True)


@pytest.mark.parametrize("scope", ["Namespace", "Cluster"])
async def test_the_operator_does_its_work_with_the_rights_that_the_chart_grants(
    scope: str, control_plane: ControlPlane, kube: Kube, tmp_path: Path
) -> None:
    await kube.install_crd(custom_resource_definition())
    granted = [item for item in render(kube.namespace, {"scope": scope}) if item["kind"] != "Deployment"]
    for item in granted:
        await kube.apply(item)
    node = await add_node(kube, f"node-{kube.namespace}")
    settings = OperatorSettings(
        namespaces=(kube.namespace,) if scope == "Namespace" else (),
        default_image="an/image",
        lease_namespace=kube.namespace,
        probe_port=None,
        kubeconfig=await kubeconfig_of(kube, control_plane, "octavo", tmp_path),
    )
    operator = RunningOperator(settings)
    try:
        await kube.create(llm_deployment())

        async def made() -> bool:
            return await kube.find("apps/v1", "Deployment", "demo") is not None

        await kube.until(made, 30, "the Deployment")
        await run_deployment(kube, control_plane, "demo")
        await until_condition(kube, "Ready", "True")
        deployment = await kube.get("apps/v1", "Deployment", "demo")
        await kube.patch(deployment, {"spec": {"replicas": 3}})

        async def corrected() -> bool:
            return bool((await kube.get("apps/v1", "Deployment", "demo"))["spec"]["replicas"] == 1)

        await kube.until(corrected, 30, "the drift to be corrected")
        reasons = {
            event["reason"] for event in await kube.list("v1", "Event", fields="involvedObject.kind=LLMDeployment")
        }
        assert "Ready" in reasons
        lease = await kube.get("coordination.k8s.io/v1", "Lease", "octavo-operator")
        assert lease["spec"]["holderIdentity"]
    finally:
        operator.stop()
        assert operator.result.result(timeout=20) == 0
        await kube.delete(node)
        for item in granted:
            if item["kind"].startswith("Cluster"):
                await kube.delete(item)


async def kubeconfig_of(kube: Kube, plane: ControlPlane, account: str, folder: Path) -> Path:
    """A kubeconfig with a token of the ServiceAccount and nothing else."""
    request: Any = {"spec": {"expirationSeconds": 3600}}
    answer: Any = await CoreV1Api(kube.api).create_namespaced_service_account_token(account, kube.namespace, request)
    document = yaml.safe_load(plane.direct_kubeconfig.read_text())
    document["users"][0]["user"] = {"token": answer.status.token}
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(document))
    return file
