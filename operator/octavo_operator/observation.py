"""What was seen of one LLMDeployment, and the words that conditions are made of. Pure data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from octavo_operator.api.status import Resolved

Manifest = Mapping[str, Any]

COMPLETE: Final = "Complete"
TERMINATING: Final = "Terminating"
CHILD_TERMINATING: Final = "ChildTerminating"
DOWNLOAD_FAILED: Final = "DownloadFailed"
CONTESTED: Final = "Contested"
PASSING: Final = frozenset({TERMINATING, "PredecessorTerminating", CHILD_TERMINATING})
"""Problems that end by themselves: they are progress, and no degradation."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the objects are not as they should be. `reason` becomes the condition's: InvalidSpec, NameConflict, …"""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One condition before it has a time: status is "True", "False" or "Unknown"."""

    status: str
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Of one that is autoscaled: the condition ScalingActive, `status.autoscaling`, what decided its replicas, and
    whether that is the operator itself.
    """

    active: Verdict
    told: Mapping[str, Any]
    by: str
    is_internal: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """What the API server holds of one LLMDeployment. None: there is none, or it is not ours.

    `cached`: the condition ModelCached where a Job sees to the model; None: the pods do, or nobody needs to.
    `resolved`: what this spec was rendered with, None where it was not. `revision`: the model's, where a volume has it.
    `gateway_url`: where clients ask for it, None: at its Service.
    `accounting`: what was used up to now. `scaling`: None where it is not autoscaled.
    """

    deployment: Manifest | None = None
    service: Manifest | None = None
    pods: Sequence[Manifest] = ()
    problem: Problem | None = None
    cached: Verdict | None = None
    resolved: Resolved | None = None
    revision: str | None = None
    accounting: Mapping[str, Any] | None = None
    scaling: Scaling | None = None
    gateway_url: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Pods by the Deployment's own count, which may be of an older generation of it."""

    desired: int
    total: int = 0
    updated: int = 0
    ready: int = 0
    current: bool = False
    conditions: Mapping[str, Manifest] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Nothing is left to do: as many as wanted are there, all of the newest spec and ready, and no other."""
        return self.current and self.total == self.updated == self.ready == self.desired
