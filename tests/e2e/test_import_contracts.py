"""`make imports` holds the contracts; here each of them is broken once, in a copy, to see that it would be noticed."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = ("kernels", "server", "operator")

# The name of a contract → a file and the import that breaks it.
BREAKS = {
    "Operator, server, gateway and pull know nothing of each other": (
        "operator/octavo_operator/pods.py",
        "octavo_server.config",
    ),
    "Only the command line sees all; what is shared stands below": (
        "server/octavo_common/names.py",
        "octavo_operator.settings",
    ),
    "Frontend and engine meet at the border alone": (
        "server/octavo_server/frontend/sse.py",
        "octavo_server.engine.request",
    ),
    "The server's layers: engine and worker know nothing of each other and meet at their border, as processes do at "
    "theirs": ("server/octavo_server/ipc.py", "octavo_server.worker.sampler"),
    "The worker imports nothing of the engine's package": (
        "server/octavo_server/worker/sampler.py",
        "octavo_server.engine.request",
    ),
    "The engine's layers": ("server/octavo_server/engine/block_pool.py", "octavo_server.engine.scheduler"),
    "The device's layers": ("server/octavo_server/worker/models/decoder.py", "octavo_server.worker.model_runner"),
    "The engine decides on plain integers: neither torch nor triton": (
        "server/octavo_server/engine/scheduler.py",
        "torch",
    ),
    "The control plane runs on the base install": ("operator/octavo_operator/settings.py", "msgspec"),
    "The gateway needs no model and no GPU": ("server/octavo_gateway/timing.py", "zmq"),
    "Routes are chosen by pure code: no clock, chance or event loop": ("server/octavo_common/routing.py", "random"),
    "What decides is pure: no cluster, clock, chance or event loop": ("operator/octavo_operator/status.py", "time"),
    "Replicas on this machine need no cluster": ("operator/octavo_operator/local/plan.py", "kubernetes.aio"),
    "octavo --help waits for no library": ("server/octavo_cli/errors.py", "rich.console"),
    "A pickle is never opened": ("server/octavo_server/worker/weights.py", "pickle"),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages and the contracts, to be broken."""
    for root in ROOTS:
        shutil.copytree(
            REPOSITORY / root, tmp_path / root, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__")
        )
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def verdicts(directory: Path) -> dict[str, str]:
    """The contracts by name, each KEPT or BROKEN."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(directory / root) for root in ROOTS),
        "COLUMNS": "200",
    }
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"]
    told = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    found = dict(re.findall(r"^(\S.*) (KEPT|BROKEN)\s*$", told.stdout, re.MULTILINE))
    assert found, told.stdout + told.stderr
    return found


def test_every_contract_notices_an_import_that_breaks_it(copy: Path) -> None:
    configured = tomllib.loads((copy / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {contract["name"] for contract in configured} == set(BREAKS), "a contract without its counter-example"
    for file, module in BREAKS.values():
        with (copy / file).open("a") as source:
            source.write(f"\nimport {module}\n")
    assert verdicts(copy) == dict.fromkeys(BREAKS, "BROKEN")
