"""The wheel: what is in it, what it asks for, and that it works away from the repository."""

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = {
    "octavo_kernels": "kernels",
    "octavo_server": "server",
    "octavo_common": "server",
    "octavo_gateway": "server",
    "octavo_pull": "server",
    "octavo_cli": "server",
    "octavo_operator": "operator",
}
OF_THE_SERVER = {"torch", "triton", "numpy", "fastapi", "uvicorn", "msgspec", "pyzmq", "tokenizers", "safetensors"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `python -m build` makes it, with the build backend that is installed here."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(REPOSITORY)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = directory.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(name).decode())
    return {key: headers.get_all(key) or [] for key in set(headers.keys())}


@pytest.fixture(scope="module")
def base_install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment's python: the wheel, and of all that is installed here what its base install asks for."""
    root = tmp_path_factory.mktemp("base")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    python = root / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--disable-pip-version-check", str(wheel)], check=True)
    (packages,) = (root / "lib").glob("python*/site-packages")
    for source in base_requirements():
        target = packages / source.name
        if not target.exists():
            target.symlink_to(source)
    return python


def base_requirements() -> Iterator[Path]:
    """Every file and folder in site-packages that belongs to the base install's requirements, and to theirs."""
    pending, seen = ["octavo"], set[str]()
    while pending:
        name = pending.pop()
        distribution = importlib.metadata.distribution(name)
        for text in distribution.requires or []:
            requirement = Requirement(text)
            wanted = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            )
            if wanted and requirement.name not in seen:
                seen.add(requirement.name)
                pending.append(requirement.name)
        if name != "octavo":
            tops = {Path(file).parts[0] for file in distribution.files or []}
            yield from (Path(str(distribution.locate_file(top))) for top in tops if top != "..")


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(python), "-m", "octavo_cli.main", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def tracked(folder: Path) -> set[str]:
    """The files of a package that belong into the wheel, by their path from its source root."""
    return {
        str(file.relative_to(folder.parent))
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_the_source_roots_and_the_tests_are_no_packages() -> None:
    """operator/__init__.py would shadow the standard library's `operator` for every program started here."""
    for root in ("kernels", "server", "operator", "tests"):
        assert not (REPOSITORY / root / "__init__.py").exists()
    support = REPOSITORY / "tests" / "support"  # on the path of the tests, so packages may lie in it
    assert not (support / "__init__.py").exists()
    assert all(support in file.parents for file in (REPOSITORY / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheel_holds_every_file_of_every_package(package: str, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith(f"{package}/")}
    assert packed == tracked(REPOSITORY / PACKAGES[package] / package)
    assert f"{package}/py.typed" in packed


def test_the_wheel_holds_the_demo_model_and_the_licence_and_nothing_beside_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert f"octavo_server/demo_model/{file}" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {*PACKAGES, "octavo"}


def test_the_base_install_asks_for_nothing_of_the_server(metadata: dict[str, list[str]]) -> None:
    requirements = [Requirement(text) for text in metadata["Requires-Dist"]]
    base = {each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})}
    server = {each.name for each in requirements if each.marker and each.marker.evaluate({"extra": "server"})}
    assert base.isdisjoint(OF_THE_SERVER)
    assert {"click", "httpx", "kopf", "kubernetes", "pydantic", "pyyaml", "rich"} <= base
    assert server >= OF_THE_SERVER - {"triton"}  # triton is there for x86-64 alone


def test_the_base_install_plans_prints_the_crd_and_names_the_extra_for_the_rest(
    base_install: Path, tmp_path: Path
) -> None:
    manifest = str(REPOSITORY / "examples" / "llmdeployment.yaml")
    for arguments in (["--help"], ["crd"], ["plan", "-f", manifest], ["operator", "--help"], ["up", "--help"]):
        told = run(base_install, *arguments, cwd=tmp_path)
        assert told.returncode == 0, told.stderr
        assert told.stdout
    imported = "import octavo_operator.main as main, sys; print('torch' in sys.modules, main.__file__)"
    told = subprocess.run([base_install, "-c", imported], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.fullmatch(rf"False {re.escape(str(base_install.parents[1]))}\S*\n", told.stdout)
    for arguments in (["serve", "demo"], ["up", "-f", manifest, "--once", "Hello"]):
        told = run(base_install, *arguments, cwd=tmp_path)
        assert told.returncode == 2
        assert re.fullmatch(r"octavo: .* '\w+' is missing: pip install 'octavo\[server\]'\n", told.stderr)
    told = run(base_install, "gateway", "--endpoints-file", "fleet.json", cwd=tmp_path)
    assert told.returncode == 2
    assert re.fullmatch(r"octavo: .* '\w+' is missing: pip install 'octavo\[gateway\]'\n", told.stderr)


def test_the_wheel_serves_the_demo_model_away_from_the_repository(base_install: Path, tmp_path: Path) -> None:
    """The rest of the server's requirements come from here, behind the wheel on the path."""
    (packages,) = (base_install.parents[1] / "lib").glob("python*/site-packages")
    link = packages / "rest.pth"
    link.write_text("\n".join(path for path in sys.path if Path(path).name == "site-packages"))
    try:
        manifest = str(REPOSITORY / "examples" / "llmdeployment.yaml")
        told = run(base_install, "up", "-f", manifest, "--once", "Tell me a joke", "--port", "0", cwd=tmp_path)
    finally:
        link.unlink()
    assert told.returncode == 0, told.stderr
    assert "replicas ready 1/1" in told.stdout
