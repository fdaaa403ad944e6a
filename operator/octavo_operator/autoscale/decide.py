"""How many replicas there should be: `decide(fleet, settings, state, now)`. Pure: no clock, no chance, no I/O."""

import math
from dataclasses import dataclass

from octavo_operator.autoscale.observation import Fleet, Replica
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import State

INTERVAL_SECONDS = 10.0
"""Between two decisions."""
INTERVAL_AT_ZERO_SECONDS = 1.0
"""Between two decisions while there is no replica: a request is waiting for the first one."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas, and why.

    `replicas`: None in mode External, where somebody else decides. `apply`: whether it is to be written to the
    Deployment (mode Internal), or only told (Recommend). `reason`: a CamelCase word for programs; `message`: a sentence
    with the numbers. `victims`: ready replicas, those to end first in front. `active` False: the load is not known
    (condition ScalingActive). `scheduled` False: replicas are stuck past their deadline (condition Scheduled).
    `next_in`: seconds until the next decision.
    """

    replicas: int | None
    reason: str
    message: str
    state: State
    victims: tuple[str, ...] = ()
    apply: bool = True
    active: bool = True
    scheduled: bool = True
    next_in: float = INTERVAL_SECONDS


def decide(fleet: Fleet, settings: Settings, state: State, now: float) -> Decision:
    """The number of replicas for what was observed, and the state to pass in next time."""
    if settings.mode == "External":
        return Decision(None, "External", "replicas are decided elsewhere, through /scale", state, apply=False)
    samples = [each.sample for each in fleet.ready if each.sample is not None]
    used, total = sum(each.kv_tokens_used for each in samples), sum(each.kv_tokens_total for each in samples)
    wanted = fleet.desired
    if total:
        share = settings.targets.kv_cache_utilization_percent / 100
        wanted = math.ceil(used / (total / len(samples) * share))
    wanted = min(max(wanted, settings.floor), settings.max_replicas)
    message = f"{used} of {total} KV tokens are used by {len(samples)} replicas"
    interval = INTERVAL_SECONDS if wanted else INTERVAL_AT_ZERO_SECONDS
    return Decision(
        wanted, "KVCacheUse", message, state, victims(fleet), apply=settings.mode == "Internal", next_in=interval
    )


def victims(fleet: Fleet) -> tuple[str, ...]:
    """Ready replicas, the least loaded first; one that said nothing counts as most loaded."""

    def load(replica: Replica) -> tuple[float, str]:
        sample = replica.sample
        return (math.inf if sample is None else sample.kv_tokens_used, replica.name)

    return tuple(each.name for each in sorted(fleet.ready, key=load))


def deletion_costs(decision: Decision) -> dict[str, int]:
    """`controller.kubernetes.io/pod-deletion-cost` by pod: the lower ends first, and 0 is what others have."""
    count = len(decision.victims)
    return {name: place - count for place, name in enumerate(decision.victims)}
