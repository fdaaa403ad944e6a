"""How one request went: what is logged, counted, and judged against the targets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Targets:
    """Seconds within which a first token is in time, also for each 1,000 tokens of a prompt; and between tokens."""

    ttft: float
    ttft_per_1000_tokens: float
    tpot: float


@dataclass(slots=True)
class Timing:
    """One request. Times are seconds of the loop's clock, tokens as far as they are known.

    limits: headers that tell what is left to its key.
    """

    request_id: str
    arrival: float
    key: str | None = None
    model: str | None = None
    replica: str | None = None
    stream: bool = False
    held: float = 0.0
    first: float | None = None
    latest: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retried: int = 0
    resumed: int = 0
    status: int = 0
    error: str | None = None
    limits: Mapping[str, str] = field(default_factory=dict)

    def is_late_at_first(self, targets: Targets) -> bool:
        """Whether the first token came late."""
        allowed = targets.ttft + targets.ttft_per_1000_tokens * self.prompt_tokens / 1000
        return self.first is not None and self.first - self.arrival > allowed

    def is_late_between(self, targets: Targets) -> bool:
        """Whether tokens came slower than they should, on the average."""
        if self.first is None or self.completion_tokens < 2:
            return False
        return (self.latest - self.first) / (self.completion_tokens - 1) > targets.tpot

    def fields(self, method: str, route: str, now: float) -> dict[str, Any]:
        """What the log says of it; nothing of what was said."""
        told: dict[str, Any] = {
            "key": self.key,
            "method": method,
            "route": route,
            "status": self.status,
            "error": self.error,
            "seconds": round(now - self.arrival, 6),
        }
        if self.model is not None:
            told |= {
                "model": self.model,
                "replica": self.replica,
                "stream": self.stream,
                "held_seconds": round(self.held, 6),
                "ttft_seconds": None if self.first is None else round(self.first - self.arrival, 6),
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "retried": self.retried or None,
                "resumed": self.resumed or None,
            }
        return told
