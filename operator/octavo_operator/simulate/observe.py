"""What the autoscaler sees of the simulated fleet: scrapes, some of them lost, and the gateway's counters."""

import random
from typing import TYPE_CHECKING

from octavo_operator.autoscale.observation import Fleet, GatewaySample, Replica, Sample
from octavo_operator.simulate.pod import Pod

if TYPE_CHECKING:
    from octavo_operator.simulate.world import World


class Watch:
    """The gateway's counters, and a look at everything."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._chance = random.Random(f"{world.scenario.seed} scrapes")
        self.arrivals = self.arrived_tokens = self.in_flight = 0
        self.ended = self.late_first = self.late_rest = 0

    def finished(self, late: tuple[bool, bool]) -> None:
        """A request ended: whether its first token was late, and the others."""
        self.in_flight -= 1
        self.ended += 1
        self.late_first += late[0]
        self.late_rest += late[1]

    def look(self, now: float) -> Fleet:
        """Everything, as of now."""
        world = self._world
        for pod in world.cluster.taking:
            if self._chance.random() >= world.scenario.faults.lost_scrapes:
                pod.sample = scrape(pod, now)
        return Fleet(
            desired=world.cluster.desired,
            replicas=tuple(_seen(pod, now) for pod in world.cluster.pods),
            gateway=self._gateway(now),
            startup_deadline=max(600.0, 6 * world.scenario.startup),
        )

    def _gateway(self, now: float) -> GatewaySample:
        held = self._world.held
        return GatewaySample(
            at=now,
            arrivals_total=self.arrivals,
            arrived_prompt_tokens_total=self.arrived_tokens,
            in_flight=self.in_flight,
            held_requests=len(held),
            held_prompt_tokens=self._world.held_tokens,
            finished_total=self.ended,
            late_first_token_total=self.late_first,
            late_per_token_total=self.late_rest,
        )


def scrape(pod: Pod, now: float) -> Sample:
    """What the replica says now."""
    replica = pod.replica
    replica.sync(now)
    prefill, decode = replica.speeds
    return Sample(
        at=now,
        kv_tokens_used=replica.kv_used,
        kv_tokens_total=replica.hardware.kv_tokens,
        running=replica.running,
        waiting=len(replica.waiting),
        waiting_prompt_tokens=replica.waiting_tokens,
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode,
        preemptions_total=replica.preemptions,
        computed_prompt_tokens_total=replica.computed_tokens,
        generated_tokens_total=replica.generated_tokens,
        inter_token_seconds_total=replica.gap_seconds,
        inter_token_count=replica.gaps,
        prefix_queries_total=replica.queried_tokens,
        prefix_hits_total=replica.hit_tokens,
    )


def _seen(pod: Pod, now: float) -> Replica:
    startup = pod.startup if pod.ready_at is not None and pod.startup else None
    return Replica(pod.name, pod.phase, now - pod.created, startup, pod.unschedulable, pod.sample)
