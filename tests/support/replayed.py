"""Decode graphs without a GPU: what is recorded is called again, on the same buffers."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from octavo_server import engine_start
from octavo_server.worker.graph_recorder import Recorder


@dataclass
class CallingRecorder:
    """Replays by calling. Counts what a GPU would do in one launch each, and the memory that it would take."""

    recorded: int = 0
    replayed: int = 0
    forgotten: int = 0
    runs: list[Callable[[], None]] = field(default_factory=list)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        self.recorded += 1
        self.runs.append(run)

        def replay() -> None:
            self.replayed += 1
            run()

        return replay

    def forget(self) -> None:
        self.forgotten += 1
        self.runs.clear()


def record_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> CallingRecorder:
    """From now on `start_engine` makes engines on the CPU whose decode steps are replayed."""
    recorder = CallingRecorder()

    def pick(_device: object, *, enforce_eager: bool) -> Recorder | None:
        return None if enforce_eager else recorder

    monkeypatch.setattr(engine_start, "pick_recorder", pick)
    return recorder
