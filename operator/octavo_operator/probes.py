"""/healthz, /readyz and /metrics of the operator, on a port of their own."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from octavo_operator.accounting import Ledger
from octavo_operator.autoscale.metrics import AutoscalingMetrics


class Metrics:
    """What the operator counts."""

    def __init__(self, queue_length: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            "octavo_operator_reconciles", "Passes over one LLMDeployment", ["result"], registry=self.registry
        )
        self.seconds = Histogram(
            "octavo_operator_reconcile_seconds", "Duration of a pass in seconds", registry=self.registry
        )
        self.leading = Gauge("octavo_operator_leading", "1 while this operator acts, else 0", registry=self.registry)
        waiting = Gauge("octavo_operator_queue_length", "LLMDeployments that wait for a worker", registry=self.registry)
        waiting.set_function(queue_length)
        self.autoscaling = AutoscalingMetrics(self.registry)
        self.ledger = Ledger()
        self.registry.register(_Usage(self.ledger))


class _Usage(Collector):
    """What each LLMDeployment has used, as of when it is asked for."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Two counters with namespace and name."""
        labels = ["namespace", "name"]
        text = "Seconds that pods of an LLMDeployment had a node"
        replicas = CounterMetricFamily("octavo_operator_replica_seconds", text, labels=labels)
        text = "The same times the accelerators that each of them held"
        devices = CounterMetricFamily("octavo_operator_accelerator_seconds", text, labels=labels)
        for namespace, name, (seconds, units) in self._ledger.used(time.time()):
            replicas.add_metric([namespace, name], seconds)
            devices.add_metric([namespace, name], units)
        yield replicas
        yield devices


@asynccontextmanager
async def probe_server(port: int | None, metrics: Metrics, is_ready: Callable[[], bool]) -> AsyncIterator[int | None]:
    """Serve inside the block, and yield the port; nothing and None where `port` is None.

    /healthz answers as long as the event loop turns; /readyz once the API server was reached, also on a standby.

    Raises:
        OSError: the port is taken.
    """
    if port is None:
        yield None
        return

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if is_ready() else web.Response(status=503, text="not ready\n")

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", exposition)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, port=port)
        await site.start()
        # With port 0 IPv4 and IPv6 get one each: IPv4's, whose addresses are pairs, is the one that is told.
        addresses = sorted(runner.addresses, key=len)
        yield int(addresses[0][1])
    finally:
        await runner.cleanup()
