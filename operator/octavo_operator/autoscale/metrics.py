"""What the autoscaler counts, for the operator's /metrics."""

from contextlib import suppress
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from octavo_operator.autoscale.decide import Decision

_LABELS: Final = ("namespace", "name")
Name = tuple[str, str]


class AutoscalingMetrics:
    """Registered with `registry`; the gauges of an LLMDeployment go with it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._desired = Gauge(
            "octavo_operator_autoscaling_desired_replicas",
            "Replicas that the load needs, as decided or recommended last",
            _LABELS,
            registry=registry,
        )
        self._active = Gauge(
            "octavo_operator_autoscaling_active",
            "1 while the load is known and followed, else 0",
            _LABELS,
            registry=registry,
        )
        self._utilization = Gauge(
            "octavo_operator_autoscaling_target_utilization",
            "Share of a replica's capacity that is asked of it, as learned, 0 to 1",
            _LABELS,
            registry=registry,
        )
        self._decisions = Counter(
            "octavo_operator_autoscaling_decisions",
            "Decisions for another number of replicas",
            [*_LABELS, "direction", "reason"],
            registry=registry,
        )
        self._scrapes = Counter(
            "octavo_operator_scrapes", "Metrics asked of replicas and gateways", ["result"], registry=registry
        )
        self.seconds = Histogram(
            "octavo_operator_autoscaling_look_seconds",
            "Duration of a look at one LLMDeployment's load in seconds",
            registry=registry,
        )

    def scraped(self, result: str) -> None:
        """One answer, or none: "ok", or what went wrong."""
        self._scrapes.labels(result).inc()

    def decided(self, name: Name, decision: Decision) -> None:
        """What was decided about one LLMDeployment."""
        if decision.replicas is not None:
            self._desired.labels(*name).set(decision.replicas)
        self._active.labels(*name).set(decision.active and decision.scheduled)
        self._utilization.labels(*name).set(decision.state.learned.utilization)

    def applied(self, name: Name, decision: Decision, current: int) -> None:
        """That it is for another number than `current`, and a pass will apply it."""
        direction = "up" if (decision.replicas or 0) > current else "down"
        self._decisions.labels(*name, direction, decision.reason).inc()

    def forget(self, name: Name) -> None:
        """It is gone, or not autoscaled any more."""
        for gauge in (self._desired, self._active, self._utilization):
            with suppress(KeyError):
                gauge.remove(*name)
