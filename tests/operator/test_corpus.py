"""The commands judge a manifest as the CRD does: what the API server refuses they refuse, by the same field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from manifest_corpus import BAD, GOOD, Case
from octavo_cli.errors import WRONG_INPUT, CommandError
from octavo_cli.plan import plan
from octavo_cli.up import up
from offline import ask_nobody

TAKEN = "the manifest was taken"


def judged(command: str, case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command says against the manifest itself; nothing where it takes it, whatever this machine lacks."""

    def stop(*_: object) -> None:
        raise RuntimeError(TAKEN)

    monkeypatch.setattr("octavo_operator.local.plan.plan_locally", stop)
    ask_nobody(monkeypatch)
    file = folder / "manifest.json"
    file.write_text(json.dumps(case.manifest))
    chosen = plan if command == "plan" else up
    result = CliRunner().invoke(chosen, ["-f", str(file)], standalone_mode=False)
    if isinstance(result.exception, CommandError) and result.exception.exit_code == WRONG_INPUT:
        return str(result.exception)
    assert result.exception is None or isinstance(result.exception, CommandError) or str(result.exception) == TAKEN
    return ""


@pytest.mark.parametrize("command", ["plan", "up"])
def test_a_command_takes_every_good_manifest(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {case.title: judged(command, case, tmp_path, monkeypatch) for case in GOOD}
    assert {title: text for title, text in told.items() if text} == {}


@pytest.mark.parametrize("command", ["plan", "up"])
def test_a_command_refuses_every_bad_manifest_by_its_field(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {case.title: (case.path, judged(command, case, tmp_path, monkeypatch)) for case in BAD}
    assert {title: text for title, (path, text) in told.items() if path not in text} == {}


def test_the_corpus_is_worth_its_name() -> None:
    assert len(GOOD) + len(BAD) >= 60
    assert len({case.title for case in GOOD + BAD}) == len(GOOD) + len(BAD)
