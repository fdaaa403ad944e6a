"""The command `octavo` itself: what it imports, what it says when something is wrong, and with which exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from octavo_cli.main import COMMANDS, explain, main
from octavo_common.version import __version__
from octavo_operator.api.crd import custom_resource_definition

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DEMO = str(EXAMPLES / "llmdeployment.yaml")


def octavo(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "octavo_cli.main", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def run_in_process(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command run here, which is quicker."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    told = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, told.out, told.err


def test_help_is_told_without_importing_any_library_but_click() -> None:
    program = (
        "import sys\nfrom octavo_cli.main import cli\ncli.main(['--help'], standalone_mode=False)\n"
        "print([name for name in sorted({name.partition('.')[0] for name in sys.modules})"
        " if name in {'torch', 'pydantic', 'rich', 'httpx', 'yaml', 'kopf', 'kubernetes', 'fastapi', 'msgspec'}])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "[]"
    assert all(name in told for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_in_process(capsys, name, "--help")
    assert code == 0
    assert out.startswith(f"Usage: octavo {name} ")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_in_process(capsys, "--version") == (0, f"octavo {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pln"], "octavo: no command 'pln'; did you mean plan or pull?\n"),
        (["zzz"], "octavo: no command 'zzz'; there are: serve, up, plan, pull, bench, simulate, crd, operator\n"),
        (["plan"], "octavo: plan: Missing option '-f' / '--filename'.\n"),
        (["plan", "-f", "/nowhere.yaml"], "octavo: /nowhere.yaml: No such file or directory\n"),
        (["plan", "-f", DEMO, "--gpu-memory", "lots"], "octavo: plan: --gpu-memory: 'lots' is no quantity of memory"),
        (["plan", "-f", ""], "octavo: --filename is empty: give the manifest's file, or - for stdin\n"),
        (["plan", "-f", DEMO, "--server-image", ""], "octavo: plan: --server-image is empty: give an image\n"),
        (["up", "-f", DEMO, "--once", " "], "octavo: up: --once needs a prompt that is not empty\n"),
        (["operator"], "octavo: operator: give either --namespace (repeatable) or --all-namespaces\n"),
        (
            ["operator", "-A", "--kubeconfig", "/nowhere"],
            "octavo: operator: --kubeconfig /nowhere: there is no such file\n",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_in_process(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_an_unexpected_error_is_one_line_and_a_traceback_only_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr("octavo_cli.plan.read_manifest", broken)
    code, _, err = run_in_process(capsys, "plan", "-f", DEMO)
    assert (code, err) == (1, "octavo: unexpected ValueError: two lines (octavo --debug … shows where)\n")
    assert "Traceback" in run_in_process(capsys, "--debug", "plan", "-f", DEMO)[2]
    monkeypatch.setenv("OCTAVO_DEBUG", "1")
    assert "Traceback" in run_in_process(capsys, "plan", "-f", DEMO)[2]


def test_a_missing_library_of_the_server_names_the_extra_and_any_other_missing_module_is_not_hidden() -> None:
    message, code = explain(ModuleNotFoundError("No module named 'uvicorn.main'", name="uvicorn.main"))
    assert message.endswith("'uvicorn.main' is missing: pip install 'octavo[server]'")
    assert code == 2
    assert explain(ModuleNotFoundError("No module named 'octavo_cli.x'", name="octavo_cli.x"))[0].startswith(
        "unexpected"
    )


def test_the_crd_is_printed_as_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_in_process(capsys, "crd")
    assert code == 0
    assert yaml.safe_load(out) == custom_resource_definition()


def test_a_reader_that_leaves_early_causes_no_traceback() -> None:
    program = f"{sys.executable} -m octavo_cli.main crd | head -c 1"
    told = subprocess.run(["bash", "-o", "pipefail", "-c", program], capture_output=True, text=True, check=False)
    assert told.stdout == "#"
    assert told.stderr == ""


def test_the_wrong_manifest_is_told_field_by_field_with_its_path() -> None:
    text = Path(DEMO).read_text().replace("replicas: 1", "replicas: many").replace('cpu: "1"', 'cpus: "1"')
    for command in ("plan", "up"):
        told = octavo(command, "-f", "-", stdin=text)
        assert told.returncode == 2
        assert told.stdout == ""
        assert sorted(told.stderr.splitlines()) == [
            'octavo: -: spec.replicas: must be an integer, not "many"',
            "octavo: -: spec.resources.cpus: unknown field; did you mean cpu?",
        ]


@pytest.mark.parametrize("argument", ["--bogus", "--help", "-h"])
def test_plan_and_up_refuse_a_wrong_flag_in_the_same_words_before_they_start_anything(
    argument: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "manifest.yaml"
    file.write_text(f"{Path(DEMO).read_text()}  server: {{args: ['{argument}']}}\n")
    code, out, err = run_in_process(capsys, "plan", "-f", str(file))
    assert (code, out) == (2, "")
    assert err.startswith(f"octavo: {file}: spec.server.args: ")
    assert err.count("\n") == 1
    assert run_in_process(capsys, "up", "-f", str(file)) == (code, out, err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_an_output_that_cannot_be_written_is_told_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "octavo_cli.main", "plan", "-f", DEMO, "--json"]
        told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert told.returncode == 1
    assert told.stderr == "octavo: the output cannot be written: No space left on device\n"


def test_ctrl_c_while_the_libraries_are_imported_is_one_line() -> None:
    program = """
import importlib.abc, os, signal, sys
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from octavo_cli.__main__ import run
run()
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout, told.stderr) == (130, "", "octavo: interrupted\n")


def test_plan_as_json_holds_objects_bill_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_in_process(capsys, "plan", "-f", DEMO, "--json", "--server-image", "registry/server@sha256:0")
    told = json.loads(out)
    assert code == 0
    kinds = {each["kind"]: each for each in told["objects"]}
    assert {"Deployment", "Service"} <= set(kinds)
    (container,) = kinds["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry/server@sha256:0"
    assert told["memory"]["device"] == "cpu"
    assert told["warnings"] == []
