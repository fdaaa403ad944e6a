"""What can go wrong in a simulated fleet, and how it is asked for: `NAME` or `NAME=NUMBER`."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

FAULTS: Final = {
    "lost-scrapes": (0.25, "share of scrapes that fail"),
    "no-node": (0.0, "replicas more than at the start that find a node, in the middle third of the trace"),
    "slow-startup": (4.0, "factor on start-ups in the middle third of the trace"),
    "crash": (600.0, "mean seconds between two crashes of a replica"),
}
"""The faults, the number that each has where none is given, and what it means."""


@dataclass(frozen=True, slots=True)
class Faults:
    """The numbers of `FAULTS`; None (or 0, 1) for those that do not happen."""

    lost_scrapes: float = 0.0
    no_node: int | None = None
    slow_startup: float = 1.0
    crash: float | None = None


def parse_faults(words: Iterable[str]) -> Faults:
    """From `lost-scrapes=0.25`, `no-node`, …

    Raises:
        ValueError: there is no such fault, or the number makes no sense; says which there are.
    """
    faults = Faults()
    for word in words:
        name, _, text = word.partition("=")
        if name not in FAULTS:
            raise ValueError(f"no fault {name!r}; there are {', '.join(FAULTS)}")
        try:
            number = float(text) if text else FAULTS[name][0]
        except ValueError:
            raise ValueError(f"{name}={text}: expected a number, the {FAULTS[name][1]}") from None
        faults = _with(faults, name, number)
    return faults


def _with(faults: Faults, name: str, number: float) -> Faults:
    meaning = FAULTS[name][1]
    match name:
        case "lost-scrapes" if 0 <= number < 1:
            return replace(faults, lost_scrapes=number)
        case "no-node" if number >= 0:
            return replace(faults, no_node=int(number))
        case "slow-startup" if number >= 1:
            return replace(faults, slow_startup=number)
        case "crash" if number > 0:
            return replace(faults, crash=number)
        case _:
            raise ValueError(f"{name}={number:g} is out of bounds: it is the {meaning}")
