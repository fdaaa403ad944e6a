"""Run what an image's Dockerfile runs, without Docker: `python images/exercise.py control-plane|server [--twice]`.

COPY and RUN are done in a folder that stands for the image's root, with this machine's Python in place of the base
image's: so it is seen that what is in the lock files installs by hash, and that the command works and changes nothing
in its tree. As the image's user, where that one can read this machine's Python; as this one elsewhere. What apt
installs, and the base image itself, are not tried.
`--twice`: and again from the start, which has to give the same bytes.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import hashlib
import http.server
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
USER = 65532
# What a Dockerfile of ours makes in the image's root.
OURS = re.compile(r"(?<![\w./])/(src|dist|opt|requirements\.txt)(?![\w-])")
PASSED_ON = ("PIP_CERT", "SSL_CERT_FILE", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")

Instruction = tuple[str, str]


def instructions(dockerfile: Path) -> Iterator[Instruction]:
    """(keyword, rest of its line) for each instruction, continuation lines joined and comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword:
            yield keyword.upper(), " ".join(rest.split())


class Image:
    """A root that instructions are carried out in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root
        self.environment: dict[str, str] = {}

    def carry_out(self, keyword: str, rest: str) -> None:
        """One instruction. Raises subprocess.CalledProcessError where a RUN fails."""
        match keyword:
            case "FROM":
                self.folder, self.environment = self.root, {}
            case "WORKDIR":
                self.folder = self.root / rest.lstrip("/")
                self.folder.mkdir(parents=True, exist_ok=True)
            case "ENV":
                self.environment |= dict(word.split("=", 1) for word in shlex.split(rest))
            case "COPY":
                self._copy(shlex.split(rest))
            case "RUN" if rest.startswith("apt-get"):
                print(f"not tried here: {rest}")
            case "RUN":
                print(f"RUN {rest}", flush=True)
                command = OURS.sub(lambda found: f"{self.root}{found.group()}", rest)
                subprocess.run(["/bin/sh", "-ec", command], check=True, cwd=self.folder, env=self._outside())

    def ask(self, *command: str) -> str:
        """What a command of the finished image says, run by its user where this script may change to that."""
        path = [f"{self.root}{folder}" for folder in self.environment["PATH"].split(":") if folder.startswith("/opt/")]
        home = self.root.parent / "tmp"
        home.mkdir(mode=0o777, exist_ok=True)
        home.chmod(0o777)
        environment = self.environment | {"PATH": os.pathsep.join([*path, "/usr/bin", "/bin"]), "HOME": str(home)}
        as_user = {"user": USER, "group": USER, "extra_groups": []} if is_for_all(Path(sys.base_prefix)) else {}
        done = subprocess.run(command, check=True, env=environment, cwd="/", stdout=subprocess.PIPE, **as_user)
        return done.stdout.decode()

    def digests(self) -> dict[str, str]:
        """Of mode and bytes of each file below /opt/octavo: what is copied into the last stage."""
        top = self.root / "opt" / "octavo"
        found = {}
        for path in sorted(top.rglob("*")):
            content = (
                str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            )
            found[str(path.relative_to(top))] = f"{path.lstat().st_mode:o} {hashlib.sha256(content).hexdigest()}"
        return found

    def _copy(self, words: list[str]) -> None:
        if words[0].startswith("--from="):
            if words[1] != words[2]:
                raise ValueError(f"COPY {' '.join(words)}: stages share one root here, so paths have to be the same")
            return
        *sources, target = words
        into = self.root / target.lstrip("/") if target.startswith("/") else self.folder / target
        for source in sources:
            where = into / Path(source).name if target.endswith("/") else into
            where.parent.mkdir(parents=True, exist_ok=True)
            for path in sent(source):
                inside = where / path.relative_to(REPOSITORY / source)
                inside.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, inside)

    def _python(self) -> Path:
        """This Python, under the name `python`: a virtual environment has it, others get a link."""
        if sys.prefix != sys.base_prefix:
            return Path(sys.executable)
        link = self.root.parent / "bin" / "python"
        link.parent.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to(sys.executable)
        return link

    def _outside(self) -> dict[str, str]:
        """Of a build stage: no configuration of this machine but how it reaches the network."""
        passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        path = os.pathsep.join([str(self._python().parent), "/usr/bin", "/bin"])
        return (
            passed_on
            | self.environment
            | {"PATH": path, "PIP_CONFIG_FILE": os.devnull, "PIP_QUIET": "1", "HOME": str(self.root)}
        )


def sent(source: str) -> Iterator[Path]:
    """The files below a path of the repository that .dockerignore lets into the build."""
    rules = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    refused = [rule.removeprefix("**/") for rule in rules if rule.startswith("**/")]
    top = REPOSITORY / source
    for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
        inside = path.relative_to(REPOSITORY)
        if not any(inside.is_relative_to(each) for each in allowed):
            continue
        if path.is_file() and not any(fnmatch.fnmatch(part, rule) for part in inside.parts for rule in refused):
            yield path


def build(name: str, root: Path) -> Image:
    """The image, or as much of it as this machine can make."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    image = Image(root)
    for keyword, rest in instructions(REPOSITORY / "images" / name / "Dockerfile"):
        image.carry_out(keyword, rest)
    return image


