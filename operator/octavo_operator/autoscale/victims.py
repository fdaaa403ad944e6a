"""Which replicas end first: the least loaded. The Deployment's controller is told by pod-deletion-cost."""

import math
from collections.abc import Sequence

from octavo_operator.autoscale.observation import Fleet, Replica
from octavo_operator.autoscale.state import Seen


def victims(fleet: Fleet, seen: tuple[Seen, ...] = ()) -> tuple[str, ...]:
    """Ready replicas, the least loaded first; one that said nothing counts as the most loaded."""

    def load(replica: Replica) -> tuple[float, float, str]:
        sample = replica.sample
        if sample is None:
            return math.inf, math.inf, replica.name
        return sample.kv_tokens_used + sample.waiting_prompt_tokens, sample.running, replica.name

    return tuple(each.name for each in sorted(fleet.ready, key=load))


def deletion_costs(names: Sequence[str]) -> dict[str, int]:
    """`controller.kubernetes.io/pod-deletion-cost` by pod: the lower ends first, and 0 is what others have."""
    return {name: place - len(names) for place, name in enumerate(names)}
