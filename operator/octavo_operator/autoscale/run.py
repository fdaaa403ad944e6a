"""The autoscaler in a cluster: begun when the first LLMDeployment asks for it, and none of it before."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from octavo_operator.autoscale.cluster import Cluster
from octavo_operator.autoscale.decisions import Decisions, Name
from octavo_operator.autoscale.loop import Autoscaler
from octavo_operator.autoscale.metrics import AutoscalingMetrics
from octavo_operator.autoscale.scrape import Scraper
from octavo_operator.informer import Informer
from octavo_operator.kube import Kube
from octavo_operator.store import Store

_LIST_SECONDS: Final = 5.0
"""For the first list of gateways; without it they count as not known."""


async def autoscale(
    kube: Kube,
    decisions: Decisions,
    metrics: AutoscalingMetrics,
    tell: Callable[[Name], None],
    gateways: tuple[str, str],
) -> None:
    """Until cancelled. `gateways`: the namespace and the label selector of their pods. `tell` has a pass done."""
    while not decisions.looked_at():
        decisions.changed.clear()
        await decisions.changed.wait()
    namespace, selector = gateways
    pods = Store()
    watch = Informer(kube, "Pod", namespace, pods, lambda body, gone: None, selector=selector, optional=True)
    watching = asyncio.create_task(watch.run())
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(watch.synced.wait(), _LIST_SECONDS)
        async with Scraper(count=metrics.scraped) as scraper:
            await Autoscaler(decisions, Cluster(kube, pods, tell), scraper, metrics).run()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
