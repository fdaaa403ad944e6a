"""The life of a release on a real API server, by Helm's own engine."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

from kube_fixture import ControlPlane, Kube
from llm_deployments import llm_deployment
from octavo_chart import CHART, OLDER_VALUES, Object, Values
from octavo_operator.api.crd import custom_resource_definition

pytestmark = pytest.mark.real

CRD = ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "llmdeployments.octavo.dev")


@pytest.fixture
def releases(control_plane: ControlPlane, kube: Kube) -> Iterator[helm.Config]:
    with helm.Config(kubeconfig_path=control_plane.direct_kubeconfig, namespace=kube.namespace) as config:
        yield config


@pytest.fixture(autouse=True)
async def no_crd(kube: Kube) -> AsyncIterator[None]:
    """None before, and none of a release's after: it is one for the whole cluster, and all tests share that."""
    await without_crd(kube)
    yield
    await without_crd(kube)


async def without_crd(kube: Kube) -> None:
    live = await kube.find(*CRD)
    if live is None:
        return
    await kube.delete(live)

    async def gone() -> bool:
        return await kube.find(*CRD) is None

    await kube.until(gone, 30, "the CRD to be gone")


@pytest.mark.parametrize("file", sorted(OLDER_VALUES.iterdir()), ids=lambda file: file.stem)
async def test_a_release_is_installed_upgraded_rolled_back_and_uninstalled(
    releases: helm.Config, kube: Kube, file: Path
) -> None:
    older = yaml.safe_load(file.read_text())
    await helms(releases.install, CHART, "octavo", older)
    await kube.until(lambda: established(kube), 20, "the CRD")
    first = await kube.get("apps/v1", "Deployment", "octavo")
    await kube.create(llm_deployment())

    await helms(releases.upgrade, CHART, "octavo", {"replicas": 2, "namespaces": [kube.namespace, "default"]})
    second = await kube.get("apps/v1", "Deployment", "octavo")
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    assert second["spec"]["replicas"] == 2
    assert await kube.find("policy/v1", "PodDisruptionBudget", "octavo") is not None
    assert await kube.find("rbac.authorization.k8s.io/v1", "Role", "octavo", "default") is not None

    await asyncio.to_thread(releases.rollback, "octavo", version=1)
    third = await kube.get("apps/v1", "Deployment", "octavo")
    assert third["spec"]["template"] == first["spec"]["template"]
    assert await kube.find("rbac.authorization.k8s.io/v1", "Role", "octavo", "default") is None

    await helms(releases.uninstall, "octavo")
    for kind in (("apps/v1", "Deployment"), ("rbac.authorization.k8s.io/v1", "Role"), ("v1", "ServiceAccount")):
        assert await kube.find(*kind, "octavo") is None
    assert await kube.get("octavo.dev/v1alpha1", "LLMDeployment", "demo")

    await helms(releases.install, CHART, "octavo", {})
    assert (await crd(kube))["metadata"]["labels"]["app.kubernetes.io/instance"] == "octavo"


async def test_the_gateways_own_key_is_made_once_and_the_same_everywhere(releases: helm.Config, kube: Kube) -> None:
    gateway: Values = {"enabled": True, "apiKeys": {"secretName": "keys"}}
    await helms(releases.install, CHART, "octavo", {})
    assert await kube.find("apps/v1", "Deployment", "octavo-gateway") is None
    await helms(releases.upgrade, CHART, "octavo", {"gateway": gateway})
    made = (await kube.get("v1", "Secret", "octavo-gateway-key"))["data"]
    values: Values = {"gateway": gateway | {"replicas": 3}, "namespaces": [kube.namespace, "default"]}
    await helms(releases.upgrade, CHART, "octavo", values)
    assert (await kube.get("v1", "Secret", "octavo-gateway-key"))["data"] == made
    assert (await kube.get("v1", "Secret", "octavo-gateway-key", "default"))["data"] == made
    assert (await kube.get("apps/v1", "Deployment", "octavo-gateway"))["spec"]["replicas"] == 3
    assert await kube.find("policy/v1", "PodDisruptionBudget", "octavo-gateway") is not None

    await helms(releases.upgrade, CHART, "octavo", {"gateway": gateway | {"replicaKey": {"secretName": "mine"}}})
    assert await kube.find("v1", "Secret", "octavo-gateway-key", "default") is None
    await helms(releases.uninstall, "octavo")
    for kind in (("v1", "Service"), ("apps/v1", "Deployment"), ("v1", "ServiceAccount")):
        assert await kube.find(*kind, "octavo-gateway") is None


