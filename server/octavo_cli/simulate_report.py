"""What `octavo simulate` shows: tables, and a plot of attainment over GPU-hours."""

import importlib.util
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from octavo_cli.errors import FAILED, WRONG_INPUT, CommandError
from octavo_operator.simulate.policies.catalogue import GOAL, pareto

if TYPE_CHECKING:
    from octavo_operator.simulate.routing import Routed
    from octavo_operator.simulate.score import Result

_WIDTH = 120
_LEAST_SHOWN = 0.9
"""Attainments below are drawn at the plot's lower edge: nobody would run them."""


def table(results: "Sequence[Result]", every: "Sequence[Result]") -> None:
    """A row for each result; those that no other beats in both attainment and GPU-hours are marked."""
    front = pareto(every)
    rows = Table(box=None, pad_edge=False)
    for title in ("policy", "setting"):
        rows.add_column(title, no_wrap=True)
    for title in ("attained", "GPU-h", "TTFT p50", "p99 ms", "TPOT p99", "most", "reversals", "dropped", "front"):
        rows.add_column(title, justify="right", no_wrap=True)
    for each in results:
        rows.add_row(
            each.policy,
            each.setting,
            f"{each.attainment:.2%}",
            f"{each.gpu_hours:.2f}",
            _number(each.ttft_p50_ms),
            _number(each.ttft_p99_ms),
            _number(each.tpot_p99_ms, 1),
            str(each.max_replicas),
            str(each.reversals),
            str(each.dropped),
            "*" if each in front else "",
            style="" if each.attainment >= GOAL else "dim",
        )
    _print(rows)


def route_table(results: "Sequence[Routed]") -> None:
    """A row for each routing policy."""
    rows = Table(box=None, pad_edge=False)
    rows.add_column("routing")
    for title in ("prefix hits", "imbalance", "attained", "TTFT p50", "p99 ms", "TPOT p99"):
        rows.add_column(title, justify="right")
    for each in results:
        rows.add_row(
            each.routing,
            f"{each.hit_rate:.1%}",
            f"{each.imbalance:.2f}",
            f"{each.attainment:.2%}",
            _number(each.ttft_p50_ms),
            _number(each.ttft_p99_ms),
            _number(each.tpot_p99_ms, 1),
        )
    _print(rows)


def _print(rows: Table) -> None:
    """In full where a file or a pipe reads it."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, _WIDTH))
    console.print(rows)


def _number(value: float, digits: int = 0) -> str:
    return "-" if isnan(value) else f"{value:.{digits}f}"


def require_plot() -> None:
    """Nothing, if a plot can be drawn.

    Raises:
        CommandError: matplotlib is missing; says what to install.
    """
    if importlib.util.find_spec("matplotlib") is None:
        text = "simulate: --plot needs matplotlib: pip install 'octavo[plot]'"
        raise CommandError(text, exit_code=WRONG_INPUT)


def draw(path: Path, results: "Sequence[Result]", title: str) -> None:
    """A PNG: a point for each result, a colour for each policy, and the Pareto front as a line.

    Raises:
        CommandError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in dict.fromkeys(each.policy for each in results):
        mine = [each for each in results if each.policy == name]
        heights = [100 * max(each.attainment, _LEAST_SHOWN) for each in mine]
        size = 90 if name == "octavo" else 30
        axes.scatter([each.gpu_hours for each in mine], heights, s=size, label=name, alpha=0.8)
    front = [each for each in pareto(results) if each.attainment >= _LEAST_SHOWN]
    axes.plot([each.gpu_hours for each in front], [100 * each.attainment for each in front], color="grey", lw=0.8)
    axes.axhline(100 * GOAL, color="grey", lw=0.5, ls=":")
    axes.set_xlabel("GPU-hours, loading included")
    axes.set_ylabel("requests within both targets, %")
    axes.set_title(title)
    axes.legend(fontsize="small", loc="lower right")
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise CommandError(f"simulate: {path}: {error.strerror}", exit_code=FAILED) from error
