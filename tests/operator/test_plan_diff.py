"""`octavo plan --diff`: what applying a manifest would change, asked of a real API server, which is left as it is."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from accounts import kubeconfig_for, service_account
from kube_fixture import ControlPlane, Faults, Kube
from llm_deployments import IMAGE, KIND, SETTINGS, Passes, llm_deployment, reconciling
from octavo_cli.errors import CommandError
from octavo_cli.plan import plan as command
from octavo_operator.diff_text import unified_diff
from offline import ask_nobody

Object = dict[str, Any]
API = "octavo.dev/v1alpha1"

pytestmark = pytest.mark.real


@pytest.fixture
async def passes(control_plane: ControlPlane, octavo: Kube, faults: Faults) -> AsyncIterator[Passes]:
    async with reconciling(control_plane, octavo.namespace) as made:
        yield made


@dataclass
class Ended:
    """The command, as `octavo` would have ended with it."""

    result: Result

    @property
    def code(self) -> int:
        error = self.result.exception
        assert error is None or isinstance(error, CommandError), self.result.exc_info
        return int(self.result.return_value) if error is None else error.exit_code

    @property
    def out(self) -> str:
        return self.result.stdout

    @property
    def told(self) -> str:
        return f"{self.result.stderr}{self.result.exception or ''}"

    @property
    def titles(self) -> list[str]:
        return [line.removeprefix("+++ planned/") for line in self.out.splitlines() if line.startswith("+++ ")]


class Plan:
    """The command, for manifests of one namespace."""

    def __init__(self, kubeconfig: Path, namespace: str, folder: Path) -> None:
        self._base = ["--kubeconfig", str(kubeconfig), "--namespace", namespace]
        self._file = folder / "manifest.yaml"

    async def diff(self, manifest: Object, *more: str) -> Ended:
        self._file.write_text(yaml.safe_dump(manifest))
        arguments = ["--diff", "-f", str(self._file), *self._base, *more]
        return Ended(await asyncio.to_thread(CliRunner().invoke, command, arguments, standalone_mode=False))


@pytest.fixture
def plan(control_plane: ControlPlane, octavo: Kube, tmp_path: Path) -> Plan:
    return Plan(control_plane.kubeconfig, octavo.namespace, tmp_path)


async def applied(kube: Kube, passes: Passes, manifest: Object) -> Object:
    """As `kubectl apply --server-side` does, and what the operator makes of it."""
    made = await kube.apply(manifest, manager="kubectl")
    await passes.until_done()
    return made


async def test_what_is_there_as_it_should_be_is_no_difference(octavo: Kube, passes: Passes, plan: Plan) -> None:
    spec: Object = {"replicas": 2, "resources": {"cpu": "0.5", "memory": "1024Mi"}}
    await applied(octavo, passes, llm_deployment(**spec))
    result = await plan.diff(llm_deployment(**spec))
    # Neither --server-image nor --pull-image nor --operator-namespace is given: the cluster tells them.
    assert (result.code, result.out) == (0, ""), result.told


async def test_the_secret_of_the_gateways_key_is_the_one_that_the_pods_mount(
    octavo: Kube, passes: Passes, plan: Plan
) -> None:
    passes.reconciler._settings = dataclasses.replace(SETTINGS, gateway_key_secret="own")
    await applied(octavo, passes, llm_deployment())
    result = await plan.diff(llm_deployment())
    assert (result.code, result.out) == (0, ""), result.told


async def test_a_changed_manifest_is_shown_with_what_the_operator_would_make_of_it_and_changes_nothing(
    octavo: Kube, passes: Passes, plan: Plan, faults: Faults
) -> None:
    def manifest(token: str, **more: Any) -> Object:
        env = [{"name": "HF_TOKEN", "value": token}, {"name": "LANG", "value": "C"}]
        return llm_deployment(server={"env": env, **more})

    await applied(octavo, passes, manifest("hunter2"))
    before = await everything(octavo)
    faults.reset()
    result = await plan.diff(manifest("hunter3", maxModelLength=512), "--server-image", "registry.example/server:9")
    assert result.code == 1 and result.titles == ["LLMDeployment/demo", "Deployment/demo"], result.told
    assert "+    maxModelLength: 512" in result.out and "+        - --max-model-len" in result.out
    assert f"-        image: {IMAGE}" in result.out and "+        image: registry.example/server:9" in result.out
    assert "hunter" not in result.out + result.told
    assert "*** (before)" in result.out and "*** (after)" in result.out
    assert await everything(octavo) == before
    assert all("dryRun=All" in str(write) for write in faults.writes())


async def everything(kube: Kube) -> dict[str, str]:
    kinds = [(API, KIND), ("apps/v1", "Deployment"), ("v1", "Service"), ("networking.k8s.io/v1", "NetworkPolicy")]
    kinds += [("policy/v1", "PodDisruptionBudget"), ("batch/v1", "Job"), ("v1", "PersistentVolumeClaim")]
    found = [each for kind in kinds for each in await kube.list(*kind)]
    return {each["metadata"]["uid"]: json.dumps(each["spec"], sort_keys=True) for each in found}


async def test_what_autoscaling_has_decided_is_no_difference(octavo: Kube, passes: Passes, plan: Plan) -> None:
    manifest = llm_deployment(autoscaling={"maxReplicas": 8})
    await octavo.create(manifest, manager="kubectl")
    await passes.once()
    # As after a decision: a new operator goes on with what is there.
    await octavo.patch(await octavo.get("apps/v1", "Deployment", "demo"), {"spec": {"replicas": 5}})
    await passes.once()
    assert (await plan.diff(manifest)).titles == []
    ended = await plan.diff(llm_deployment(autoscaling={"maxReplicas": 3}))
    assert "Deployment/demo" in ended.titles and "+  replicas: 3" in ended.out


async def test_what_would_be_new_is_shown_whole(octavo: Kube, plan: Plan) -> None:
    result = await plan.diff(llm_deployment(), "--json")
    differences = json.loads(result.out)["differences"]
    assert result.code == 1
    assert [(each["kind"], each["action"]) for each in differences] == [
        (kind, "Create") for kind in (KIND, "NetworkPolicy", "PodDisruptionBudget", "Service", "Deployment")
    ]
    # With the API server's defaults.
    assert "+      dnsPolicy: ClusterFirst" in differences[-1]["text"]
    assert await everything(octavo) == {}


async def test_what_would_be_deleted_is_shown(
    octavo: Kube, passes: Passes, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_nobody(monkeypatch)
    cache = {"source": {"http": {"url": "https://models.example.com/m.tar", "sha256": "0" * 64}}}
    manifest = llm_deployment(model=cache, storage={"cache": {"size": "1Gi"}})
    await applied(octavo, passes, manifest)
    result = await plan.diff(manifest)
    assert result.out == ""
    assert result.code == 0 and "Deployment demo is not there yet" in result.told
    result = await plan.diff(llm_deployment(networking={"networkPolicy": "Disabled"}))
    (volume,) = await octavo.list("v1", "PersistentVolumeClaim")
    name = f"PersistentVolumeClaim/{volume['metadata']['name']}"
    assert result.code == 1, result.told
    assert result.titles == ["LLMDeployment/demo", "Deployment/demo", "NetworkPolicy/demo", name]


async def test_whoever_may_only_change_llmdeployments_is_told_what_he_may_not_see(
    control_plane: ControlPlane, octavo: Kube, passes: Passes, tmp_path: Path
) -> None:
    await applied(octavo, passes, llm_deployment())
    verbs = ["get", "list", "create", "patch"]
    rules: list[Object] = [{"apiGroups": ["octavo.dev"], "resources": ["llmdeployments"], "verbs": verbs}]
    rules += [{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"]}]
    config = kubeconfig_for(control_plane, await service_account(octavo, rules), tmp_path / "config")
    result = await Plan(config, octavo.namespace, tmp_path).diff(llm_deployment(replicas=3))
    assert result.code == 1 and result.titles == ["LLMDeployment/demo", "Deployment/demo"], result.told
    assert "-  replicas: 1\n+  replicas: 3" in result.out
    for kind in ("Service", "NetworkPolicy", "PodDisruptionBudget"):
        assert f"octavo: note: {kind} demo is not compared: " in result.told


async def test_a_branch_that_would_be_asked_for_again_is_no_replaced_pod(
    octavo: Kube, passes: Passes, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_nobody(monkeypatch)
    source = {"source": {"huggingFace": {"repo": "org/model"}}}
    made = await octavo.apply(llm_deployment(model=source), manager="kubectl")
    commit = "0e9e39f249a16976918f6564b8830bc894c89659"
    await passes.once()
    resolved = (await octavo.get(API, KIND, "demo"))["status"]["resolved"] | {"revision": commit}
    await octavo.patch(made, {"status": {"resolved": resolved}}, subresource="status")
    await passes.once()
    changed = llm_deployment(model=source, disruption={"maxUnavailable": 2})
    result = await plan.diff(changed)
    assert result.code == 1 and f"asked anew; now it is {commit}" in result.told
    assert "Deployment/demo" not in result.titles and "PodDisruptionBudget/demo" in result.titles


async def test_what_the_api_server_would_refuse_is_told_in_its_words(octavo: Kube, plan: Plan) -> None:
    def cached(size: str) -> Object:
        source = {"http": {"url": "https://models.example.com/m.tar", "sha256": "0" * 64}}
        return llm_deployment(model={"source": source}, storage={"cache": {"size": size}})

    await octavo.apply(cached("2Gi"), manager="kubectl")
    result = await plan.diff(cached("1Gi"))
    assert result.code == 3 and "a volume cannot shrink" in result.told


async def test_no_cluster_and_a_cluster_without_the_crd_are_told_apart(
    plan: Plan, faults: Faults, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with faults.unreachable("refuse"):
        result = await plan.diff(llm_deployment())
    assert result.code == 3 and "no answer from the API server" in result.told

    async def no(_: object) -> bool:
        return False

    monkeypatch.setattr("octavo_operator.kube.Kube.serves_our_api", no)
    result = await plan.diff(llm_deployment())
    assert result.code == 3 and "install the chart, or the CRD" in result.told
    result = await Plan(tmp_path / "none", "default", tmp_path).diff(llm_deployment())
    assert result.code == 3 and "there is no such file" in result.told


def test_a_secret_that_stays_is_masked_and_no_difference() -> None:
    def pod(token: str) -> Object:
        container = {"name": "c", "env": [{"name": "API_KEY", "value": token}, {"name": "KEYS", "valueFrom": {}}]}
        last = {"kubectl.kubernetes.io/last-applied-configuration": token}
        return {"kind": "Pod", "metadata": {"annotations": last, "uid": token}, "spec": {"containers": [container]}}

    assert unified_diff("Pod/a", pod("s1"), pod("s1")) == ""
    assert "s1" not in unified_diff("Pod/a", pod("s1"), None) and "***" in unified_diff("Pod/a", pod("s1"), None)
    changed = unified_diff("Pod/a", pod("s1"), pod("s2"))
    assert "-        value: '*** (before)'" in changed or "*** (before)" in changed
    assert "s1" not in changed and "s2" not in changed
