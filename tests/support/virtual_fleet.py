"""A fleet in virtual time for tests of the autoscaler: replicas that follow the law of steps, a clock, and `decide`.

Simpler than the simulator, and independent of it: rates instead of requests, no chance. A replica that gets the work p
of a second takes `step / (1 - p)` for a step; from 1 on, what it cannot do waits.
"""

from dataclasses import dataclass, field

from octavo_operator.autoscale.decide import Decision, decide
from octavo_operator.autoscale.observation import Fleet, GatewaySample, Replica, Sample
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import State

STEP, REQUEST, PROMPT = 6.5e-3, 60e-6, 28e-6
KV_TOKENS = 444_000
FULL = 0.95


@dataclass
class Pod:
    """A replica; `ready_at` is when it will be ready, None: never."""

    name: str
    born: float
    ready_at: float | None
    scraped: bool = True
    unschedulable: bool = False
    sample: Sample | None = None
    totals: dict[str, float] = field(default_factory=dict)
    waiting: float = 0.0


class VirtualFleet:
    """`tick` lets time pass with a load, decides, and does what was decided."""

    def __init__(
        self, replicas: int, settings: Settings | None = None, startup: float = 60.0, now: float = 1e6
    ) -> None:
        self.settings = settings or Settings(max_replicas=64)
        self.startup: float | None = startup
        self.now = now
        self.state = State()
        self.gateway = True
        self.deadline = 600.0
        self.arrivals = self.tokens = self.finished = self.late_first = self.late_rest = 0.0
        self.held = 0
        self.in_flight = 0
        self.pods = [Pod(f"pod-{i}", now - 1000, now - 900) for i in range(replicas)]
        self._made = replicas
        self.decisions: list[Decision] = []

    @property
    def count(self) -> int:
        """Pods there are."""
        return len(self.pods)

    @property
    def ready(self) -> list[Pod]:
        """Pods that take requests."""
        return [pod for pod in self.pods if pod.ready_at is not None and pod.ready_at <= self.now]

    def run(self, seconds: float, rate: float = 0.0, *, prompt: int = 1000, output: int = 200) -> list[Decision]:
        """Decisions over so long at so many requests a second."""
        end, begin = self.now + seconds, len(self.decisions)
        while self.now < end:
            self.tick(rate, prompt=prompt, output=output)
        return self.decisions[begin:]

    def tick(self, rate: float = 0.0, *, prompt: int = 1000, output: int = 200, seconds: float = 10.0) -> Decision:
        """One decision."""
        self.now += seconds
        self.arrivals += rate * seconds
        self.tokens += rate * seconds * prompt
        ready = self.ready
        for pod in ready:
            self._serve(pod, rate / len(ready), prompt, output, seconds)
        decision = decide(self.observe(), self.settings, self.state, self.now)
        self.state = decision.state
        self.decisions.append(decision)
        if decision.replicas is not None and decision.apply:
            self.scale(decision.replicas, decision.victims)
        return decision

    def observe(self) -> Fleet:
        """What is seen now."""
        replicas = tuple(
            Replica(
                name=pod.name,
                phase="ready" if pod in self.ready else "pending",
                age=self.now - pod.born,
                startup=pod.ready_at - pod.born if pod.ready_at is not None and pod in self.ready else None,
                unschedulable=pod.unschedulable,
                sample=pod.sample if pod in self.ready else None,
            )
            for pod in self.pods
        )
        gateway = GatewaySample(
            self.now, self.arrivals, self.tokens, self.in_flight, self.held, self.held * 1000, self.finished,
            self.late_first, self.late_rest,
        )  # fmt: skip
        return Fleet(len(self.pods), replicas, gateway if self.gateway else None, self.deadline)

    def scale(self, wanted: int, victims: tuple[str, ...] = ()) -> None:
        """As the Deployment's controller does it, at once."""
        while len(self.pods) < wanted:
            ready_at = None if self.startup is None else self.now + self.startup
            self.pods.append(Pod(f"pod-{self._made}", self.now, ready_at, unschedulable=self.startup is None))
            self._made += 1
        rank = {name: place for place, name in enumerate(victims)}
        self.pods.sort(key=lambda pod: (pod in self.ready, rank.get(pod.name, 99)), reverse=True)
        del self.pods[wanted:]

    def _serve(self, pod: Pod, rate: float, prompt: int, output: int, seconds: float) -> None:
        each = prompt * PROMPT + output * REQUEST
        offered = rate + pod.waiting / seconds
        done = min(offered, FULL / each)
        pod.waiting = (offered - done) * seconds
        step = STEP / (1 - done * each)
        running = done * output * step
        late = pod.waiting > done
        self.finished += done * seconds
        self.late_first += done * seconds if late else 0.0
        totals = pod.totals
        for name, value in (("prompts", done * prompt), ("gaps", done * output), ("gap_seconds", done * output * step)):
            totals[name] = totals.get(name, 0.0) + value * seconds
        if pod.scraped:
            pod.sample = Sample(
                at=self.now,
                kv_tokens_used=int(running * (prompt + output / 2)),
                kv_tokens_total=KV_TOKENS,
                running=int(running),
                waiting=int(pod.waiting),
                waiting_prompt_tokens=int(pod.waiting * prompt),
                prefill_tokens_per_second=1 / PROMPT,
                decode_tokens_per_second=running / step,
                computed_prompt_tokens_total=totals["prompts"],
                generated_tokens_total=totals["gaps"],
                inter_token_seconds_total=totals["gap_seconds"],
                inter_token_count=totals["gaps"],
            )
