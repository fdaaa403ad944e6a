"""`octavo up` as a person runs it: real processes, the real demo model, and nothing left behind however it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

import processes

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "llmdeployment.yaml"
LONG = "Repeat: " + " ".join(["the quick brown fox jumps over the lazy dog"] * 8)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """The example, but at a port that nobody else on this machine is likely to want."""
    document = yaml.safe_load(EXAMPLE.read_text())
    with socket.create_server(("127.0.0.1", 0)) as probe:
        document["spec"]["networking"] = {"service": {"port": probe.getsockname()[1]}}
    file = tmp_path / "manifest.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def start(mark: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """`octavo up` with pipes, in a process group of its own as a shell gives it."""
    return subprocess.Popen(
        [sys.executable, "-m", "octavo_cli.main", "up", *arguments],
        env={**os.environ, **mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def read_until(stream: IO[str] | None, text: str) -> str:
    """What the stream says up to and including the line that holds `text`."""
    assert stream is not None
    said = ""
    for line in stream:
        said += line
        if text in line:
            return said
    raise AssertionError(f"{text!r} was never said, but:\n{said}")


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit code, rest of stdout, rest of stderr)."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_the_example_is_brought_up_answers_tells_its_status_and_is_gone(mark: dict[str, str]) -> None:
    code, out, err = finish(start(mark, "-f", str(EXAMPLE), "--once", "What is a token?"))
    assert code == 0, err
    assert processes.marked(mark) == {}, "it must not return before its processes are gone"
    answer, _, status = out.partition("\n\nLLMDeployment demo")
    assert "token" in answer.lower()
    assert "replicas ready 1/1" in status
    assert [line.split()[:2] for line in status.splitlines()[-7:]] == [
        ["Ready", "True"],
        ["Available", "True"],
        ["Progressing", "False"],
        ["ModelCached", "True"],
        ["Scheduled", "True"],
        ["ScalingActive", "False"],
        ["Degraded", "False"],
    ]
    assert "http://127.0.0.1:" in status
    assert "KV cache" in status
    assert [": import" in err, "ready at http://127.0.0.1:" in err, "> What is a token?" in err] == [True] * 3


def test_two_replicas_come_up_although_the_port_is_taken(mark: dict[str, str], manifest: Path) -> None:
    document = yaml.safe_load(manifest.read_text())
    document["spec"]["replicas"] = 2
    del document["spec"]["resources"]["memory"]  # how much is free here is not what this is about
    manifest.write_text(yaml.safe_dump(document))
    port = document["spec"]["networking"]["service"]["port"]
    with socket.create_server(("127.0.0.1", port)):
        code, out, err = finish(start(mark, "-f", str(manifest), "--once", "What is 2 + 3?", "--json"))
    assert code == 0, err
    assert f"port {port} is taken; it listens on" in err
    (note,) = (line for line in err.splitlines() if "is taken" in line)
    told: dict[str, Any] = json.loads(out)
    assert "5" in told["answer"]["text"]
    assert told["answer"]["finishReason"] == "stop"
    assert told["answer"]["usage"]["completion_tokens"] > 0
    assert told["answer"]["kvCachePeak"] > 0
    urls = [replica["url"] for replica in told["replicas"]]
    assert len(set(urls)) == 2
    assert told["gateway"]["url"] not in urls
    assert told["status"]["url"] == f"{told['gateway']['url']}/v1"
    assert note.endswith(f" instead: {told['status']['url']}")
    assert (told["status"]["readyReplicas"], told["status"]["desiredReplicas"]) == (2, 2)
    assert [replica["kvCache"]["tokensTotal"] > 0 for replica in told["replicas"]] == [True, True]


@pytest.mark.parametrize("moment", ["starting the process", "gateway-0: ready"])  # the replica is not, by far
def test_ctrl_c_while_it_starts_leaves_no_process(moment: str, mark: dict[str, str], manifest: Path) -> None:
    process = start(mark, "-f", str(manifest), "--once", "Hello")
    read_until(process.stderr, moment)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert processes.marked(mark) == {}


def test_ctrl_c_in_the_middle_of_an_answer_leaves_no_process(mark: dict[str, str], manifest: Path) -> None:
    process = start(mark, "-f", str(manifest), "--once", LONG)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130, out
    assert "LLMDeployment" not in out
    assert "Traceback" not in err
    assert processes.marked(mark) == {}


def test_it_serves_at_the_manifests_port_until_ctrl_c_which_is_a_good_end(mark: dict[str, str], manifest: Path) -> None:
    process = start(mark, "-f", str(manifest))
    said = read_until(process.stdout, "Ctrl-C stops it.")
    port = yaml.safe_load(manifest.read_text())["spec"]["networking"]["service"]["port"]
    assert f"demo is ready: http://127.0.0.1:{port}/v1  (model demo)" in said
    (curl,) = (line.strip() for line in said.splitlines() if line.strip().startswith("curl "))
    told = subprocess.run(["bash", "-c", f"{curl} --silent --noproxy '*'"], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout)["choices"][0]["message"]["content"]
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 0
    assert processes.marked(mark) == {}


@pytest.mark.parametrize("moment", [": import", "demo-0: ready at"])
def test_sigkill_leaves_no_process(moment: str, mark: dict[str, str], manifest: Path) -> None:
    process = start(mark, "-f", str(manifest))
    read_until(process.stderr, moment)
    assert len(processes.marked(mark)) == 4  # octavo up, the gateway, the replica and its engine
    process.kill()
    finish(process)
    assert processes.wait_gone(mark) == {}


def test_a_replica_that_cannot_start_fails_the_command_with_its_own_words(mark: dict[str, str], manifest: Path) -> None:
    document = yaml.safe_load(manifest.read_text())
    document["spec"]["server"] = {"maxModelLength": 16_000_000}
    manifest.write_text(yaml.safe_dump(document))
    code, out, err = finish(start(mark, "-f", str(manifest), "--once", "Hello"))
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("octavo: demo-0 exited with code ")
    assert "spec.server.maxModelLength: 16000000: " in last
    assert "starting again" not in err