def check(name: str, image: Image) -> None:
    """That the command works: its help, the CRD, a plan; of the server a chat with the model that ships with it."""
    before = image.digests()
    manifest = image.root.parent / "manifest.yaml"
    shutil.copyfile(REPOSITORY / "examples" / "llmdeployment.yaml", manifest)
    for command in (["--version"], ["--help"], ["operator", "--help"], ["plan", "-f", str(manifest)]):
        if not image.ask("octavo", *command).strip():
            raise SystemExit(f"octavo {' '.join(command)} said nothing")
    if image.ask("octavo", "crd") != (REPOSITORY / "crds" / "octavo.dev_llmdeployments.yaml").read_text():
        raise SystemExit("octavo crd gives another CRD than the repository's")
    image.ask("python", "-c", "import octavo_operator.main, kopf, kubernetes.aio")
    if name == "control-plane":
        image.ask("python", "-c", "import huggingface_hub, obstore")
        pull(image)
    if name == "server":
        print(image.ask("octavo", "up", "-f", str(manifest), "--once", "Tell me a joke"))
    if changed := differing(before, image.digests()):
        raise SystemExit(f"using the image changed {changed}")


def pull(image: Image) -> None:
    """Let the image fetch a model from a web server of this machine."""
    model = REPOSITORY / "server" / "octavo_server" / "demo_model"
    here, there = image.root.parent / "served", image.root.parent / "volume"
    shutil.copytree(model, here)
    there.mkdir()
    there.chmod(0o777)
    sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in here.iterdir())
    (here / "SHA256SUMS").write_text(sums)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(here))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        image.ask("octavo", "pull", url, str(there / "demo"), "--sha256", hashlib.sha256(sums.encode()).hexdigest())
        server.shutdown()
    if (there / "demo" / "model.safetensors").read_bytes() != (model / "model.safetensors").read_bytes():
        raise SystemExit("octavo pull fetched something else")


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Up to ten files that are not the same."""
    return sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))[:10]


def is_for_all(folder: Path) -> bool:
    """Whether this is root, who may become another user, and that user could read `folder`."""
    return os.geteuid() == 0 and all(each.stat().st_mode & 0o005 == 0o005 for each in (folder, *folder.parents))


def size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "image", choices=sorted(path.parent.name for path in (REPOSITORY / "images").glob("*/Dockerfile"))
    )
    parser.add_argument("--twice", action="store_true", help="build it again and compare the bytes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="octavo-image-") as scratch:
        Path(scratch).chmod(0o755)
        image = build(arguments.image, Path(scratch) / "root")
        check(arguments.image, image)
        digests = image.digests()
        total = hashlib.sha256(repr(digests).encode()).hexdigest()
        print(f"{size(image.root / 'opt' / 'octavo') / 2**20:.0f} MiB in /opt/octavo, sha256 {total} of all of it")
        if arguments.twice:
            again = build(arguments.image, Path(scratch) / "root").digests()
            if changed := differing(digests, again):
                raise SystemExit(f"a second build differs in {changed}")
            print("a second build gave the same bytes")


if __name__ == "__main__":
    main()