async def test_an_upgrade_brings_the_crds_new_fields(releases: helm.Config, kube: Kube, tmp_path: Path) -> None:
    older = tmp_path / "octavo"
    shutil.copytree(CHART, older)
    (file,) = (older / "files").iterdir()
    definition = yaml.safe_load(file.read_text())
    del spec_fields(definition)["suspend"]
    file.write_text(yaml.safe_dump(definition))
    await helms(releases.install, older, "octavo", {})
    assert "suspend" not in spec_fields(await crd(kube))

    await helms(releases.upgrade, CHART, "octavo", {})
    assert "suspend" in spec_fields(await crd(kube))


async def test_an_upgrade_that_keeps_an_older_charts_defaults_is_refused_with_what_to_do(
    releases: helm.Config, kube: Kube, tmp_path: Path
) -> None:
    older = tmp_path / "octavo"
    shutil.copytree(CHART, older)
    shutil.copyfile(OLDER_VALUES / "0.1.0.yaml", older / "values.yaml")
    for template in (older / "templates").iterdir():
        if template.name not in {"_helpers.tpl", "serviceaccount.yaml"}:
            template.unlink()
    await helms(releases.install, older, "octavo", {})
    with pytest.raises(helm.HelmReleaseError, match="upgrade with --reset-then-reuse-values"):
        await asyncio.to_thread(releases.upgrade, CHART, "octavo", {}, reuse_values=True)
    await helms(releases.upgrade, CHART, "octavo", {})
    assert await kube.find("networking.k8s.io/v1", "NetworkPolicy", "octavo") is not None


async def test_a_crd_of_another_release_is_left_alone_and_the_notes_say_so(
    releases: helm.Config, control_plane: ControlPlane, kube: Kube
) -> None:
    """Teams that have an operator each share the CRD, and one of their releases has it."""
    other = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"{kube.namespace}-b"}}
    await kube.create(other)
    await helms(releases.install, CHART, "octavo", {})
    made = await crd(kube)
    with helm.Config(kubeconfig_path=control_plane.direct_kubeconfig, namespace=f"{kube.namespace}-b") as second:
        await helms(second.install, CHART, "octavo", {})
        assert f"made by the release {kube.namespace}/octavo" in notes(second, f"{kube.namespace}-b")
        await helms(second.uninstall, "octavo")
    after = await crd(kube)
    assert said_of(after) == said_of(made)
    await kube.delete(other)


async def test_a_crd_that_no_release_made_is_left_alone_until_it_is_taken_over(
    releases: helm.Config, kube: Kube
) -> None:
    """As the notes say how."""
    await kube.install_crd(custom_resource_definition())
    await helms(releases.install, CHART, "octavo", {})
    assert "labels" not in (await crd(kube))["metadata"]
    told = notes(releases, kube.namespace)
    assert "made by no release of Helm" in told
    annotate = next(line for line in told.splitlines() if "kubectl annotate" in line)
    annotations = dict(word.split("=") for word in annotate.split() if "=" in word)
    metadata = {"annotations": annotations, "labels": {"app.kubernetes.io/managed-by": "Helm"}}
    await kube.patch(await crd(kube), {"metadata": metadata})
    await helms(releases.upgrade, CHART, "octavo", {})
    assert (await crd(kube))["metadata"]["labels"]["app.kubernetes.io/instance"] == "octavo"
    assert "The CRD is upgraded with this release" in notes(releases, kube.namespace)


async def helms(action: Any, *arguments: Any) -> Any:
    """Off the event loop. Waits for nothing: no kubelet is here that would run the operator."""
    return await asyncio.to_thread(action, *arguments)


def notes(releases: helm.Config, namespace: str) -> str:
    with helm.Chart.load(CHART) as chart:
        files = releases.render(chart, {}, name="octavo", namespace=namespace, is_upgrade=True)
    return files["octavo/templates/NOTES.txt"]


def said_of(definition: Object) -> list[Any]:
    """All but the status, in which controllers write when they come to it."""
    metadata = definition["metadata"]
    return [metadata[name] for name in ("uid", "generation", "labels", "annotations")] + [definition["spec"]]


async def crd(kube: Kube) -> Object:
    return await kube.get(*CRD)


async def established(kube: Kube) -> bool:
    live = await kube.find(*CRD)
    conditions = (live or {}).get("status", {}).get("conditions", [])
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


def spec_fields(definition: Object) -> Values:
    fields: Values = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    return fields
