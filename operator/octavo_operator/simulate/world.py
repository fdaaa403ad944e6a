"""A fleet in virtual time: arrivals, a gateway that holds and routes, pods that start and end, and a policy."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import Final, Protocol

from octavo_operator.autoscale.observation import Fleet
from octavo_operator.simulate.faults import Faults
from octavo_operator.simulate.hardware import Hardware
from octavo_operator.simulate.job import Job
from octavo_operator.simulate.observe import Watch
from octavo_operator.simulate.pod import DRAIN_SECONDS, Pod
from octavo_operator.simulate.score import Objectives, Result, Score, percentile
from octavo_operator.simulate.trace import Arrival, Trace

MAX_OVERTIME_SECONDS: Final = 600.0
"""So long after the trace requests may end; those that do not then have missed their targets."""


class Policy(Protocol):
    """Decides on replicas every `interval` seconds. `victims` says who goes first; empty: as Kubernetes does."""

    @property
    def name(self) -> str:
        """As the user asks for it."""

    @property
    def interval(self) -> float:
        """Seconds."""

    @property
    def victims(self) -> Sequence[str]:
        """Names of pods."""

    def begin(self, world: "World") -> int:
        """Replicas at the start, which are ready at once."""

    def decide(self, fleet: Fleet, now: float) -> int:
        """Replicas wanted."""


class Router(Protocol):
    """Chooses a pod for a request among those that take some; never called with none."""

    def choose(self, job: Job, pods: Sequence[Pod]) -> Pod:
        """One of them."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """All but the policy. `startup`: mean seconds; each start-up is drawn within `startup_spread` of it.

    The first `warmup` seconds are not scored. `max_held`: requests held while no replica is ready; more are dropped.
    """

    trace: Trace
    hardware: Hardware = field(default_factory=Hardware)
    startup: float = 60.0
    startup_spread: float = 0.2
    warmup: float = 600.0
    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    objectives: Objectives = field(default_factory=Objectives)
    max_replicas: int = 64
    max_held: int = 200


class World:
    """One run. `run` plays it to the end."""

    def __init__(self, scenario: Scenario, policy: Policy, router: Router, progress: Callable[[float], None]) -> None:
        self.scenario, self.policy, self.router, self._progress = scenario, policy, router, progress
        self.score = Score(scenario.objectives, scenario.warmup)
        self.pods: list[Pod] = []
        self.taking: list[Pod] = []
        self.held = deque[Job]()
        self.held_tokens = 0
        self.watch = Watch(self)
        self.desired = 0
        self._events: list[tuple[float, int, Callable[[float], None] | Pod]] = []
        self._pushed = self._made = 0
        self._gpu_seconds = 0.0
        self._changes: list[tuple[float, int]] = []
        self._most = 0
        self._chance = random.Random(f"{scenario.seed} crash")

    def run(self) -> Result:
        """Play it to the end of the trace, and until what is under way has ended."""
        end = self.scenario.trace.seconds
        self.desired = max(1, min(self.scenario.max_replicas, self.policy.begin(self)))
        for _ in range(self.desired):
            self._make(0.0, 0.0)
        self._first = self.desired
        self._at(self.policy.interval, self._tick)
        if self.scenario.faults.crash is not None:
            self._at(self._chance.expovariate(1 / self.scenario.faults.crash), self._crash)
        self._play(end)
        for pod in self.pods:
            self._count(pod, end)
        return self._result()

    def _play(self, end: float) -> None:
        arrivals, events = self.scenario.trace.arrivals, self._events
        index, count, limit = 0, len(arrivals), end + MAX_OVERTIME_SECONDS
        upcoming = arrivals[0].time if arrivals else inf
        while True:
            time = events[0][0] if events else inf
            if upcoming <= time:
                if upcoming == inf:
                    return
                self._arrive(arrivals[index])
                index += 1
                upcoming = arrivals[index].time if index < count else inf
                continue
            if time > limit or (index >= count and not self.watch.in_flight and not self.held):
                return
            _, _, what = heappop(events)
            if isinstance(what, Pod):
                if what.replica.next == time:
                    self._proceed(what, time)
            else:
                what(time)

    def _arrive(self, arrival: Arrival) -> None:
        time, prompt, output, blocks, salt = arrival
        job = Job(time, prompt, output, tuple(each + salt for each in blocks) if salt and blocks else blocks)
        watch = self.watch
        watch.arrivals += 1
        watch.arrived_tokens += prompt
        if time >= self.score.begin:
            self.score.total += 1
        if not self.taking and len(self.held) >= self.scenario.max_held:
            self.score.dropped += time >= self.score.begin
            return
        self.hand_out(job, time)

    def hand_out(self, job: Job, now: float) -> None:
        """To a replica, or held until one can take it."""
        free = [pod for pod in self.taking if pod.has_room]
        if self.held or not free:
            self.held.append(job)
            self.held_tokens += job.length
        else:
            self._give(self.router.choose(job, free), job, now)

    def _give(self, pod: Pod, job: Job, now: float) -> None:
        self.watch.in_flight += 1
        pod.take(job)
        before = pod.replica.next
        pod.replica.arrive(job, now)
        if pod.replica.next != before:
            self._push(pod.replica.next, pod)

    def _proceed(self, pod: Pod, now: float) -> None:
        replica = pod.replica
        replica.proceed()
        if replica.finished:
            for job in replica.finished:
                self._finish(pod, job, now)
            replica.finished.clear()
        if self.held and pod.phase == "ready":
            self._pull(pod, now)
        if replica.next != inf:
            self._push(replica.next, pod)
        elif pod.phase == "terminating" and not pod.outstanding:
            self._remove(pod, now)

    def _pull(self, pod: Pod, now: float) -> None:
        """What is held goes to the replica that has room."""
        while self.held and pod.has_room:
            job = self.held.popleft()
            self.held_tokens -= job.length
            self._give(pod, job, now)

    def _finish(self, pod: Pod, job: Job, now: float) -> None:
        pod.give_back(job)
        overhead = self.scenario.hardware.overhead
        late = self.score.judge(job.arrival, job.prompt, job.output, job.first + overhead, now + overhead)
        self.watch.finished(late)

    def _tick(self, now: float) -> None:
        self._progress(now)
        if now < self.scenario.trace.seconds:
            fleet = self.watch.look(now)
            wanted = max(0, min(self.scenario.max_replicas, self.policy.decide(fleet, now)))
            self._scale(wanted, now)
            self._at(now + self.policy.interval, self._tick)

    def _scale(self, wanted: int, now: float) -> None:
        alive = [pod for pod in self.pods if pod.phase != "terminating"]
        if wanted != self.desired:
            self._changes.append((now, 1 if wanted > self.desired else -1))
            self.desired = wanted
        for _ in range(wanted - len(alive)):
            self._make(now, None)
        if len(alive) > wanted:
            rank = {name: place for place, name in enumerate(self.policy.victims)}
            alive.sort(key=lambda pod: (pod.phase == "ready", rank.get(pod.name, 0), -pod.created))
            for pod in alive[: len(alive) - wanted]:
                self._terminate(pod, now)

    def _make(self, now: float, startup: float | None) -> None:
        scenario, number = self.scenario, self._made
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
        return self.scenario.trace.seconds / 3 <= now < self.scenario.trace.seconds * 2 / 3

    def _schedule(self, pod: Pod, now: float) -> None:
        """Onto a node, now or when there is one."""
        if pod.phase != "pending":
            return
        extra = self.scenario.faults.no_node
        placed = sum(each.scheduled is not None for each in self.pods)
        pod.unschedulable = extra is not None and self._in_middle(now) and placed >= self._first + extra
        if pod.unschedulable:
            self._at(now + 10.0, lambda time: self._schedule(pod, time))
            return
        pod.scheduled = now
        self._at(now + pod.startup, lambda time: self._ready(pod, time))

    def _ready(self, pod: Pod, now: float) -> None:
        if pod.phase != "pending":
            return
        pod.phase, pod.ready_at = "ready", now
        self.taking.append(pod)
        self._most = max(self._most, len(self.taking))
        self._pull(pod, now)

    def _terminate(self, pod: Pod, now: float) -> None:
        if pod.phase == "ready":
            self.taking.remove(pod)
        pod.phase = "terminating"
        if pod.outstanding:
            self._at(now + DRAIN_SECONDS, lambda time: self._cut_off(pod, time))
        else:
            self._remove(pod, now)

    def _cut_off(self, pod: Pod, now: float) -> None:
        if pod in self.pods:
            self._lose(pod, now)
            self._remove(pod, now)

    def _lose(self, pod: Pod, now: float) -> None:
        """Its requests go on elsewhere, with the tokens that they have."""
        pod.replica.sync(now)
        for job in pod.lose_all():
            self.watch.in_flight -= 1
            self.hand_out(job, now)

    def _crash(self, now: float) -> None:
        crash = self.scenario.faults.crash
        if crash is None or now >= self.scenario.trace.seconds:
            return
        if self.taking:
            pod = self._chance.choice(self.taking)
            self.taking.remove(pod)
            pod.phase = "pending"
            self._lose(pod, now)
            self._at(now + (pod.startup or self.scenario.startup), lambda time: self._ready(pod, time))
        self._at(now + self._chance.expovariate(1 / crash), self._crash)

    def _remove(self, pod: Pod, now: float) -> None:
        self.pods.remove(pod)
        self._count(pod, now)

    def _count(self, pod: Pod, now: float) -> None:
        if pod.scheduled is not None:
            begin, end = max(pod.scheduled, self.scenario.warmup), min(now, self.scenario.trace.seconds)
            self._gpu_seconds += max(0.0, end - begin)

    def _at(self, time: float, what: Callable[[float], None]) -> None:
        self._push(time, what)

    def _push(self, time: float, what: Callable[[float], None] | Pod) -> None:
        self._pushed += 1
        heappush(self._events, (time, self._pushed, what))

    def _result(self) -> Result:
        score, startup = self.score, self.scenario.startup
        pairs = zip(self._changes, self._changes[1:], strict=False)
        reversals = sum(one[1] != two[1] and two[0] - one[0] < startup for one, two in pairs)
        return Result(
            policy=self.policy.name,
            attainment=score.met / score.total if score.total else 1.0,
            gpu_hours=self._gpu_seconds / 3600,
            ttft_p50_ms=1e3 * percentile(score.ttft, 0.5),
            ttft_p99_ms=1e3 * percentile(score.ttft, 0.99),
            tpot_p99_ms=1e3 * percentile(score.tpot, 0.99),
            max_replicas=self._most,
            reversals=reversals,
            dropped=score.dropped,
        )
