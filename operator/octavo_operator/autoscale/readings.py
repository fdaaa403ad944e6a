"""From what replicas and gateways tell to what `decide` takes. Pure. Missing is never 0: it raises, or is None.

Nothing that is told is believed beyond its bounds: a number that is negative, infinite or absurd counts as not told.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from octavo_common import names
from octavo_operator.autoscale.exposition import Values
from octavo_operator.autoscale.observation import Sample

COMPUTED_PROMPT_TOKENS: Final = "vllm:prompt_tokens_by_source_total"
_COMPUTED: Final = {"source": "local_compute"}
GENERATED_TOKENS: Final = "vllm:generation_tokens_total"
INTER_TOKEN_SECONDS: Final = "vllm:inter_token_latency_seconds_sum"
INTER_TOKEN_COUNT: Final = "vllm:inter_token_latency_seconds_count"
PREFIX_QUERIES: Final = "vllm:prefix_cache_queries_total"
PREFIX_HITS: Final = "vllm:prefix_cache_hits_total"
PREEMPTIONS: Final = f"{names.METRIC_PREEMPTIONS}_total"

OF_A_REPLICA: Final = (
    *(names.METRIC_KV_TOKENS_USED, names.METRIC_KV_TOKENS_TOTAL),
    *(names.METRIC_REQUESTS_RUNNING, names.METRIC_REQUESTS_WAITING, names.METRIC_WAITING_PROMPT_TOKENS),
    *(names.METRIC_PREFILL_RATE, names.METRIC_DECODE_RATE, PREEMPTIONS, COMPUTED_PROMPT_TOKENS, GENERATED_TOKENS),
    *(INTER_TOKEN_SECONDS, INTER_TOKEN_COUNT, PREFIX_QUERIES, PREFIX_HITS),
)
TOTALS_OF_A_GATEWAY: Final = tuple(
    f"{counter}_total"
    for counter in (
        *(names.METRIC_GATEWAY_ARRIVALS, names.METRIC_GATEWAY_ARRIVED_TOKENS, names.METRIC_GATEWAY_FINISHED),
        *(names.METRIC_GATEWAY_LATE_TTFT, names.METRIC_GATEWAY_LATE_TPOT),
    )
)
GAUGES_OF_A_GATEWAY: Final = (
    *(names.METRIC_GATEWAY_HELD_REQUESTS, names.METRIC_GATEWAY_HELD_TOKENS, names.METRIC_GATEWAY_IN_FLIGHT),
)
GATEWAY_INFO: Final = "octavo:gateway_info"
"""What a gateway tells also while it knows of no model."""
OF_A_GATEWAY: Final = (*TOTALS_OF_A_GATEWAY, *GAUGES_OF_A_GATEWAY, GATEWAY_INFO)

_MOST: Final = 1e15
"""Tokens that a server of a million a second computes in thirty years."""


class ReadingError(ValueError):
    """A figure that cannot be done without was not told."""


def replica_sample(values: Values, at: float) -> Sample:
    """What a replica told at `at`.

    Raises:
        ReadingError: it lacks what tells its load, or has no KV cache yet, as while its engine starts again.
    """
    total = int(_needed(values, names.METRIC_KV_TOKENS_TOTAL))
    if not total:
        raise ReadingError(f"{names.METRIC_KV_TOKENS_TOTAL} is 0: the engine is not running")
    return Sample(
        at=at,
        kv_tokens_used=min(total, int(_needed(values, names.METRIC_KV_TOKENS_USED))),
        kv_tokens_total=total,
        running=int(_needed(values, names.METRIC_REQUESTS_RUNNING)),
        waiting=int(_needed(values, names.METRIC_REQUESTS_WAITING)),
        waiting_prompt_tokens=int(_told(values, names.METRIC_WAITING_PROMPT_TOKENS) or 0),
        prefill_tokens_per_second=_told(values, names.METRIC_PREFILL_RATE) or 0.0,
        decode_tokens_per_second=_told(values, names.METRIC_DECODE_RATE) or 0.0,
        preemptions_total=_told(values, PREEMPTIONS) or 0.0,
        computed_prompt_tokens_total=_told(values, COMPUTED_PROMPT_TOKENS, _COMPUTED),
        generated_tokens_total=_told(values, GENERATED_TOKENS),
        inter_token_seconds_total=_told(values, INTER_TOKEN_SECONDS),
        inter_token_count=_told(values, INTER_TOKEN_COUNT),
        prefix_queries_total=_told(values, PREFIX_QUERIES),
        prefix_hits_total=_told(values, PREFIX_HITS),
    )


@dataclass(frozen=True, slots=True)
class GatewayReading:
    """What one gateway told of one model at `at`: counters since its start, gauges as they are."""

    at: float
    totals: tuple[float, ...]
    gauges: tuple[float, ...]


def gateway_readings(values: Values, at: float) -> dict[str, GatewayReading]:
    """What a gateway told, by model. A model that it does not name it has never heard of: see `never_heard_of`.

    Raises:
        ReadingError: it is no gateway of ours, or tells of itself what cannot be.
    """
    if not any(name in values for name in OF_A_GATEWAY):
        raise ReadingError("no octavo:gateway_… is told")
    models = {labels["model"] for told in values.values() for labels, _ in told if "model" in labels}
    return {
        model: GatewayReading(
            at,
            tuple(_total(values, name, model) for name in TOTALS_OF_A_GATEWAY),
            tuple(_total(values, name, model) for name in GAUGES_OF_A_GATEWAY),
        )
        for model in models
    }


def never_heard_of(at: float) -> GatewayReading:
    """Of a model that a gateway does not name."""
    return GatewayReading(at, (0.0,) * len(TOTALS_OF_A_GATEWAY), (0.0,) * len(GAUGES_OF_A_GATEWAY))


def _total(values: Values, name: str, model: str) -> float:
    """Summed over the other labels. Of a gateway that tells of a model at all, what is not there has not happened."""
    told = _told(values, name, {"model": model}) if name in values else 0.0
    if told is None and any(labels.get("model", "") == model for labels, _ in values[name]):
        raise ReadingError(f"{name} of {model} is no number that can be")
    return told or 0.0


def _needed(values: Values, name: str) -> float:
    told = _told(values, name)
    if told is None:
        raise ReadingError(f"{name} is not told")
    return told


def _told(values: Values, name: str, labels: Mapping[str, str] | None = None) -> float | None:
    """The sum of the samples with these labels; None where there is none, or one of them cannot be."""
    wanted = (labels or {}).items()
    told = [value for given, value in values.get(name, ()) if wanted <= given.items()]
    if not told or not all(math.isfinite(value) and 0 <= value <= _MOST for value in told):
        return None
    return math.fsum(told)
