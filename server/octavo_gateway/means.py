"""What deliveries share."""

from dataclasses import dataclass

from octavo_gateway.attempts import Attempts
from octavo_gateway.metrics import GatewayMetrics
from octavo_gateway.replicas_http import ReplicasHttp


@dataclass(frozen=True, slots=True)
class Means:
    """What deliveries share."""

    http: ReplicasHttp
    metrics: GatewayMetrics
    attempts: Attempts
    most_losses: int
    hold_seconds: float
