"""What the user decided: `spec.autoscaling` as plain data."""

from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["Internal", "Recommend", "External"]


@dataclass(frozen=True, slots=True)
class Targets:
    """`spec.autoscaling.targets`. The gateway adds 250 ms to the TTFT target for each 1,000 prompt tokens."""

    kv_cache_utilization_percent: float = 80.0
    time_to_first_token_milliseconds: float = 1000.0
    time_per_output_token_milliseconds: float = 50.0


@dataclass(frozen=True, slots=True)
class Behavior:
    """`spec.autoscaling.behavior`, seconds."""

    scale_up_stabilization_seconds: float = 15.0
    scale_down_stabilization_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class ScaleToZero:
    """`spec.autoscaling.scaleToZero`; `max_queued_requests` is the gateway's bound, and nothing is decided by it."""

    idle_seconds: float = 900.0
    max_queued_requests: int = 200


@dataclass(frozen=True, slots=True)
class Settings:
    """`spec.autoscaling`. With `scale_to_zero` None at least one replica stays, whatever `min_replicas` says.

    Raises:
        ValueError: the bounds contradict each other.
    """

    mode: Mode = "Internal"
    min_replicas: int = 1
    max_replicas: int = 8
    targets: Targets = field(default_factory=Targets)
    behavior: Behavior = field(default_factory=Behavior)
    scale_to_zero: ScaleToZero | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(
                f"autoscaling: minReplicas {self.min_replicas} and maxReplicas {self.max_replicas}: "
                "0 <= minReplicas <= maxReplicas and maxReplicas >= 1 must hold"
            )

    @property
    def floor(self) -> int:
        """The fewest replicas ever asked for."""
        return self.min_replicas if self.scale_to_zero is not None else max(1, self.min_replicas)
