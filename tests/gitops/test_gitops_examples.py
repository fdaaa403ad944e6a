"""The examples for kustomize, Argo CD and Flux are what those tools take, and the health script tells the truth."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import helm_python as helm
import pytest
import yaml

from argo_health import FOLDER, SCRIPT, health
from kstatus import kstatus
from kube_fixture import Kube
from octavo_chart import CHART, Object, of_kind, render
from octavo_operator.api import LLMDeploymentStatus, load_manifest
from octavo_operator.api.status import ConditionType

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples" / "gitops"
OTHERS = os.environ.get("OCTAVO_TEST_CRDS", "")
"""A folder with the CRDs of Argo CD, Flux and the Prometheus operator, as these publish them."""


def documents(folder: str) -> Iterator[Object]:
    for file in sorted((EXAMPLES / folder).rglob("*.yaml")):
        yield from yaml.safe_load_all(file.read_text())


def kustomized(folder: Path) -> list[Object]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


CASES = yaml.safe_load((FOLDER / "health_test.yaml").read_text())["tests"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: Path(case["inputPath"]).stem)
def test_the_health_script_judges_as_its_test_cases_say(case: dict[str, Any]) -> None:
    assert health(yaml.safe_load((FOLDER / case["inputPath"]).read_text())) == case["healthStatus"]


def test_every_input_of_the_health_script_has_a_case_and_every_health_an_input() -> None:
    assert {case["inputPath"] for case in CASES} == {
        f"testdata/{path.name}" for path in (FOLDER / "testdata").iterdir()
    }
    assert {case["healthStatus"]["status"] for case in CASES} == {"Healthy", "Progressing", "Degraded", "Suspended"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: Path(case["inputPath"]).stem)
def test_kstatus_takes_for_current_what_is_healthy_and_nothing_else(case: dict[str, Any]) -> None:
    resource = yaml.safe_load((FOLDER / case["inputPath"]).read_text())
    if "status" in resource:  # before the operator's first look kstatus has nothing to go by
        is_well = case["healthStatus"]["status"] in {"Healthy", "Suspended"}
        assert (kstatus(resource) == "Current") == is_well


@pytest.mark.parametrize("case", CASES, ids=lambda case: Path(case["inputPath"]).stem)
def test_the_inputs_are_what_the_api_server_would_store(case: dict[str, Any]) -> None:
    status = yaml.safe_load((FOLDER / case["inputPath"]).read_text()).get("status")
    if status is not None:
        LLMDeploymentStatus.model_validate(status)
        assert [each["type"] for each in status["conditions"]] == list(get_args(ConditionType))


def test_the_configuration_of_argo_cd_holds_the_script() -> None:
    (configuration,) = (each for each in documents("argo-cd") if each["kind"] == "ConfigMap")
    assert configuration["data"] == {"resource.customizations.health.octavo.dev_LLMDeployment": SCRIPT}


def test_an_overlay_changes_image_replicas_and_labels_of_a_valid_manifest() -> None:
    (base,) = kustomized(EXAMPLES / "kustomize" / "base")
    (made,) = kustomized(EXAMPLES / "kustomize" / "production")
    assert "replicas" not in base["spec"]
    for each in (base, made):
        load_manifest(yaml.safe_dump(each))
    assert (made["metadata"]["namespace"], made["metadata"]["labels"]) == ("team-a", {"team": "search"})
    assert made["spec"]["server"]["image"].startswith("registry.example/octavo-server@sha256:")
    assert made["spec"]["replicas"] == 2
    assert made["spec"]["model"] == base["spec"]["model"]


def test_a_claim_that_kustomize_renames_is_found_by_its_new_name(tmp_path: Path) -> None:
    for file in (EXAMPLES / "kustomize" / "base").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}}
    (tmp_path / "claim.yaml").write_text(yaml.safe_dump(claim))
    file = tmp_path / "kustomization.yaml"
    changed = yaml.safe_load(file.read_text()) | {"namePrefix": "eu-"}
    file.write_text(yaml.safe_dump(changed | {"resources": [*changed["resources"], "claim.yaml"]}))
    (made,) = of_kind(kustomized(tmp_path), "LLMDeployment")
    assert made["spec"]["model"]["source"]["persistentVolumeClaim"]["claimName"] == "eu-models"


@pytest.mark.parametrize("tool", ["argo-cd", "flux"])
def test_the_chart_takes_the_values_of_the_example(tool: str) -> None:
    specs = [each["spec"] for each in documents(tool) if each["kind"] in {"Application", "HelmRelease"}]
    (values,) = filter(
        None, (each.get("values") or each["source"].get("helm", {}).get("valuesObject") for each in specs)
    )
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values)
    roles = of_kind(render(values, "octavo-system", "octavo"), "Role")
    assert {each["metadata"]["namespace"] for each in roles} == {"octavo-system", "team-a"}


@pytest.mark.real
@pytest.mark.skipif(not OTHERS, reason="needs the CRDs of Argo CD, Flux and the Prometheus operator: OCTAVO_TEST_CRDS")
async def test_the_examples_are_what_the_tools_own_crds_describe(kube: Kube) -> None:
    """And so is the chart's PodMonitor."""
    definitions = [
        each for file in Path(OTHERS).glob("*.yaml") for each in yaml.safe_load_all(file.read_text()) if each
    ]
    monitored = {"podMonitor": {"enabled": True}, "networkPolicy": {"enabled": False}}
    found = [*documents("argo-cd"), *documents("flux"), *of_kind(render(monitored), "PodMonitor")]
    wanted = {each["kind"] for each in found} - {"ConfigMap"}
    used = [each for each in definitions if each["spec"]["names"]["kind"] in wanted]
    assert {each["spec"]["names"]["kind"] for each in used} == wanted
    try:
        for definition in used:
            await kube.install_crd(definition)
        for each in found:
            each["metadata"]["namespace"] = kube.namespace
            await kube.create(each, dry_run=True)
    finally:
        for definition in used:
            await kube.delete(definition)
