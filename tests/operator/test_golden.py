"""What realistic manifests become, to the letter: a change of any rendered field is seen in review."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from kube_fixture import Kube
from octavo_cli.plan import plan
from offline import ask_nobody

Object = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden")
NAMES = ("single-gpu", "autoscaled", "suspended", "cached", "gated", "spot-nodes", "restricted-namespace")
IMAGES = ("--server-image", "registry.example.com/octavo-server:1", "--pull-image", "registry.example.com/octavo:1")


def planned(name: str, patch: pytest.MonkeyPatch) -> str:
    ask_nobody(patch)
    result = CliRunner().invoke(plan, ["-f", str(ROOT / "examples" / f"{name}.yaml"), *IMAGES], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_golden_file_has_its_manifest() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_becomes_what_its_golden_file_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = (GOLDEN / f"{name}.yaml").read_text()
    assert planned(name, monkeypatch) == golden, "run `make golden`, and read what has changed"


@pytest.mark.real
@pytest.mark.parametrize("name", NAMES)
async def test_the_api_server_takes_all_of_it_where_pod_security_is_restricted(octavo: Kube, name: str) -> None:
    """Kinds that the cluster lacks apart. Pods are refused one by one, not with what makes them: so they are made."""
    level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await octavo.patch({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": octavo.namespace}}, level)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "models"}}
    await octavo.create(account)
    priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "inference"}}
    await octavo.apply(priority | {"value": 1000})
    manifest = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    await octavo.create(manifest, dry_run=True)
    pods = 0
    for item in yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text()):
        if item["kind"] in {"PodMonitor", "InferencePool"}:
            continue
        item["metadata"]["namespace"] = octavo.namespace
        await octavo.apply(item, dry_run=True)
        if "template" in item["spec"]:
            pods += 1
            template = item["spec"]["template"]
            metadata = template["metadata"] | {"name": f"pod-{pods}"}
            body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
            made = await octavo.create(body, dry_run=True)
            kept = {key for volume in made["spec"]["volumes"] for key in volume}
            assert {key for volume in template["spec"]["volumes"] for key in volume} <= kept
    assert pods >= 1
