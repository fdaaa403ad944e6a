"""Which control plane is chosen, and that a run says so."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from kube_fixture import find_assets, kinds_to_run
from kube_fixture.plane import CHOICE

HERE = Path(__file__).parent
# Of the plugins those that our settings name, and those that conftest.py hooks into.
LEAN = ("--disable-plugin-autoload", "-p", "asyncio", "-p", "timeout", "-p", "xdist", "-p", "no:cacheprovider")


@pytest.fixture
def no_binaries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))


@pytest.fixture
def binaries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("etcd", "kube-apiserver"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))


@pytest.mark.parametrize(
    ("choice", "kinds"),
    [("auto", ["real"]), ("real", ["real"]), ("emulator", ["emulator"]), ("both", ["emulator", "real"])],
)
@pytest.mark.usefixtures("binaries")
def test_real_binaries_are_used_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, choice: str, kinds: list[str]
) -> None:
    monkeypatch.setenv(CHOICE, choice)
    assert kinds_to_run() == kinds


@pytest.mark.usefixtures("no_binaries")
def test_without_binaries_it_is_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHOICE, raising=False)
    assert find_assets() is None and kinds_to_run() == ["emulator"]


@pytest.mark.parametrize("choice", ["real", "both", "anything"])
@pytest.mark.usefixtures("no_binaries")
def test_what_is_asked_for_and_missing_is_an_error(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    monkeypatch.setenv(CHOICE, choice)
    with pytest.raises(ValueError, match=choice):
        kinds_to_run()


async def run_pytest(choice: str, assets: Path, *files: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "pytest", *LEAN, *(str(HERE / name) for name in files)),
        env={**os.environ, CHOICE: choice, "KUBEBUILDER_ASSETS": str(assets)},
        cwd=HERE.parents[1],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def test_tests_marked_real_are_skipped_on_the_emulator_and_it_is_said(tmp_path: Path) -> None:
    code, out = await run_pytest("emulator", tmp_path, "test_real.py")
    assert code in {0, 5} and "passed" not in out
    assert "kubernetes: emulator" in out and "tests marked real were skipped" in out
    assert "needs a real Kubernetes" in out


async def test_a_run_that_asks_for_what_is_missing_stops(tmp_path: Path) -> None:
    code, out = await run_pytest("real", tmp_path, "test_real.py")
    assert code == pytest.ExitCode.USAGE_ERROR and "has the binaries" in out
