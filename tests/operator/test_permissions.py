"""The operator needs no more than the least Role. The chart's is compared with it elsewhere; here it is tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accounts import kubeconfig_for, service_account
from kube_fixture import ControlPlane, Kube, run_deployment
from least_role import LEASE_RULES, RULES
from llm_deployments import IMAGE, RunningOperator, llm_deployment, until_condition
from octavo_operator.kube import connect
from octavo_operator.settings import OperatorSettings

Object = dict[str, Any]


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
        await run_deployment(octavo, control_plane, "demo", on_nodes=False)
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
