"""Shows how replicas come up: changing in place on a terminal, a line per change elsewhere. All on stderr."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from octavo_operator.local.replica import ReplicaState

SIGNS = {"Ready": ("●", "green"), "Backoff": ("✗", "red"), "NotReady": ("●", "yellow"), "Stopped": ("○", "dim")}


class Progress:
    """A context in which `replicas` shows their states and `note` says something beside them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = time.monotonic()
        self._told: dict[str, str] = {}
        self._states: Sequence[ReplicaState] = ()
        self._spinner = Spinner("dots")
        live = Live(console=console, refresh_per_second=10, get_renderable=self._table) if console.is_terminal else None
        self._live = live

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal to others; what is shown later is printed line by line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str, style: str = "dim") -> None:
        """Print a line of its own."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def event(self, text: str, style: str = "") -> None:
        """Print a line with the time since the beginning."""
        self.note(f"[{self._seconds():6.1f} s] {text}", style=style)

    def replicas(self, states: "Sequence[ReplicaState]") -> None:
        """Show the states as they are now."""
        self._states = states
        if self._live is not None:
            return  # it looks at them ten times a second
        for gone in self._told.keys() - {state.name for state in states}:
            del self._told[gone]
            self.event(f"{gone}: gone")
        for state in states:
            line = f"{state.name}: {describe(state)}"
            if self._told.get(state.name) != line:
                self._told[state.name] = line
                self.event(line)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for state in self._states:
            sign, style = SIGNS.get(state.phase, ("", ""))
            mark = Text(sign, style=style) if sign else self._spinner
            table.add_row(mark, Text(state.name, style="bold"), Text(describe(state)), Text(f"{self._seconds():.1f} s"))
        return table

    def _seconds(self) -> float:
        return time.monotonic() - self._begun


def describe(state: "ReplicaState") -> str:
    """A replica's state in a few words."""
    match state.phase:
        case "Ready":
            return f"ready at {state.url}"
        case "Starting":
            return state.message or "starting"
        case "Backoff" if not state.ever_ready:
            return state.last_exit or ""  # given up: it would end so again
        case "Backoff":
            return f"{state.last_exit}; {state.message.rpartition('; ')[2]}"
        case _:
            return f"{state.phase.lower()}{': ' if state.message else ''}{state.message}"
