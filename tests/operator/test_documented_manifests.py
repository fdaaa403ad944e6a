"""The manifests in docs/ are valid, and do what the page says."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_deployments import SETTINGS, rendered
from octavo_cli.memory_plan import server_config
from octavo_common.access.keys import KeyRing
from octavo_operator.api import load_manifest
from octavo_operator.render import render

DOCS = Path(__file__).resolve().parents[2] / "docs"


def manifests(page: Path) -> list[Any]:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    found = [document for block in blocks for document in yaml.safe_load_all(block)]
    return [document for document in found if isinstance(document, dict) and "kind" in document]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_manifest_of_a_page_is_taken(page: Path) -> None:
    for document in manifests(page):
        if document["kind"] == "LLMDeployment":
            server_config(page.name, load_manifest(yaml.safe_dump(document)))


def test_a_deployment_takes_its_keys_from_a_secret(tmp_path: Path) -> None:
    secret, document = manifests(DOCS / "access.md")
    deployment = load_manifest(yaml.safe_dump(document))
    pod = rendered(render(deployment, SETTINGS), "Deployment")["spec"]["template"]["spec"]
    (volume,) = [volume for volume in pod["volumes"] if "secret" in volume]
    (mount,) = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == volume["name"]]
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    arguments = pod["containers"][0]["args"]
    assert arguments[arguments.index("--api-key-file") + 1] == mount["mountPath"]
    config = server_config("access.md", deployment)
    # As the kubelet puts it there: files that are links into a directory, which is a link itself.
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..data").symlink_to("..2026")
    for name, text in secret["stringData"].items():
        (tmp_path / "..2026" / name).write_text(text)
        (tmp_path / name).symlink_to(f"..data/{name}")
    ring = KeyRing(config.model_copy(update={"api_key_file": (tmp_path,)}))
    assert {key.name: key.limits.tokens_per_minute for key in ring.keys} == {"team-a": None, "batch": 200_000}
    assert {key.limits.concurrent_requests for key in ring.keys} == {32}
    found = ring.find(secret["stringData"]["team-a"].encode())
    assert found is not None and found.name == "team-a"
