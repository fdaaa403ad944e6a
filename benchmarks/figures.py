"""The figures of the performance page, with what is to be reached; and the file of those measured.

`results/h100.json` has one row for each figure that was measured; `update` replaces rows by name and keeps the others.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parent / "results/h100.json"


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure's unit, what must be reached, where it is to end, and what vLLM 0.26 does; None where there is nothing.

    alone: of attention by itself, excused if the goals of the whole engine are reached.
    """

    unit: str
    goal: float | None
    stretch: float | None
    vllm: float | None
    lower_is_better: bool = True
    alone: bool = False

    def reached(self, value: float) -> bool:
        """Whether the value is the goal or better."""
        return self.goal is None or (value <= self.goal if self.lower_is_better else value >= self.goal)


def _higher(unit: str, goal: float | None, stretch: float | None, vllm: float | None, alone: bool = False) -> Goal:
    return Goal(unit, goal, stretch, vllm, lower_is_better=False, alone=alone)


def _http(model: str, rate: int, ttft: tuple[float, float], tpot: tuple[float, float]) -> dict[str, Goal]:
    """(goal, vLLM's) of the medians."""
    return {
        f"http-{model}-{rate}-ttft": Goal("ms", ttft[0], None, ttft[1]),
        f"http-{model}-{rate}-tpot": Goal("ms", tpot[0], None, tpot[1]),
    }


TABLE: Final[dict[str, Goal]] = {
    "8b-decode-1": Goal("ms", 5.5, 5.3, 6.55),
    "8b-decode-8": Goal("ms", 6.2, 5.8, 6.97),
    "8b-decode-64": Goal("ms", 9.4, 9.0, 9.87),
    "8b-decode-256": Goal("ms", 19.7, 19.2, 20.2),
    "0.6b-decode-1": Goal("ms", 1.0, 0.8, 1.82),
    "0.6b-decode-8": Goal("ms", 1.35, 1.1, 2.04),
    "0.6b-decode-64": Goal("ms", 4.0, 3.7, 4.42),
    "0.6b-decode-256": Goal("ms", 11.8, 11.4, 12.2),
    "8b-prefill-8192": _higher("tok/s", 38_000, 40_000, 37_200),
    "8b-prefill-32x2048": _higher("tok/s", 43_500, 45_500, 43_000),
    "8b-ttft-128": Goal("ms", 8, 7, 15.3),
    "8b-ttft-512": Goal("ms", 14, 12, 19.3),
    "8b-ttft-1024": Goal("ms", 26, 23, 39.8),
    "8b-ttft-2048": Goal("ms", 48, 44, 53.7),
    "8b-ttft-4096": Goal("ms", 99, 92, 104.8),
    "0.6b-throughput-a": _higher("out tok/s", 20_800, 22_500, 18_800),
    "8b-throughput-b": _higher("out tok/s", 10_150, 10_600, 9_860),
    "8b-prefix": Goal("s", 0.40, 0.33, 0.50),
    "8b-prefix-cost": Goal("%", 1.0, 0.3, 1.2),
    # The goal is the better of swapping only and recomputing only, in the same run: it comes with the row.
    "8b-swap": _higher("out tok/s", None, None, None),
    "8b-swap-copies-out": _higher("GB/s", 45, None, None),
    "8b-swap-copies-in": _higher("GB/s", 45, None, None),
    "8b-swap-step": Goal("%", 3.0, None, None),
    "8b-start-cold": Goal("s", 20, 12, 74),
    "8b-start-warm": Goal("s", 10, 6, 40),
    "host-1": Goal("ms", 0.15, None, None),
    "host-64": Goal("ms", 0.4, None, None),
    "host-256": Goal("ms", 1.0, None, None),
    **_http("0.6b", 8, (14, 35.1), (1.8, 2.82)),
    **_http("0.6b", 32, (20, 61.9), (3.2, 6.71)),
    **_http("0.6b", 64, (28, 73.1), (5.0, 9.17)),
    "http-0.6b-all": _higher("out tok/s", 15_000, 22_000, 11_795),
    **_http("8b", 8, (25, 37.4), (7.0, 7.91)),
    **_http("8b", 16, (32, 47.0), (8.8, 9.80)),
    **_http("8b", 32, (60, 79.2), (15, 16.9)),
    "http-8b-all": _higher("out tok/s", 6_500, 6_800, 6_184),
    "attention-decode-64x1024": Goal("us", 105, None, 102, alone=True),
    "attention-decode-64x8192": Goal("us", 710, None, 707, alone=True),
    "attention-decode-256x1024": Goal("us", 372, None, 372, alone=True),
    "attention-decode-256x8192": Goal("us", 2810, None, 2801, alone=True),
    "attention-prefill-1x8192": _higher("TFLOP/s", 520, None, 581, alone=True),
    "attention-prefill-4x2048": _higher("TFLOP/s", 430, None, 473, alone=True),
    "attention-prefill-16x512": _higher("TFLOP/s", 250, None, 257, alone=True),
}
# Where the engine's goals must hold for attention alone to be excused.
_DECODE: Final = ("8b-decode-64", "8b-decode-256")
_PREFILL: Final = ("8b-prefill-8192", "8b-prefill-32x2048")


