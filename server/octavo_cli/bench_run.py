"""What all benchmarks share: which model, the engine's flags, and how the figures are told."""

import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from octavo_cli.bench_options import NewFile
from octavo_cli.errors import WRONG_INPUT, CommandError
from octavo_cli.extras import require_server
from octavo_cli.options import flag, options_of, validated
from octavo_cli.serve import model_directory
from octavo_common.json_fields import ModelConfigError, read_json_object
from octavo_common.model_config import ModelConfig, parse_model_config, read_model_config
from octavo_server.config import EngineConfig

if TYPE_CHECKING:
    from octavo_server.bench.engine import BenchEngine
    from octavo_server.bench.report import Figure

# What a benchmark sets itself, or has no use for.
_OWN: Final = {
    "model",
    "load_format",
    "enable_prefix_caching",
    "preemption_mode",
    "disk_cache_dir",
    "disk_cache_size",
    "profile_dir",
}


@dataclass(frozen=True, slots=True)
class Target:
    """The model to be timed. `random`: `directory` holds a config.json and no weights."""

    name: str
    directory: Path
    shape: ModelConfig
    random: bool


@dataclass(frozen=True, slots=True)
class Setting:
    """A benchmark's command line but for its own options. `engine`: the flags that were given."""

    benchmark: str
    target: Target
    engine: dict[str, Any]
    as_json: bool
    output: Path | None
    profile: Path | None

    def config(self, **defaults: Any) -> EngineConfig:
        """The engine's configuration; `defaults` where no flag says otherwise.

        Raises click.UsageError, which names the flag, for values that are out of bounds.
        """
        given = {name: value for name, value in self.engine.items() if value is not None}
        load = "random" if self.target.random else "safetensors"
        return validated(EngineConfig, {**defaults, **given, "model": self.target.directory, "load_format": load})

    def flags(self) -> list[str]:
        """The flags that were given, for a command that has the same ones."""
        found = list[str]()
        for name, value in self.engine.items():
            if isinstance(value, bool):
                found.append(flag(name) if value else flag(f"no_{name}"))
            elif value is not None:
                found += [flag(name), str(value)]
        return found

    @property
    def seed(self) -> int:
        """What drawn prompts begin from."""
        return int(self.engine.get("seed") or 0)

    @contextmanager
    def engine_of(self, **defaults: Any) -> Iterator["BenchEngine"]:
        """A started engine, ended afterwards; says on stderr how the start gets on."""
        from octavo_server.bench.engine import BenchEngine

        config = self.config(**defaults)
        bench = BenchEngine(config, lambda phase: click.echo(f"octavo: {phase} …", err=True))
        bench.profile = self.profile
        try:
            click.echo("octavo: measuring …", err=True)
            yield bench
        finally:
            bench.close()

    def tell(self, figures: Sequence["Figure"], surroundings: dict[str, Any], **parameters: Any) -> None:
        """The table on stdout, or the JSON; into the file too, if one is named."""
        report = {
            "benchmark": self.benchmark,
            "model": self.target.name,
            "random_weights": self.target.random,
            "num_parameters": self.target.shape.num_parameters,
            "engine": {name: value for name, value in self.engine.items() if value is not None},
            "parameters": parameters,
            "measured_on": surroundings,
            "figures": [figure.as_json() for figure in figures],
        }
        text = json.dumps(report, indent=1, default=str)
        if self.as_json:
            click.echo(text)
        else:
            _show(report, figures)
        if self.output is not None:  # after they are told, which is then no loss if the disk is full
            self.output.write_text(text + "\n", encoding="utf-8")


def benchmark(*, profile: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator for `command(setting, **own)`: adds the model, the engine's flags and those of the output."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(model: str | None, random_weights: Path | None, **options: Any) -> None:
            require_server()
            engine = {name: options.pop(name) for name in EngineConfig.model_fields if name not in _OWN}
            told = options.pop("as_json"), options.pop("output"), options.pop("profile", None)
            with _target(model, random_weights) as target:
                command(Setting(command.__name__, target, engine, *told), **options)

        wrapped = options_of(EngineConfig, without=_OWN)(run)
        file = NewFile()
        if profile:
            wrapped = click.option("--profile", type=file, help="Write torch's trace of the first timed part.")(wrapped)
        wrapped = click.option("--output", type=file, help="Write the JSON to this file as well.")(wrapped)
        wrapped = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")(wrapped)
        wrapped = click.option(
            "--random-weights",
            type=click.Path(path_type=Path),
            metavar="CONFIG",
            help="A config.json: its shape is timed, with random weights.",
        )(wrapped)
        return click.argument("model", required=False)(wrapped)

    return decorate


@contextmanager
def _target(model: str | None, random_weights: Path | None) -> Iterator[Target]:
    """Raises CommandError or click.UsageError for what cannot be timed."""
    if (model is None) == (random_weights is None):
        given = "both were given" if model else "neither was given"
        raise click.UsageError(f"give either MODEL or --random-weights CONFIG; {given}")
    if model is not None:
        directory = model_directory(model)
        yield Target(model, directory, _checked(lambda: read_model_config(directory), "MODEL"), random=False)
        return
    path = Path(str(random_weights)).expanduser()
    content = _checked(lambda: read_json_object(path), "--random-weights")
    shape = _checked(lambda: parse_model_config(content), "--random-weights")
    with tempfile.TemporaryDirectory(prefix="octavo-bench-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(content), encoding="utf-8")
        yield Target(path.stem, Path(folder), shape, random=True)


def _checked(read: Callable[[], Any], where: str) -> Any:
    try:
        return read()
    except ModelConfigError as error:
        raise CommandError(f"{where}: {error}", exit_code=WRONG_INPUT) from error


def _show(report: dict[str, Any], figures: Sequence["Figure"]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    on = report["measured_on"]
    known = [f"{name} {on[name]}" for name in ("torch", "cuda", "octavo", "commit") if on.get(name)]
    weights = "random weights" if report["random_weights"] else "its own weights"
    billions = report["num_parameters"] / 1e9
    console.print(f"{report['model']}, {weights}, {billions:.3g} billion parameters, {on['dtype']}; {on['device']}")
    console.print("; ".join([", ".join(known), *(f"{name} {value}" for name, value in report["parameters"].items())]))
    table = Table(box=None, pad_edge=False)
    for name in ("figure", "value", "unit", "besides"):
        table.add_column(name, justify="right" if name == "value" else "left", overflow="fold")
    for figure in figures:
        besides = ", ".join(f"{name} {value}" for name, value in figure.details.items())
        table.add_row(
            figure.name, f"{figure.value:g}" if figure.value < 1e5 else f"{figure.value:,.0f}", figure.unit, besides
        )
    console.print(table)
