"""A fleet in virtual time: arrivals, a gateway that holds and routes, pods that start and end, and a policy."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import Final, Protocol

from octavo_operator.autoscale.observation import Fleet
from octavo_operator.simulate.cluster import Cluster
from octavo_operator.simulate.faults import Faults
from octavo_operator.simulate.hardware import Hardware
from octavo_operator.simulate.job import Job
from octavo_operator.simulate.observe import Watch
from octavo_operator.simulate.pod import Pod
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
        self.cluster = Cluster(self)
        self.held = deque[Job]()
        self.held_tokens = 0
        self.watch = Watch(self)
        self._events: list[tuple[float, int, Callable[[float], None] | Pod]] = []
        self._pushed = 0

    def run(self) -> Result:
        """Play it to the end of the trace, and until what is under way has ended."""
        end = self.scenario.trace.seconds
        self.cluster.begin(max(1, min(self.scenario.max_replicas, self.policy.begin(self))))
        self.at(self.policy.interval, self._tick)
        self._play(end)
        self.cluster.end(end)
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
        if not self.cluster.taking and len(self.held) >= self.scenario.max_held:
            self.score.dropped += time >= self.score.begin
            return
        self.hand_out(job, time)

    def hand_out(self, job: Job, now: float) -> None:
        """To a replica, or held until one can take it."""
        free = [pod for pod in self.cluster.taking if pod.has_room]
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
            self.pull(pod, now)
        if replica.next != inf:
            self._push(replica.next, pod)
        elif pod.phase == "terminating" and not pod.outstanding:
            self.cluster.remove(pod, now)

    def pull(self, pod: Pod, now: float) -> None:
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
            self.cluster.scale(wanted, now)
            self.at(now + self.policy.interval, self._tick)

    def at(self, time: float, what: Callable[[float], None]) -> None:
        """Something is to happen then."""
        self._push(time, what)

    def _push(self, time: float, what: Callable[[float], None] | Pod) -> None:
        self._pushed += 1
        heappush(self._events, (time, self._pushed, what))

    def _result(self) -> Result:
        score, startup = self.score, self.scenario.startup
        pairs = zip(self.cluster.changes, self.cluster.changes[1:], strict=False)
        reversals = sum(one[1] != two[1] and two[0] - one[0] < startup for one, two in pairs)
        return Result(
            policy=self.policy.name,
            attainment=score.met / score.total if score.total else 1.0,
            gpu_hours=self.cluster.gpu_seconds / 3600,
            ttft_p50_ms=1e3 * percentile(score.ttft, 0.5),
            ttft_p99_ms=1e3 * percentile(score.ttft, 0.99),
            tpot_p99_ms=1e3 * percentile(score.tpot, 0.99),
            max_replicas=self.cluster.most,
            reversals=reversals,
            dropped=score.dropped,
        )
