"""From a hub to an answer: the demo model is pulled, and the real engine serves what came; parts of it, it does not."""

import shutil
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from model_hosts import Fault, Hub
from octavo_cli.serve import serve as serve_command
from octavo_common.pulled_model import MARKER, PARTIAL
from octavo_pull.errors import UnfinishedError
from pulled import fetch
from serving import serve

DEMO = Path(__file__).resolve().parents[2] / "server" / "octavo_server" / "demo_model"


def refusal(model: Path) -> str:
    """Why `octavo serve` does not begin."""
    result = CliRunner().invoke(serve_command, [str(model)])
    assert result.exit_code == 2
    return " ".join(result.output.split())


def test_a_pulled_model_answers_and_parts_of_it_are_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.name: path.read_bytes() for path in DEMO.iterdir() if path.is_file()}
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    directory = tmp_path / "demo"
    with Hub("octavo/demo", files) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.faults = [Fault("/cdn/", times=1), Fault("/cdn/", times=1000, status=503)]
        with pytest.raises(UnfinishedError):
            fetch("hf://octavo/demo", directory, connections=1)
        assert "is still being downloaded, or its download was interrupted" in refusal(directory)
        assert "is a download that is not complete" in refusal(tmp_path / PARTIAL / "demo" / "model")
        hub.faults = []
        fetch("hf://octavo/demo", directory)
    with serve(directory, fake=False) as server:
        server.wait_until_ready()
        asked = {"model": "tiny", "prompt": "1 + 1 =", "max_tokens": 4, "temperature": 0}
        answer = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60).json()
        assert answer["usage"]["completion_tokens"] == 4
    broken = tmp_path / "broken"
    shutil.copytree(directory, broken)
    (broken / "tokenizer_config.json").unlink()
    assert "was pulled with tokenizer_config.json, which is missing; run `octavo pull`" in refusal(broken)
    (broken / MARKER).write_text("{")
    assert "cannot be read" in refusal(broken)
