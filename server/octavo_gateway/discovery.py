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


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is said of one model, instead of what flags say of all: targets in seconds, and how many may be held."""

    ttft_target: float | None = None
    tpot_target: float | None = None
    hold_requests: int | None = None


Publish = Callable[[Fleet, Mapping[str, Wishes]], None]


class Discovery(Protocol):
    """A source of fleets."""

    async def run(self, publish: Publish) -> None:
        """Publish what is there, and what changes, until cancelled."""
