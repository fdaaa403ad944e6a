"""A pod: a replica with the life that Kubernetes gives it."""

from typing import Final

from octavo_operator.autoscale.observation import Phase, Sample
from octavo_operator.simulate.hardware import Hardware
from octavo_operator.simulate.job import Job
from octavo_operator.simulate.replica import Replica

DRAIN_SECONDS: Final = 120.0
"""A terminating pod ends its requests for so long; then they go on elsewhere (`termination.drainSeconds`)."""
_REQUEST_TOKENS: Final = 512
"""What a request counts in a pod's load beside its prompt."""


class Pod:
    """`load`: tokens of the requests that it has, as the gateway estimates them: prompts, and a constant for answers.

    `scheduled`, `ready_at`: when it got a node and was ready; None until then.
    """

    def __init__(self, name: str, created: float, hardware: Hardware) -> None:
        self.name, self.created = name, created
        self.replica = Replica(hardware)
        self.phase: Phase = "pending"
        self.scheduled: float | None = None
        self.ready_at: float | None = None
        self.startup = 0.0
        self.unschedulable = False
        self.sample: Sample | None = None
        self.load = self.outstanding = 0

    @property
    def has_room(self) -> bool:
        """Whether the gateway sends it more: few prompt tokens wait, and the batch is not full."""
        costs = self.replica.hardware
        return self.replica.waiting_tokens < costs.queue_tokens and self.outstanding < costs.max_requests

    def take(self, job: Job) -> None:
        """A request is sent to it."""
        job.weight = job.length + _REQUEST_TOKENS
        self.load += job.weight
        self.outstanding += 1

    def give_back(self, job: Job) -> None:
        """A request has ended."""
        self.load -= job.weight
        self.outstanding -= 1

    def lose_all(self) -> list[Job]:
        """It dies: the requests that it had."""
        self.load = self.outstanding = 0
        return self.replica.lose_all()
