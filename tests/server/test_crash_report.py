"""What is left of an engine that died: the report, its file, and what does not stand in it."""

import json
import os
import re
import signal
import stat
from pathlib import Path

import httpx
import pytest

import serving
from octavo_server.config import EngineConfig
from octavo_server.frontend.crash_report import KEPT, Crash, keep_report

ENDLESS = {"model": "tiny", "max_tokens": 500_000, "ignore_eos": True, "stream": True}
LONG = 1_000_000
CRASH = Crash(
    "the engine process was ended by SIGBUS", 77, "ready", 12.34, 3, ["a-0", "b-0"], None, ["1 rows 2", "2 rows 1"]
)


def test_a_report_tells_how_it_ended_what_it_was_and_its_last_steps(tmp_path: Path) -> None:
    lines = CRASH.report(EngineConfig(model=tmp_path, block_size=32)).splitlines()
    assert "ended by SIGBUS" in lines[0]
    assert lines[1] == "process 77, 12.3 s after its start, phase: ready"
    assert '"block_size":32' in "".join(lines)
    assert lines[-3:] == ["last steps (2):", "  1 rows 2", "  2 rows 1"]


def test_reports_are_ours_alone_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "reports"
    paths = [keep_report(f"report {index}", directory) for index in range(KEPT + 3)]
    assert all(path is not None and stat.S_IMODE(path.stat().st_mode) == 0o600 for path in paths[3:])
    assert sorted(directory.iterdir()) == paths[3:]
    assert [path.read_text() for path in paths[3:] if path] == [f"report {index}" for index in range(3, KEPT + 3)]


def test_files_of_other_names_are_left_alone(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"crash-{index}.txt").touch()
    keep_report("report", tmp_path)
    assert len(list(tmp_path.iterdir())) == 21


def test_a_directory_that_cannot_be_written_to_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert keep_report("report", tmp_path / "file") is None
    assert "the crash report is not written" in caplog.text


@pytest.mark.parametrize("how", ["SIGKILL", "hang"])
def test_an_engine_that_dies_or_hangs_leaves_its_last_hundred_steps_and_no_text(tmp_path: Path, how: str) -> None:
    model = serving.text_model(tmp_path / "model")
    secret = "hello brown fox"
    env = {"FAKE_STEP_SECONDS": "0.001", "HANG_SECONDS": "2"}
    with serving.serve(
        model, env=env, max_model_len=LONG, crash_report_dir=str(tmp_path / "reports"), api_key=["key-of-mine"]
    ) as server:
        server.wait_until_ready()
        body = ENDLESS | {"prompt": secret}
        headers = {"Authorization": "Bearer key-of-mine"}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers, timeout=60) as answer:
            events = (line for line in answer.iter_lines() if line)
            events_seen = [next(events) for _ in range(150)]
            os.kill(server.engine_pid(), signal.SIGKILL if how == "SIGKILL" else signal.SIGSTOP)
            last = list(events)[-1]
        assert "error" in last and ("SIGKILL" in last if how == "SIGKILL" else "silent" in last)
        serving.until(lambda: "crash report" in server.log)
        (path,) = (tmp_path / "reports").iterdir()
        report = path.read_text()
        assert f"crash report (also in {path})" in server.log
        assert report.splitlines()[-1] in server.log
    answer_id = json.loads(events_seen[0].removeprefix("data: "))["id"]
    assert f"open choices: 1 {answer_id.removeprefix('cmpl-')}-0\n" in report
    numbers = [int(number) for number in re.findall(r"^  (\d+) rows", report, re.MULTILINE)]
    assert len(numbers) == 100
    assert numbers == list(range(numbers[0], numbers[0] + 100)) and numbers[-1] >= 150
    for text in (secret, "hello", "key-of-mine"):
        assert text not in report


def test_a_start_that_hangs_is_ended_with_the_phase_and_a_report(tmp_path: Path) -> None:
    model = serving.text_model(tmp_path / "model")
    env = {"FAKE_GATE": str(tmp_path / "never"), "START_HANG_SECONDS": "2"}
    with serving.serve(model, env=env, crash_report_dir=str(tmp_path / "reports")) as server:
        serving.until(lambda: _phase(server) == "load weights")
        engine = server.engine_pid()
        os.kill(engine, signal.SIGSTOP)  # the fake engine looks at its gate a hundred times a second
        assert server.process.wait(serving.PATIENCE_SECONDS) == 1
        last = server.log.splitlines()[-1]
        assert "silent" in last and "while starting (phase: load weights)" in last
        assert not serving.is_alive(engine)
    (path,) = (tmp_path / "reports").iterdir()
    assert "phase: load weights" in path.read_text()


def test_an_engine_that_refuses_to_start_leaves_no_report(tmp_path: Path) -> None:
    model = serving.text_model(tmp_path / "model")
    with serving.serve(
        model, env={"FAKE_FAILURE": "take a larger GPU"}, crash_report_dir=str(tmp_path / "reports")
    ) as server:
        assert server.process.wait(serving.PATIENCE_SECONDS) == 1
        assert "crash report" not in server.log
    assert not (tmp_path / "reports").exists()


def _phase(server: serving.ServerProcess) -> str:
    phase: str = httpx.get(f"{server.url}/ready").json()["phase"]
    return phase
