"""Routing policies side by side, on a fleet that never changes: how many prompt tokens a cache had, how even the load.

Only requests whose blocks the trace names can be hit by others. The gateway's own policy is `octavo_common.routing`, as
it is; it believes where prefixes are, and only the oracle looks.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from octavo_common.prefixes import Prompt, rendezvous
from octavo_common.routing import ReplicaLoad, RoutingPolicy
from octavo_common.routing import Router as OwnRouter
from octavo_operator.simulate.job import Job
from octavo_operator.simulate.pod import Pod
from octavo_operator.simulate.policies.bounds import StaticPeak
from octavo_operator.simulate.prefixes import BLOCK_TOKENS
from octavo_operator.simulate.routers import LeastLoaded
from octavo_operator.simulate.world import Router, Scenario, World

BOUND: Final = 1.25
"""Times the mean load that a replica may have under consistent hashing with bounded loads."""
HOME_BLOCKS: Final = 2
"""Blocks that tell conversations apart; the first alone is often a system prompt that all share."""


@dataclass(frozen=True, slots=True)
class Routed:
    """`hit_rate`: share of prompt tokens found in the cache of the replica that they went to. `imbalance`: tokens
    computed by the busiest replica, over the mean."""

    routing: str
    hit_rate: float
    imbalance: float
    attainment: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p99_ms: float

    def as_json(self) -> dict[str, Any]:
        """As `octavo simulate --routing --json` prints it; figures that there are none of are null."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


class Random:
    """Any."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"{seed} routing")

    def choose(self, job: Job, pods: Sequence[Pod]) -> Pod:
        """One of them."""
        return self._chance.choice(pods)


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, job: Job, pods: Sequence[Pod]) -> Pod:
        """One of them."""
        self._next += 1
        return pods[self._next % len(pods)]


class BoundedHash:
    """By a hash of the conversation, to the first replica in its order that has room (Mirrokni et al., 2016)."""

    def choose(self, job: Job, pods: Sequence[Pod]) -> Pod:
        """One of them."""
        most = BOUND * (1 + sum(pod.outstanding for pod in pods)) / len(pods)
        left = {pod.name: pod for pod in pods if pod.outstanding + 1 <= most} or {pod.name: pod for pod in pods}
        return left[rendezvous(_home(job), list(left))]


class Own:
    """The gateway's."""

    def __init__(self) -> None:
        # Every replica is to be chosen from: what the gateway holds back is not the question here.
        self._router = OwnRouter(RoutingPolicy(max_waiting=1 << 30))

    def choose(self, job: Job, pods: Sequence[Pod]) -> Pod:
        """One of them."""
        blocks = job.blocks
        prompt = Prompt(blocks, (BLOCK_TOKENS,) * len(blocks), max(job.length, BLOCK_TOKENS * len(blocks)), _home(job))
        loads = {pod.name: _load(pod) for pod in pods}
        chosen = self._router.choose(prompt, list(loads.values()), job.arrival)
        if chosen is None:
            raise RuntimeError("a router without bounds found no room")
        self._router.sent(prompt, loads[chosen.id], job.arrival)
        return next(pod for pod in pods if pod.name == chosen.id)


class Oracle:
    """Where the first token would be there soonest, by what truly lies in the caches and waits before it."""

    def choose(self, job: Job, pods: Sequence[Pod]) -> Pod:
        """One of them."""

        def price(pod: Pod) -> float:
            replica, costs = pod.replica, pod.replica.hardware
            hit = min(replica.prefixes.match(job.blocks) * BLOCK_TOKENS, job.length - 1)
            step = costs.step + costs.kv_token * replica.kv_decoding + costs.request * replica.decoding
            ahead = replica.waiting_tokens + replica.kv_prefilling
            return ahead * costs.prompt_token + costs.prompt_seconds(hit, job.length) + 2 * step

        return min(pods, key=price)


def _home(job: Job) -> int:
    if not job.blocks:
        return hash((job.prompt, job.arrival)) & (1 << 63) - 1
    return hash(job.blocks[:HOME_BLOCKS]) & (1 << 63) - 1


def _load(pod: Pod) -> ReplicaLoad:
    replica = pod.replica
    return ReplicaLoad(
        id=pod.name,
        in_flight=pod.outstanding,
        waiting=len(replica.waiting),
        waiting_tokens=replica.waiting_tokens,
        kv_use=replica.kv_used / replica.hardware.kv_tokens,
        kv_tokens=replica.hardware.kv_tokens,
    )


ROUTINGS: Final[dict[str, Callable[[int], Router]]] = {
    "random": Random,
    "round-robin": lambda _: RoundRobin(),
    "least-loaded": lambda _: LeastLoaded(),
    "bounded-hash": lambda _: BoundedHash(),
    "octavo": lambda _: Own(),
    "oracle": lambda _: Oracle(),
}
"""By name; made of the seed."""


def compare(scenario: Scenario, replicas: int, progress: Callable[[str, float], None]) -> Iterator[Routed]:
    """A run of each; requests wait at the replica that they are sent to, however many do."""
    scenario = replace(
        scenario, hardware=replace(scenario.hardware, queue_tokens=1 << 60, max_requests=1 << 30), max_replicas=replicas
    )
    for name, make in ROUTINGS.items():
        yield _run(scenario, replicas, name, make(scenario.seed), progress)


def _run(
    scenario: Scenario, replicas: int, name: str, router: Router, progress: Callable[[str, float], None]
) -> Routed:
    seconds = scenario.trace.seconds
    world = World(scenario, StaticPeak(replicas), router, lambda now: progress(name, now / seconds))
    result = world.run()
    engines = [pod.replica for pod in world.cluster.pods]
    computed = [each.computed_tokens + each.generated_tokens for each in engines]
    return Routed(
        routing=name,
        hit_rate=sum(each.hit_tokens for each in engines) / max(1, sum(each.queried_tokens for each in engines)),
        imbalance=max(computed) * len(computed) / max(1, sum(computed)),
        attainment=result.attainment,
        ttft_p50_ms=result.ttft_p50_ms,
        ttft_p99_ms=result.ttft_p99_ms,
        tpot_p99_ms=result.tpot_p99_ms,
    )
