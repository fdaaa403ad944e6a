"""What the gateway knows of one replica: what it sent there, what the replica tells, and whether it can be reached."""

from dataclasses import dataclass, field
from typing import Final

from octavo_common.routing import ReplicaLoad
from octavo_gateway.discovery import Endpoint

FIRST_PAUSE: Final = 0.25  # seconds after a failure; each one in a row doubles it
LONGEST_PAUSE: Final = 8.0
BUSY_PAUSE: Final = 0.5  # for a replica that said it takes no more
SAMPLE_SECONDS: Final = 15.0  # as long as figures are believed

STATES: Final = ("taken", "paused", "draining", "starting")


@dataclass(frozen=True, slots=True)
class Sample:
    """Figures of a replica at a time, and how much of them was ours then."""

    at: float
    requests: int
    waiting: int
    waiting_tokens: int
    kv_use: float
    kv_tokens: int | None
    own_requests: int = 0
    own_waiting: int = 0
    own_waiting_tokens: int = 0


@dataclass(eq=False, slots=True)
class Replica:
    """Of `in_flight` requests there, `waiting` streams have had no token yet. Times are seconds of one clock."""

    endpoint: Endpoint
    in_flight: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    sample: Sample | None = None
    failures: int = 0
    paused_until: float = 0.0
    gone: bool = False
    heard: float = field(default=0.0)

    def takes(self, now: float) -> bool:
        """Whether requests may be sent there, as far as is known."""
        return self.endpoint.ready and not self.endpoint.draining and not self.gone and now >= self.paused_until

    def state(self, now: float) -> str:
        """One of `STATES`."""
        if self.endpoint.draining:
            return "draining"
        if not self.endpoint.ready:
            return "starting"
        return "taken" if self.takes(now) else "paused"

    def load(self, now: float) -> ReplicaLoad:
        """What it has: ours as we know it, and what it told of others'."""
        sample = self.sample
        if sample is None or now - sample.at > SAMPLE_SECONDS:
            return ReplicaLoad(self.endpoint.id, self.in_flight, self.waiting, self.waiting_tokens)
        return ReplicaLoad(
            self.endpoint.id,
            self.in_flight + max(0, sample.requests - sample.own_requests),
            self.waiting + max(0, sample.waiting - sample.own_waiting),
            self.waiting_tokens + max(0, sample.waiting_tokens - sample.own_waiting_tokens),
            min(1.0, sample.kv_use),
            sample.kv_tokens,
        )

    def failed(self, now: float) -> None:
        """It could not be reached, or broke down."""
        self.paused_until = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2**self.failures)
        self.failures += 1

    def busy(self, now: float, seconds: float = BUSY_PAUSE) -> None:
        """It said that it takes nothing now."""
        self.paused_until = max(self.paused_until, now + seconds)

    def answered(self) -> None:
        """It did what was asked."""
        self.failures = 0
