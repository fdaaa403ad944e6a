"""The pods of a simulated fleet: made, given a node, started, drained, crashed, and what they cost."""

import random
from typing import TYPE_CHECKING

from octavo_operator.simulate.pod import DRAIN_SECONDS, Pod

if TYPE_CHECKING:
    from octavo_operator.simulate.world import World


class Cluster:
    """`taking`: pods that take requests. `changes`: when `desired` changed, and whereto. `most` were ready at once."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.pods: list[Pod] = []
        self.taking: list[Pod] = []
        self.desired = self.first = self.most = 0
        self.gpu_seconds = 0.0
        self.changes: list[tuple[float, int]] = []
        self._made = 0
        self._chance = random.Random(f"{world.scenario.seed} crash")

    def begin(self, count: int) -> None:
        """So many replicas, ready."""
        self.desired = self.first = count
        for _ in range(count):
            self.make(0.0, 0.0)
        crash = self._world.scenario.faults.crash
        if crash is not None:
            self._world.at(self._chance.expovariate(1 / crash), self.crash)

    def end(self, now: float) -> None:
        """Count what is still there."""
        for pod in self.pods:
            self.count(pod, now)

    def scale(self, wanted: int, now: float) -> None:
        """Pods as wanted: new ones, or fewer, in the order in which Kubernetes ends them, and by deletion cost."""
        alive = [pod for pod in self.pods if pod.phase != "terminating"]
        if wanted != self.desired:
            self.changes.append((now, 1 if wanted > self.desired else -1))
            self.desired = wanted
        for _ in range(wanted - len(alive)):
            self.make(now, None)
        if len(alive) > wanted:
            rank = {name: place for place, name in enumerate(self._world.policy.victims)}
            alive.sort(key=lambda pod: (pod.phase == "ready", rank.get(pod.name, 0), -pod.created))
            for pod in alive[: len(alive) - wanted]:
                self._terminate(pod, now)

    def make(self, now: float, startup: float | None) -> None:
        """A pod; with `startup` 0 it is ready at once."""
        scenario, number = self._world.scenario, self._made
        self._made += 1
        pod = Pod(f"pod-{number}", now, scenario.hardware)
        self.pods.append(pod)
        if startup is not None:
            pod.scheduled = now
            self._ready(pod, now)
            return
        spread = scenario.startup_spread
        # The same for the n-th pod of every policy.
        pod.startup = scenario.startup * random.Random(f"{scenario.seed} pod {number}").uniform(1 - spread, 1 + spread)
        if self._in_middle(now):
            pod.startup *= scenario.faults.slow_startup
        self._schedule(pod, now)

    def _in_middle(self, now: float) -> bool:
        return self._world.scenario.trace.seconds / 3 <= now < self._world.scenario.trace.seconds * 2 / 3

    def _schedule(self, pod: Pod, now: float) -> None:
        """Onto a node, now or when there is one."""
        if pod.phase != "pending":
            return
        extra = self._world.scenario.faults.no_node
        placed = sum(each.scheduled is not None for each in self.pods)
        pod.unschedulable = extra is not None and self._in_middle(now) and placed >= self.first + extra
        if pod.unschedulable:
            self._world.at(now + 10.0, lambda time: self._schedule(pod, time))
            return
        pod.scheduled = now
        self._world.at(now + pod.startup, lambda time: self._ready(pod, time))

    def _ready(self, pod: Pod, now: float) -> None:
        if pod.phase != "pending":
            return
        pod.phase, pod.ready_at = "ready", now
        self.taking.append(pod)
        self.most = max(self.most, len(self.taking))
        self._world.pull(pod, now)

    def _terminate(self, pod: Pod, now: float) -> None:
        if pod.phase == "ready":
            self.taking.remove(pod)
        pod.phase = "terminating"
        if pod.outstanding:
            self._world.at(now + DRAIN_SECONDS, lambda time: self._cut_off(pod, time))
        else:
            self.remove(pod, now)

    def _cut_off(self, pod: Pod, now: float) -> None:
        if pod in self.pods:
            self._lose(pod, now)
            self.remove(pod, now)

    def _lose(self, pod: Pod, now: float) -> None:
        """Its requests go on elsewhere, with the tokens that they have."""
        pod.replica.sync(now)
        for job in pod.lose_all():
            self._world.watch.in_flight -= 1
            self._world.hand_out(job, now)

    def crash(self, now: float) -> None:
        """A ready replica dies, starts again, and the next crash is drawn."""
        crash = self._world.scenario.faults.crash
        if crash is None or now >= self._world.scenario.trace.seconds:
            return
        if self.taking:
            pod = self._chance.choice(self.taking)
            self.taking.remove(pod)
            pod.phase = "pending"
            self._lose(pod, now)
            self._world.at(now + (pod.startup or self._world.scenario.startup), lambda time: self._ready(pod, time))
        self._world.at(now + self._chance.expovariate(1 / crash), self.crash)

    def remove(self, pod: Pod, now: float) -> None:
        """It is gone."""
        self.pods.remove(pod)
        self.count(pod, now)

    def count(self, pod: Pod, now: float) -> None:
        """What it cost within the scored time."""
        if pod.scheduled is not None:
            begin, end = max(pod.scheduled, self._world.scenario.warmup), min(now, self._world.scenario.trace.seconds)
            self.gpu_seconds += max(0.0, end - begin)
