"""`LLMDeployment.spec`: what the user wants. Every field does something, every one is bounded.

The descriptions are what `kubectl explain llmd.spec --recursive` prints.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from octavo_operator.api import rules
from octavo_operator.api.autoscaling import Autoscaling
from octavo_operator.api.base import ApiModel, ListType, Rule
from octavo_operator.api.model_source import Model
from octavo_operator.api.networking import Networking
from octavo_operator.api.pod_template import PodTemplate
from octavo_operator.api.server import Server
from octavo_operator.api.storage import Storage
from octavo_operator.api.types import Count, CPUQuantity, LabelValue, MemoryQuantity, QualifiedName, Seconds


class Accelerator(ApiModel):
    """The device that a replica runs on."""

    rules: ClassVar[tuple[Rule, ...]] = rules.ACCELERATOR

    resource_name: QualifiedName = Field(
        "nvidia.com/gpu", description="Extended resource that the node's device plugin advertises."
    )
    count: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        1, description="Units of that resource for a replica; of whole GPUs one."
    )
    products: Annotated[list[LabelValue], Field(max_length=32), ListType("set")] = Field(
        [],
        description="Exact products that will do, as productLabel names them on the nodes; any when left out.",
        examples=["[NVIDIA-H100-80GB-HBM3]"],
    )
    product_label: QualifiedName = Field(
        "nvidia.com/gpu.product", description="Label of the nodes that tells the product."
    )


class Resources(ApiModel):
    """What a replica gets of its node."""

    accelerator: Accelerator | None = Field(None, description="The device; when left out the server runs on the CPU.")
    cpu: CPUQuantity | None = Field(
        None,
        description="CPU cores requested, as a quantity; no limit is set, no request when left out.",
        examples=["'4'"],
    )
    memory: MemoryQuantity | None = Field(
        None,
        description="Host memory, requested and limit, as a quantity in bytes; neither when left out.",
        examples=["48Gi"],
    )
    ephemeral_storage: MemoryQuantity | None = Field(
        None,
        description="Disk of the node, requested and limit, as a quantity in bytes: for logs, temporary files, and a "
        "model that is downloaded without storage.cache. Neither when left out.",
        examples=["40Gi"],
    )


class Startup(ApiModel):
    """How long a replica may take to become ready."""

    timeout_seconds: Annotated[int, Field(ge=10, le=86_400)] | None = Field(
        None,
        description="Seconds from the server's start until it is restarted if not ready; a download comes before. "
        "When left out 600, and one more for each 100Mi of storage.cache.size or resources.ephemeralStorage, where the "
        "model is there; 1800 where its size is not known.",
        examples=[900],
    )


class Rollout(ApiModel):
    """How pods are replaced when the spec changes."""

    rules: ClassVar[tuple[Rule, ...]] = rules.ROLLOUT

    max_surge: Count = Field(0, description="Pods above replicas while rolling; each needs a free accelerator.")
    max_unavailable: Count = Field(
        1, description="Pods below replicas while rolling. With one replica and no surge the roll-out is a pause."
    )


class Termination(ApiModel):
    """How a pod ends without losing a request. Its grace period is the sum of both and 30 seconds."""

    propagation_seconds: Annotated[int, Field(ge=0, le=600)] = Field(
        10, description="Seconds that a terminating pod still takes requests, until every client has heard of it."
    )
    drain_seconds: Seconds = Field(120, description="Seconds after that in which the requests that run may finish.")


class Observability(ApiModel):
    """How the replicas are watched."""

    pod_monitor: Literal["Enabled", "Disabled"] = Field(
        "Disabled",
        description="Enabled: a PodMonitor (monitoring.coreos.com/v1) leads Prometheus to the metrics of each pod, on "
        "the admin port 8001; needs that CRD in the cluster.",
    )


class Disruption(ApiModel):
    """What a drain of nodes may take away at once, as a PodDisruptionBudget."""

    max_unavailable: Count = Field(
        1,
        description="Pods that evictions may take below replicas; 0: none is ever evicted, and a node's drain waits "
        "for people. Pods that are not ready can always be evicted.",
    )


class LLMDeploymentSpec(ApiModel):
    """What is wanted of an LLMDeployment."""

    rules: ClassVar[tuple[Rule, ...]] = rules.SPEC

    model: Model = Field(description="The model that is served.")
    server: Server = Field(Server(), description="The inference server's container.")
    resources: Resources = Field(Resources(), description="What a replica gets of its node.")
    storage: Storage = Field(Storage(), description="Where a model that is downloaded is kept.")
    replicas: Count = Field(
        1, description="Pods that serve the model; `kubectl scale` changes it. Left out with autoscaling.mode Internal."
    )
    autoscaling: Autoscaling | None = Field(
        None, description="Replicas by load instead of by number; when left out there are always `replicas`."
    )
    startup: Startup = Field(Startup(), description="How long a replica may take to become ready.")
    rollout: Rollout = Field(Rollout(), description="How pods are replaced when the spec changes.")
    termination: Termination = Field(Termination(), description="How a pod ends without losing a request.")
    pod_template: PodTemplate = Field(PodTemplate(), description="Additions to the server's pods.")
    networking: Networking = Field(Networking(), description="How clients reach the model, and who may.")
    observability: Observability = Field(Observability(), description="How the replicas are watched.")
    disruption: Disruption = Field(Disruption(), description="What a drain of nodes may take away at once.")
    suspend: bool = Field(False, description="True: no pods at all, and replicas kept for later.")
