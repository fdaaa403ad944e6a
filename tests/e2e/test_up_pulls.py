"""`octavo up` with a model that is elsewhere: downloaded once, served, and asked for just as a pod asks for it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import processes
from model_hosts import Hub
from octavo_cli.main import main
from octavo_cli.pull import pull as pull_command
from octavo_cli.pulled_models import cache_directory, pull_for, source_of
from octavo_common.pulled_model import read_marker
from octavo_operator.api import load_manifest
from octavo_operator.render.pull import pull_arguments
from octavo_pull.source import parse_source

DEMO = Path(__file__).resolve().parents[2] / "server" / "octavo_server" / "demo_model"
REPO = "octavo/demo"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub(REPO, {path.name: path.read_bytes() for path in DEMO.iterdir() if path.is_file()}) as hub:
        yield hub


def manifest(source: dict[str, Any]) -> str:
    document = {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": "pulled"},
        "spec": {"model": {"source": source}},
    }
    return yaml.safe_dump(document)


def up(text: str, hub: Hub, mark: dict[str, str], cache: Path) -> "subprocess.CompletedProcess[str]":
    environment = {"HF_ENDPOINT": hub.url, "OCTAVO_CACHE": str(cache), "HF_TOKEN_PATH": str(cache / "no-token")}
    return subprocess.run(
        [sys.executable, "-m", "octavo_cli.main", "up", "-f", "-", "--once", "What is 2 + 3?", "--json", "--port", "0"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={**{name: value for name, value in os.environ.items() if name != "HF_TOKEN"}, **mark, **environment},
    )


def test_a_model_of_a_hub_is_downloaded_once_and_answers(
    hub: Hub, mark: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = up(manifest({"huggingFace": {"repo": REPO}}), hub, mark, tmp_path)
    assert told.returncode == 0, told.stderr
    assert "5" in json.loads(told.stdout)["answer"]["text"]
    assert re.search("asking for|downloading", told.stderr)  # whichever is there when it is told first
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    hub.asked.clear()
    source = parse_source(f"hf://{REPO}")
    marker = read_marker(pull_for(source))
    assert marker is not None
    assert marker.revision == hub.branches["main"]
    assert hub.asked == []  # it is there
    assert cache_directory(source).name.startswith("octavo-demo-main-")


def test_a_model_that_cannot_be_had_is_told_and_nothing_is_started(
    hub: Hub, mark: dict[str, str], tmp_path: Path
) -> None:
    hub.token = "hf_secret"
    try:
        told = up(manifest({"huggingFace": {"repo": REPO}}), hub, mark, tmp_path)
    finally:
        hub.token = None
    assert (told.returncode, told.stdout) == (2, "")
    last = told.stderr.splitlines()[-1]
    assert last.startswith(f"octavo: the model cannot be had: hf://{REPO}@main: the hub answers 401: Access to model")
    assert processes.marked(mark) == {}


def test_plan_reads_the_config_where_the_model_is_and_says_where_it_cannot(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (
        ("HF_ENDPOINT", hub.url),
        ("OCTAVO_CACHE", str(tmp_path)),
        ("HF_TOKEN_PATH", str(tmp_path / "t")),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub.asked.clear()

    def planned(source: dict[str, Any]) -> dict[str, Any]:
        (tmp_path / "manifest.yaml").write_text(manifest(source))
        with pytest.raises(SystemExit) as ended:
            main(["plan", "-f", str(tmp_path / "manifest.yaml"), "--json"])
        assert ended.value.code == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    there = {"huggingFace": {"repo": REPO}}
    assert planned(there)["memory"] == planned({"builtin": {"name": "demo"}})["memory"] is not None
    assert not hub.count("safetensors")
    hub.token = "hf_secret"
    try:
        told = planned(there)
    finally:
        hub.token = None
    assert told["memory"] is None
    (warning,) = told["warnings"]
    assert "the hub answers 401: Access to model octavo/demo is restricted" in warning


@pytest.mark.parametrize(
    "source",
    [
        {"huggingFace": {"repo": REPO}},
        {"huggingFace": {"repo": REPO, "revision": "refs/pr/1", "tokenSecretRef": {"name": "hub", "key": "token"}}},
        {"s3": {"uri": "s3://models/team/tiny/"}},
        {"s3": {"uri": "s3://models/tiny", "endpoint": "http://minio.storage:9000"}},
        {"http": {"url": "https://models.test/tiny.tar.gz", "sha256": "0" * 64}},
        {"http": {"url": "https://models.test/tiny/", "sha256": "0" * 64}},
    ],
)
def test_a_pod_and_this_machine_ask_for_the_same(source: dict[str, Any]) -> None:
    wanted = load_manifest(manifest(source)).spec.model.source
    arguments = pull_arguments(wanted, "/octavo/model/files", "/octavo/credentials/token")
    given = pull_command.make_context("pull", arguments[1:]).params
    asked = parse_source(given["source"], sha256=given["sha256"], endpoint=given["endpoint"])
    assert asked == source_of(wanted)


def test_what_is_here_is_not_downloaded_and_an_image_is_asked_of_its_registry() -> None:
    for here in ({"builtin": {"name": "demo"}}, {"path": {"path": "/models/tiny"}}):
        assert source_of(load_manifest(manifest(here)).spec.model.source) is None
    image = {"oci": {"image": "registry.test/team/tiny:v1", "path": "models/a"}}
    assert (
        str(source_of(load_manifest(manifest(image)).spec.model.source)) == "oci://registry.test/team/tiny:v1#models/a"
    )
