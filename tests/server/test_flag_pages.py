"""docs/flags.md has the flags of `octavo serve`, docs/from-vllm.md those of vLLM that it has not: both whole."""

import re
from pathlib import Path
from typing import Final

import click

from octavo_cli.serve import serve
from octavo_cli.vllm_flags import NOT_HERE

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
OPTIONS: Final = [parameter for parameter in serve.params if isinstance(parameter, click.Option)]
KINDS: Final = {"integer": "number", "float": "number", "path": "path", "text": "text", "boolean": ""}


LAST: Final = "\n## Flags that are not here\n"


def rows_of(text: str) -> list[str]:
    return re.findall(r"^\| `-.*$", text, re.MULTILINE)


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def row(option: click.Option) -> str:
    """What the page has of a flag. A page that is behind has these lines in pytest's difference."""
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    choices = getattr(option.type, "choices", ())
    kind = ", ".join(map(str, choices)) if choices else KINDS[option.type.name]
    several = " (several times)" if option.multiple else ""
    environment = "".join(f"; `{name}`" for name in option.envvar or ())
    text = " ".join((option.help or "").split())
    return f"| {names}{environment} | {kind}{several} | {text} |"


def test_the_page_of_flags_has_each_as_the_command_describes_it() -> None:
    assert sorted(rows_of(page("flags.md"))) == sorted(map(row, OPTIONS))


def test_vllms_flags_that_are_not_here_stand_on_their_page_as_they_are_answered() -> None:
    rows = [f"| {', '.join(f'`{flag}`' for flag in flags.split())} | {why} |" for why, flags in NOT_HERE.items()]
    assert rows_of(page("from-vllm.md").partition(LAST)[2]) == rows


def test_flags_that_pages_name_are_there() -> None:
    ours = {name for option in OPTIONS for name in (*option.opts, *option.secondary_opts)}
    named = set(re.findall(r"`(--[a-z-]+)", page("from-vllm.md").partition(LAST)[0]))
    assert len(named) > 20
    assert named <= ours
