"""How requests are given to replicas, where the autoscaler is what is judged."""

from collections.abc import Sequence

from octavo_operator.simulate.job import Job
from octavo_operator.simulate.pod import Pod


class LeastLoaded:
    """The pod with the least tokens of requests."""

    def choose(self, job: Job, pods: Sequence[Pod]) -> Pod:
        """One of them."""
        return min(pods, key=_load)


class CachedAndLight:
    """The pod for which load and prompt tokens to compute are least together."""

    def choose(self, job: Job, pods: Sequence[Pod]) -> Pod:
        """One of them."""
        blocks = job.blocks
        if not blocks:
            return min(pods, key=_load)
        return min(pods, key=lambda pod: pod.load - 2 * 512 * pod.replica.prefixes.match(blocks))


def _load(pod: Pod) -> int:
    return pod.load
