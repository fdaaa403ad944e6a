"""The gateway's figures, by model, and by key and model for accounting."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo_common import names
from octavo_common.version import __version__
from octavo_gateway.model_pool import ModelPool

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # nothing reads those second series

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class GatewayMetrics:
    """Counters that requests move, and gauges that are read off the pools when somebody asks."""

    def __init__(self, pools: Callable[[], Iterable[ModelPool]]) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.registry.register(_Gauges(pools))
        by_model = ("model",)
        self.arrivals = self._counter(names.METRIC_GATEWAY_ARRIVALS, "requests of a model that were taken", by_model)
        self.arrived_tokens = self._counter(
            names.METRIC_GATEWAY_ARRIVED_TOKENS, "tokens of their prompts, estimated by their bytes", by_model
        )
        self.finished = self._counter(names.METRIC_GATEWAY_FINISHED, "requests that were answered", by_model)
        self.late_ttft = self._counter(
            names.METRIC_GATEWAY_LATE_TTFT, "streams whose first token came after its target", by_model
        )
        self.late_tpot = self._counter(
            names.METRIC_GATEWAY_LATE_TPOT, "streams whose tokens came slower than their target", by_model
        )
        self.routed = self._counter(
            "octavo:gateway_routed", "times that a replica was chosen, by what spoke for it", ("model", "why")
        )
        self.retried = self._counter(
            "octavo:gateway_retried", "times that a request went to another replica before its first byte", by_model
        )
        self.resumed = self._counter(
            "octavo:gateway_resumed", "times that a stream went on at another replica", by_model
        )
        self.lost = self._counter(
            "octavo:gateway_lost", "requests that ended with an error because replicas broke down", by_model
        )
        self.refused = self._counter(
            "octavo:gateway_refused", "requests that were held in vain, or not", ("model", "reason")
        )
        self.requests = self._counter(
            "octavo:gateway_requests", "requests that ended, by key, model and status", ("key", "model", "status")
        )
        self.tokens = self._counter(
            "octavo:gateway_tokens", "tokens by key and model, of prompts and of answers", ("key", "model", "kind")
        )
        self.ttft = Histogram(
            "octavo:gateway_time_to_first_token_seconds",
            "from a stream's arrival to its first token here",
            by_model,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.held = Histogram(
            "octavo:gateway_hold_seconds",
            "that requests waited for a replica",
            by_model,
            buckets=_SECONDS,
            registry=self.registry,
        )

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """What a scraper gets, and its content type."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type

    def _counter(self, name: str, help_: str, labels: tuple[str, ...]) -> "Labelled":
        return Labelled(Counter(name, help_, labels, registry=self.registry))


class Labelled:
    """A counter whose children are found without the library's lock and checks."""

    def __init__(self, counter: Counter) -> None:
        self._of = cache(counter.labels)

    def add(self, *labels: str, amount: float = 1) -> None:
        """Count."""
        self._of(*labels).inc(amount)


class _Gauges(Collector):
    def __init__(self, pools: Callable[[], Iterable[ModelPool]]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        held = GaugeMetricFamily(
            names.METRIC_GATEWAY_HELD_REQUESTS, "requests that wait for a replica", labels=["model"]
        )
        tokens = GaugeMetricFamily(
            names.METRIC_GATEWAY_HELD_TOKENS, "tokens of their prompts, estimated by their bytes", labels=["model"]
        )
        in_flight = GaugeMetricFamily(
            names.METRIC_GATEWAY_IN_FLIGHT, "requests that are held or at a replica", labels=["model"]
        )
        replicas = GaugeMetricFamily(
            "octavo:gateway_replicas",
            "replicas that are known: taken (requests are sent there), paused (not now), draining, starting",
            labels=["model", "state"],
        )
        for pool in self._pools():
            held.add_metric([pool.name], len(pool.queue))
            tokens.add_metric([pool.name], pool.queue.tokens)
            in_flight.add_metric([pool.name], pool.in_flight)
            for state, count in pool.states().items():
                replicas.add_metric([pool.name, state], count)
        info = GaugeMetricFamily("octavo:gateway_info", "the gateway's version", labels=["version"])
        info.add_metric([__version__], 1)
        yield from (held, tokens, in_flight, replicas, info)
