"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for a GPU that is not there.

Triton decides when it is first imported whether its functions are interpreted, so both need processes of their own: the
files in `triton_kernels` are the tests, run here by one pytest for each of the two. What is interpreted runs with the
plugin `quick_interpreter`, half as long.
"""

import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
INTERPRETED = (
    "interpreted_attention.py",
    "interpreted_chunk_tiles.py",
    "interpreted_shared_prefix.py",
    "interpreted_rows.py",
    "interpreted_step_inputs.py",
    "interpreted_sampling.py",
    "interpreted_token_mask.py",
    "interpreted_engine.py",
)
COMPILED = ("compiled.py", "compiled_ahead.py")
# No conftest.py, and of the plugins those that our settings name.
LEAN = ("--noconftest", "--disable-plugin-autoload", "-p", "asyncio", "-p", "timeout", "-p", "no:cacheprovider")
LIMIT_SECONDS = 1500

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton"),
    pytest.mark.timeout(LIMIT_SECONDS + 20),  # the first test of a process waits for all of its files
]


class Run(NamedTuple):
    code: int
    output: str


@cache
def run_tests(files: tuple[str, ...], interpret: bool) -> Run:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT / "tests" / "support")  # where a plugin is found
    plugins = ["-p", "quick_interpreter"] if interpret else []
    paths = [str(HERE / "triton_kernels" / file) for file in files]
    command = [sys.executable, "-m", "pytest", "-v", *LEAN, *plugins, *paths]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as expired:
        return Run(-1, f"{expired}\n{(expired.stdout or b'').decode()}")
    return Run(done.returncode, f"{done.stdout}\n{done.stderr}")


def check(run: Run, file: str) -> None:
    """Every test of the file was run and has passed; a run that broke off is everybody's failure."""
    name = f"triton_kernels/{file}::"
    results = [line for line in run.output.splitlines() if name in line and line.endswith("%]")]
    failed = [line for line in results if " PASSED " not in line]
    assert run.code in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}, run.output
    assert results, f"no test of {file} was run:\n{run.output}"
    assert not failed, run.output


def test_no_file_is_forgotten() -> None:
    files = {path.name for path in (HERE / "triton_kernels").glob("*.py")}
    assert files == {*INTERPRETED, *COMPILED}


@pytest.mark.parametrize("file", INTERPRETED)
def test_the_kernels_compute_what_their_twins_do(file: str) -> None:
    check(run_tests(INTERPRETED, interpret=True), file)


def test_the_kernels_compile_for_hopper() -> None:
    check(run_tests(COMPILED, interpret=False), "compiled.py")


def test_kernels_are_compiled_before_they_are_launched() -> None:
    check(run_tests(COMPILED, interpret=False), "compiled_ahead.py")
