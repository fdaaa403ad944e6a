"""The KV cache's fill, read from a replica's `/metrics`."""

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from octavo_common.names import METRIC_KV_CACHE_USAGE, METRIC_KV_TOKENS_TOTAL, METRIC_KV_TOKENS_USED


@dataclass(frozen=True, slots=True)
class KVCacheUse:
    """`share` of the pages in use, 0 to 1; tokens that they hold and that would fit, where the replica tells."""

    share: float
    tokens_used: int | None = None
    tokens_total: int | None = None


async def kv_cache_use(client: httpx.AsyncClient, url: str) -> KVCacheUse | None:
    """The use that the replica at `url` (without /v1) reports; None where it does not answer or has no such metric."""
    try:
        answer = await client.get(f"{url}/metrics")
        answer.raise_for_status()
        return parse_kv_cache_use(answer.text)
    except (httpx.HTTPError, ValueError):
        return None


async def counter_value(client: httpx.AsyncClient, url: str, name: str) -> int:
    """The sum over all labels of a counter that is told at `url`; 0 where nobody answers, or nothing was counted."""
    try:
        answer = await client.get(url)
        answer.raise_for_status()
        families = list(text_string_to_metric_families(answer.text))
    except (httpx.HTTPError, ValueError):
        return 0
    return int(sum(sample.value for family in families for sample in family.samples if sample.name == name))


def parse_kv_cache_use(text: str) -> KVCacheUse | None:
    """The use in a page of metrics in Prometheus' text format. Raises ValueError for a text that is none."""
    wanted = (METRIC_KV_CACHE_USAGE, METRIC_KV_TOKENS_USED, METRIC_KV_TOKENS_TOTAL)
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    found = {sample.name: sample.value for sample in samples if sample.name in wanted}
    if METRIC_KV_CACHE_USAGE not in found:
        return None
    used, total = (found.get(name) for name in wanted[1:])
    return KVCacheUse(
        found[METRIC_KV_CACHE_USAGE], None if used is None else int(used), None if total is None else int(total)
    )
