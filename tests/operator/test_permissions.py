"""The operator needs no more than the least Role. The chart's is compared with it elsewhere; here it is tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kube_fixture import ControlPlane, Kube, run_deployment
from least_role import LEASE_RULES, RULES
from llm_deployments import IMAGE, RunningOperator, llm_deployment, until_condition
from octavo_operator.kube import connect
from octavo_operator.settings import OperatorSettings

Object = dict[str, Any]


async def service_account(kube: Kube, rules: list[Object]) -> str:
    """A token for an account that these rules, in this namespace, are all that it may do."""
    rbac = "rbac.authorization.k8s.io"
    await kube.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator"}})
    await kube.create({"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": "operator"}, "rules": rules})
    binding = {
        "apiVersion": f"{rbac}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "operator"},
        "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": kube.namespace}],
    }
    await kube.create(binding)
    path = f"/api/v1/namespaces/{kube.namespace}/serviceaccounts/operator/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = await kube._send("post", path, request)
    token: str = answer["status"]["token"]
    return token


def kubeconfig_for(plane: ControlPlane, token: str, path: Path) -> Path:
    document = yaml.safe_load(plane.direct_kubeconfig.read_text())
    document["users"][0]["user"] = {"token": token}
    path.write_text(yaml.safe_dump(document))
    return path


async def owned(kube: Kube, kind: tuple[str, str], uid: str) -> bool:
    found = await kube.get(*kind, "demo")
    return [each["uid"] for each in found["metadata"].get("ownerReferences", [])] == [uid]


@pytest.mark.real
@pytest.mark.usefixtures("node")
async def test_the_least_role_is_enough(control_plane: ControlPlane, octavo: Kube, tmp_path: Path) -> None:
    token = await service_account(octavo, LEASE_RULES + RULES)
    running = RunningOperator(
        OperatorSettings(
            namespaces=(octavo.namespace,),
            kubeconfig=kubeconfig_for(control_plane, token, tmp_path / "config"),
            lease_namespace=octavo.namespace,
            default_image=IMAGE,
            probe_port=None,
        )
    )
    try:
        made = await octavo.create(llm_deployment())
        await until_condition(octavo, "Progressing", "True")
        await run_deployment(octavo, control_plane, "demo")
        await until_condition(octavo, "Ready", "True")
        await octavo.patch(made, {"spec": {"replicas": 2}})
        await until_condition(octavo, "Ready", "False")

        async def told() -> bool:
            reasons = {each["reason"] for each in await octavo.list("v1", "Event") if each["type"] == "Normal"}
            return {"Created", "Scaled", "Ready"} <= reasons

        await octavo.until(told)
        for kind in (("apps/v1", "Deployment"), ("v1", "Service")):
            await octavo.patch(await octavo.get(*kind, "demo"), {"metadata": {"ownerReferences": None}})
            await octavo.until(lambda kind=kind: owned(octavo, kind, made["metadata"]["uid"]), 30, "adoption")
        assert running.counted("error") == 0
        async with connect(tmp_path / "config") as api:
            for _ in range(3):
                await api.record(made, "Normal", "Again", "the same once more")
        again = [each for each in await octavo.list("v1", "Event") if each["reason"] == "Again"]
        assert [(each["count"], each["message"]) for each in again] == [(3, "the same once more")]
    finally:
        running.stop()
        assert running.result.result(timeout=20) == 0
    lease = await octavo.get("coordination.k8s.io/v1", "Lease", "octavo-operator")
    assert not lease["spec"]["holderIdentity"]
