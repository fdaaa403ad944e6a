"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for a GPU that is not there.

Triton decides when it is first imported whether its functions are interpreted, so both need processes of their own: the
files in `triton_kernels` are the tests, run here by a pytest each.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
INTERPRETED = [
    "interpreted_attention.py",
    "interpreted_chunk_tiles.py",
    "interpreted_shared_prefix.py",
    "interpreted_rows.py",
    "interpreted_step_inputs.py",
    "interpreted_sampling.py",
    "interpreted_token_mask.py",
    "interpreted_engine.py",
]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


def run_tests(file: str, interpret: bool) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_kernels" / file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, f"{file}: see the output"


@needs_triton
@pytest.mark.parametrize("file", INTERPRETED)
def test_the_kernels_compute_what_their_twins_do(file: str) -> None:
    run_tests(file, interpret=True)


@needs_triton
def test_the_kernels_compile_for_hopper() -> None:
    run_tests("compiled.py", interpret=False)


@needs_triton
def test_kernels_are_compiled_before_they_are_launched() -> None:
    run_tests("compiled_ahead.py", interpret=False)