@dataclass(frozen=True, slots=True)
class Measured:
    """A value of the table. `goal`: where the table leaves it to the run. `more`: what else belongs to it."""

    name: str
    value: float
    command: str
    goal: float | None = None
    more: Mapping[str, Any] | None = None


def row(measured: Measured, commit: str | None) -> dict[str, Any]:
    """As it stands in the file. Raises KeyError if the table has no such figure."""
    goal = TABLE[measured.name]
    return {
        "name": measured.name,
        "value": measured.value,
        "unit": goal.unit,
        "goal": goal.goal if measured.goal is None else measured.goal,
        "stretch": goal.stretch,
        "vllm": goal.vllm,
        "lower_is_better": goal.lower_is_better,
        "command": measured.command,
        "commit": commit,
        **({"more": dict(measured.more)} if measured.more else {}),
    }


def holds(found: Mapping[str, Any]) -> bool:
    """Whether a row is at its goal."""
    if found["goal"] is None:
        return True
    value, goal = found["value"], found["goal"]
    return bool(value <= goal if found["lower_is_better"] else value >= goal)


def with_excuses(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """In the order of the table; attention alone is excused where it misses its goal and the engine's ones hold."""
    by_name = {str(each["name"]): {key: value for key, value in each.items() if key != "excused"} for each in rows}
    found = [by_name[name] for name in TABLE if name in by_name]
    for each in found:
        if TABLE[each["name"]].alone and not holds(each):
            engine = _DECODE if "-decode-" in each["name"] else _PREFILL
            if all(name in by_name and holds(by_name[name]) for name in engine):
                each["excused"] = True
    return found


def update(path: Path, measured: Iterable[Measured], *, device: str, commit: str | None) -> list[dict[str, Any]]:
    """Writes the rows into the file, those of the same names replaced; all rows that stand there now.

    `commit` is what a row was measured at; that of the file is of the newest rows.
    """
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}
    newer = {each.name: row(each, commit) for each in measured}
    older = [
        {**each, "commit": each.get("commit", before.get("commit"))}
        for each in before["rows"]
        if each["name"] not in newer
    ]
    rows = with_excuses([*older, *newer.values()])
    content = {"commit": commit or before.get("commit"), "device": device, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return rows


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """For people: name, value, goal, stretch, vLLM's, and whether it is reached."""
    lines = [f"{'figure':26} {'value':>10} {'goal':>8} {'stretch':>8} {'vLLM':>8}  unit"]
    for each in rows:
        said = "" if holds(each) else "excused" if each.get("excused") else "MISSED"
        goals = " ".join(f"{_short(each[name]):>8}" for name in ("goal", "stretch", "vllm"))
        lines.append(f"{each['name']:26} {_short(each['value']):>10} {goals}  {each['unit']:9} {said}")
    return "\n".join(lines)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:g}" if abs(value) < 1e5 else f"{value:,.0f}"
