"""What one look at a fleet found, as `decide` takes it. Pure data; all times are seconds on the decider's clock.

The decider's clock must go on over restarts of the operator (seconds since the epoch do). Totals are counters since the
start of whoever tells them: only their differences are used, and a total that fell was begun anew.
"""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["ready", "pending", "terminating"]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one ready replica said at `at`. What it did not say is None: missing is never 0.

    `kv_tokens_used`: tokens that the pages held by requests can hold; pages that are only cached count as free.
    `prefill_tokens_per_second`, `decode_tokens_per_second`: its speed in the last steps that had such work, not its
    load; 0 before there were any.
    `computed_prompt_tokens_total`: prompt tokens that no cache had; `generated_tokens_total`: tokens of answers.
    `inter_token_seconds_total`, `inter_token_count`: sum and count of the times between a request's tokens
    (`vllm:inter_token_latency_seconds`).
    `prefix_queries_total`, `prefix_hits_total`: prompt tokens looked up in the prefix cache, and found there.
    """

    at: float
    kv_tokens_used: int
    kv_tokens_total: int
    running: int
    waiting: int
    waiting_prompt_tokens: int = 0
    prefill_tokens_per_second: float = 0.0
    decode_tokens_per_second: float = 0.0
    preemptions_total: float = 0.0
    computed_prompt_tokens_total: float | None = None
    generated_tokens_total: float | None = None
    inter_token_seconds_total: float | None = None
    inter_token_count: float | None = None
    prefix_queries_total: float | None = None
    prefix_hits_total: float | None = None


@dataclass(frozen=True, slots=True)
class Replica:
    """A pod, as Kubernetes sees it.

    `age`: seconds since it was made. `startup`: seconds that it took to become ready, None until then or if not known.
    `unschedulable`: the scheduler found no node for it. `sample`: the last one it gave, however old; None: none yet.
    """

    name: str
    phase: Phase
    age: float
    startup: float | None = None
    unschedulable: bool = False
    sample: Sample | None = None


@dataclass(frozen=True, slots=True)
class GatewaySample:
    """What the gateway said of this model at `at`, summed over its replicas.

    `held_requests` wait there for a replica that can take them, with `held_prompt_tokens`; `in_flight` are at a
    replica. Of `finished_total`, `late_first_token_total` missed the target for TTFT, `late_per_token_total` for TPOT.
    """

    at: float
    arrivals_total: float
    arrived_prompt_tokens_total: float
    in_flight: int
    held_requests: int = 0
    held_prompt_tokens: int = 0
    finished_total: float = 0.0
    late_first_token_total: float = 0.0
    late_per_token_total: float = 0.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything that is known at one moment.

    `desired`: replicas asked for now, as the Deployment has them. `startup_deadline`: seconds after which a pending
    replica counts as stuck (`status.resolved.startupTimeoutSeconds`). `gateway` is None where there is none, or it did
    not answer.
    """

    desired: int
    replicas: tuple[Replica, ...] = ()
    gateway: GatewaySample | None = None
    startup_deadline: float = 1800.0

    @property
    def ready(self) -> tuple[Replica, ...]:
        """Replicas that take requests."""
        return tuple(each for each in self.replicas if each.phase == "ready")

    @property
    def pending(self) -> tuple[Replica, ...]:
        """Replicas that are to become ready."""
        return tuple(each for each in self.replicas if each.phase == "pending")
