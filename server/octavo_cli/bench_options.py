"""Options that several benchmarks share, and the values that are lists or ranges."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from octavo_server.bench.workloads import WORKLOADS, Lengths, Workload, parse_prompts


class Parsed(click.ParamType[Any]):
    """A value, or with `many` several with commas between them, read by a function that raises ValueError."""

    def __init__(self, name: str, parse: Callable[[str], Any], *, many: bool = False) -> None:
        self.name = name
        self._parse = parse
        self._many = many

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return [self._parse(part) for part in value.split(",")] if self._many else self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class FiniteRange(click.FloatRange):
    """click lets `nan` pass, since it is neither below a bound nor above one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number


class NewFile(click.Path):
    """A file to be written at the end, of which it is known at the beginning that it can be."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        if not os.access(path.parent, os.W_OK) or not path.parent.is_dir():
            self.fail(f"{str(path.parent)!r} is no directory that can be written to", param, ctx)
        return path


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 2**31):
        raise ValueError(f"{text!r} is no number of 1 or more")
    return int(text)


COUNTS: Final = Parsed("N,N,…", _count, many=True)
PROMPTS: Final = Parsed("NxTOKENS,…", parse_prompts, many=True)
LENGTHS: Final = Parsed("N|A-B", Lengths.parse)
COUNT: Final = click.IntRange(min=1)


def repeat_option(default: int) -> Callable[[Any], Any]:
    return click.option(
        "--repeat", type=COUNT, default=default, show_default=True, help="Runs, of which the median counts."
    )


def workload_options(command: Any) -> Any:
    """The options that say what the requests are."""
    for option in reversed(
        (
            click.option(
                "--workload",
                type=click.Choice(list(WORKLOADS)),
                help="a: 256 requests, 100 to 1024 tokens in and out, temperature 0.6. "
                "b: 512 requests, 512 in, 256 out, greedy.  [default: b]",
            ),
            click.option("--requests", type=COUNT, help="Number of requests."),
            click.option("--input-tokens", type=LENGTHS, help="Tokens of a prompt, as 512 or 100-1024."),
            click.option("--output-tokens", type=LENGTHS, help="Tokens of an answer."),
            click.option("--temperature", type=FiniteRange(min=0.0), help="0: greedy."),
        )
    ):
        command = option(command)
    return command


def make_workload(name: str | None, **fields: Any) -> Workload:
    """The named one, with what is given instead."""
    base = WORKLOADS[name or "b"]
    given = {field: value for field, value in fields.items() if value is not None}
    if not given:
        return base
    return Workload(**{**{field: getattr(base, field) for field in Workload.__slots__}, **given, "name": "own"})


def parameters_of(workload: Workload) -> dict[str, Any]:
    return {field: str(getattr(workload, field)) for field in Workload.__slots__ if field != "name"}
