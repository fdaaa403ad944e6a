"""`spec.autoscaling`: who decides how many replicas there are, within which bounds, and by which targets."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from octavo_operator.api import rules
from octavo_operator.api.base import ApiModel, Rule
from octavo_operator.api.types import Count

Mode = Literal["Internal", "Recommend", "External"]


class Targets(ApiModel):
    """What every request should get, and how full the fleet may be for it."""

    kv_cache_utilization_percent: Annotated[int, Field(ge=10, le=95)] = Field(
        80,
        description="Share of the KV cache in percent that running requests may hold on average, a ceiling: the "
        "autoscaler keeps below it by as much as late requests teach it.",
    )
    time_to_first_token_milliseconds: Annotated[int, Field(ge=10, le=600_000)] = Field(
        1000,
        description="Milliseconds in which the first token is due; 250 more for each 1,000 tokens of the prompt.",
    )
    time_per_output_token_milliseconds: Annotated[int, Field(ge=1, le=60_000)] = Field(
        50, description="Milliseconds from one token to the next, as a request's mean."
    )


class Behavior(ApiModel):
    """How long the autoscaler waits before it believes what it sees."""

    scale_up_stabilization_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        15, description="Seconds for which more replicas must be needed before they are started; a backlog is at once."
    )
    scale_down_stabilization_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        300, description="Seconds for which fewer replicas must be enough before one is ended; then one at a time."
    )


class ScaleToZero(ApiModel):
    """When the last replica may go. The gateway holds the requests that come then, and they bring it back."""

    idle_seconds: Annotated[int, Field(ge=10, le=86_400)] = Field(
        900,
        description="Seconds without a request before the last replica ends; never less than a replica takes to start.",
    )
    max_queued_requests: Annotated[int, Field(ge=1, le=100_000)] = Field(
        200, description="Requests that each gateway holds until there is a replica; more are refused with 503."
    )


class Autoscaling(ApiModel):
    """Replicas by load instead of by number."""

    rules: ClassVar[tuple[Rule, ...]] = rules.AUTOSCALING

    mode: Mode = Field(
        "Internal",
        description="Internal: the operator decides, and replicas is left out. Recommend: it decides and tells in "
        "status.autoscaling, and replicas counts. External: an HPA, KEDA or kubectl writes replicas by /scale, and "
        "nothing else of this is used but maxQueuedRequests.",
    )
    min_replicas: Count = Field(1, description="Fewest replicas; 0 needs scaleToZero.")
    max_replicas: Annotated[int, Field(ge=1, le=1_000)] | None = Field(
        None, description="Most replicas: what the bill is bounded by. Required but in mode External.", examples=[8]
    )
    targets: Targets = Field(
        Targets(), description="What every request should get, and how full the fleet may be for it."
    )
    behavior: Behavior = Field(Behavior(), description="How long the autoscaler waits before it believes what it sees.")
    scale_to_zero: ScaleToZero | None = Field(
        None, description="Lets the last replica go; needs minReplicas 0 and a gateway. {} takes the defaults."
    )

    def bounded(self, replicas: int) -> int:
        """`replicas` within minReplicas and maxReplicas."""
        most = replicas if self.max_replicas is None else min(replicas, self.max_replicas)
        return max(self.min_replicas, most)
