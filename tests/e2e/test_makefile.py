"""What `make setup` does about a Python that Octavo does not run on."""

import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def program(file: Path, text: str) -> Path:
    """A shell script that stands for a Python."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def setup(venv: Path, python: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "setup", f"VENV={venv}", f"PYTHON={python}"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_a_wrong_python_is_refused_before_there_is_an_environment(tmp_path: Path) -> None:
    wrong = program(tmp_path / "python", '[ "$1" = --version ] && echo Python 3.14.0 || exit 1')
    told = setup(tmp_path / "venv", wrong)
    assert told.returncode == 2
    line = told.stderr.splitlines()[0]
    assert line.startswith(
        f"Octavo needs Python 3.11 or 3.12, and {wrong} is not one (Python 3.14.0): make setup PYTHON="
    )
    assert not (tmp_path / "venv").exists()


def test_an_environment_of_a_wrong_python_is_not_kept(tmp_path: Path) -> None:
    program(tmp_path / "venv" / "bin" / "python", "exit 1")
    (tmp_path / "venv" / "old").touch()
    good = program(
        tmp_path / "python", f'[ "$2" != venv ] || {{ mkdir -p "$3/bin"; cp {tmp_path}/any "$3/bin/python"; }}'
    )
    program(tmp_path / "any", "exit 0")
    told = setup(tmp_path / "venv", good)
    assert told.returncode == 0, told.stderr
    assert not (tmp_path / "venv" / "old").exists()


def test_an_environment_of_a_right_python_is_kept(tmp_path: Path) -> None:
    program(tmp_path / "venv" / "bin" / "python", "exit 0")
    (tmp_path / "venv" / "old").touch()
    assert setup(tmp_path / "venv", tmp_path / "no-python").returncode == 0
    assert (tmp_path / "venv" / "old").exists()
