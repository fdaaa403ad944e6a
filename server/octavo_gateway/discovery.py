"""Which replicas there are. Whoever finds them out publishes the whole fleet each time it changes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A replica. `url` has no slash at its end. draining: it finishes what it has and takes nothing new.

    metrics_url: where its figures are, if not at `url`.
    """

    id: str
    url: str
    ready: bool = True
    draining: bool = False
    metrics_url: str | None = None


Fleet = Mapping[str, tuple[Endpoint, ...]]
"""Replicas by model. A model without any is known nevertheless: its requests wait for one."""


class Discovery(Protocol):
    """A source of fleets."""

    async def run(self, publish: Callable[[Fleet], None]) -> None:
        """Publish what is there, and what changes, until cancelled."""
