"""`octavo simulate`: a trace against a simulated fleet, under autoscaling or routing policies."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from octavo_cli.errors import WRONG_INPUT, CommandError

if TYPE_CHECKING:
    from octavo_operator.simulate.score import Result
    from octavo_operator.simulate.world import Scenario

_NAMES = (
    "octavo, static-peak, hpa-kv, hpa-queue, keda, apa, llmd-v1, llmd-v2, causal-bound"  # tested against the catalogue
)
_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command(short_help="Replay a trace against a simulated fleet.")
@click.option(
    "--trace",
    "path",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="CSV: TIMESTAMP, ContextTokens, GeneratedTokens; or JSON lines: timestamp (ms), input_length, output_length.",
)
@click.option("--scale", type=_POSITIVE, default=1.0, show_default=True, help="Copies of the trace, each shifted.")
@click.option("--startup", type=_POSITIVE, default=60.0, show_default=True, help="Seconds that a replica starts.")
@click.option(
    "--warmup", type=click.FloatRange(min=0), default=600.0, show_default=True, help="Seconds that do not count."
)
@click.option(
    "--profile",
    type=click.Choice(["trace", "flat", "diurnal", "burst"]),
    default="trace",
    show_default=True,
    help="When requests come: as in the trace, or at a rate of this shape.",
)
@click.option(
    "--duration", type=_POSITIVE, metavar="SECONDS", help="How long.  [default: as the trace; diurnal: three times]"
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME[=NUMBER]",
    help="lost-scrapes (share), no-node (replicas more that find one), slow-startup (factor), crash (seconds between).",
)
@click.option("--policy", "policies", multiple=True, metavar="NAME", help=f"all, or of {_NAMES}.  [default: all]")
@click.option("--sweep", is_flag=True, help="Also try other settings of each policy, and show the best.")
@click.option("--routing", is_flag=True, help="Compare routing policies instead, on --replicas that never change.")
@click.option("--replicas", type=click.IntRange(min=1), default=8, show_default=True, help="For --routing.")
@click.option("--max-replicas", type=click.IntRange(min=1), default=64, show_default=True, help="Most there may be.")
@click.option("--kv-tokens", type=click.IntRange(min=1024), default=444_000, show_default=True, help="Of a replica.")
@click.option("--speed", type=_POSITIVE, default=1.0, show_default=True, help="Of a replica, times that of an H100.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same figures.")
@click.option("--plot", metavar="FILE.png", type=click.Path(path_type=Path), help="Draw attainment over GPU-hours.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def simulate(
    path: Path, policies: Sequence[str], sweep: bool, routing: bool, plot: Path | None, as_json: bool, **given: Any
) -> None:
    """Replay a trace against a simulated fleet, and tell what each policy attained and cost.

    \b
    octavo simulate --trace trace.csv --scale 20 --policy octavo --policy hpa-kv --sweep
    octavo simulate --trace trace.jsonl --profile diurnal --policy all --plot front.png
    octavo simulate --trace trace.jsonl --routing --replicas 8
    """
    from octavo_cli.simulate_report import draw, require_plot, route_table, table

    if plot is not None:
        require_plot()
    names = _policies(policies)
    replicas = given.pop("replicas")
    scenario = _scenario(path, **given)
    if routing:
        from octavo_operator.simulate.routing import compare

        with _Progress() as progress:
            routed = list(compare(scenario, replicas, progress.show))
        if as_json:
            click.echo(json.dumps({"results": [each.as_json() for each in routed]}))
        else:
            route_table(routed)
        return
    every, best = [], []
    with _Progress() as progress:
        for name in names:
            results = list(_evaluate(scenario, name, progress, sweep=sweep))
            every.extend(results)
            best.append(results)
    shown = _shown(best, sweep=sweep)
    if as_json:
        rest = {"sweep": [each.as_json() for each in every]} if sweep else {}
        click.echo(json.dumps({"results": [each.as_json() for each in shown], **rest}))
    else:
        table(shown, every)
    if plot is not None:
        draw(plot, every, title=f"{path.name}, {given['profile']}, start-up {given['startup']:g} s")


def _shown(results: "Sequence[Sequence[Result]]", *, sweep: bool) -> "list[Result]":
    """A row for each policy with its default; after a sweep, one more with the best setting, if that is another."""
    from octavo_operator.simulate.policies.catalogue import best_of

    rows: list[Result] = []
    for each in results:
        rows.append(each[0])
        if sweep and (best := best_of(each)) is not each[0]:
            rows.append(best)
    return rows


def _evaluate(scenario: "Scenario", name: str, progress: "_Progress", *, sweep: bool) -> "Iterator[Result]":
    from octavo_operator.simulate.policies.catalogue import evaluate

    return evaluate(scenario, name, progress.show, sweep=sweep)


def _policies(names: Sequence[str]) -> list[str]:
    from octavo_operator.simulate.policies.catalogue import POLICIES

    words = [word for name in names for word in name.split(",")]
    if not words or "all" in words:
        return list(POLICIES)
    for word in words:
        if word not in POLICIES:
            raise CommandError(
                f"simulate: no policy {word!r}; there are all, {', '.join(POLICIES)}", exit_code=WRONG_INPUT
            )
    return list(dict.fromkeys(words))


def _scenario(path: Path, **given: Any) -> "Scenario":
    from octavo_operator.simulate.faults import parse_faults
    from octavo_operator.simulate.hardware import Hardware
    from octavo_operator.simulate.trace import TraceError, read_trace, shape, superpose
    from octavo_operator.simulate.world import Scenario

    seed = given["seed"]
    try:
        faults = parse_faults(given["faults"])
        trace = superpose(read_trace(path), given["scale"], seed)
    except (TraceError, ValueError) as error:
        raise CommandError(f"simulate: {error}", exit_code=WRONG_INPUT) from error
    except OSError as error:
        raise CommandError(f"simulate: {path}: {error.strerror}", exit_code=WRONG_INPUT) from error
    trace = shape(trace, given["profile"], seed, given["duration"])
    if trace.seconds <= given["warmup"]:
        raise CommandError(
            f"simulate: the trace lasts {trace.seconds:.0f} s, and --warmup takes {given['warmup']:.0f} of them: "
            "give a smaller --warmup or a --duration",
            exit_code=WRONG_INPUT,
        )
    return Scenario(
        trace=trace,
        hardware=Hardware(kv_tokens=given["kv_tokens"]).faster(given["speed"]),
        startup=given["startup"],
        warmup=given["warmup"],
        seed=seed,
        faults=faults,
        max_replicas=given["max_replicas"],
    )


class _Progress:
    """A line on stderr that tells how far a run is, on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.status import Status

        self._status = Status("reading", console=Console(stderr=True))
        self._told = 0.0

    def __enter__(self) -> "_Progress":
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def show(self, name: str, share: float) -> None:
        """So much of the trace is through under this policy."""
        now = time.monotonic()
        if now - self._told > 0.2:
            self._told = now
            self._status.update(f"{name} {min(share, 1.0):.0%}")
