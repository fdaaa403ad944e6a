"""What a user may add to the pods. Small core types are spelt out; big ones are passed on and judged by the API server.

The CRD stays small enough for client-side apply this way.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from octavo_operator.api import pod_rules
from octavo_operator.api.base import ApiModel, ListType, PreservedModel, Rule
from octavo_operator.api.types import Annotations, DNSLabel, DNSSubdomain, Labels, LabelValue, QualifiedName


class Toleration(ApiModel):
    """A taint of a node that the pods put up with, as in a Pod."""

    rules: ClassVar[tuple[Rule, ...]] = pod_rules.TOLERATION

    key: QualifiedName | None = Field(
        None, description="Key of the taint; left out: every taint.", examples=["nvidia.com/gpu"]
    )
    operator: Literal["Equal", "Exists"] | None = Field(
        None, description="Whether the taint's value must be equal, or the taint just be there; Equal when left out."
    )
    value: LabelValue | None = Field(None, description="Value of the taint, with operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Effect of the taint; left out: every effect."
    )
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = Field(
        None, description="With effect NoExecute: seconds until the pod is evicted; left out: never."
    )


class LocalObjectReference(ApiModel):
    """An object in the same namespace."""

    name: DNSSubdomain = Field(description="Name of the object.")


class Volume(PreservedModel):
    """A volume as in a Pod, passed on as given; only its name is checked here."""

    name: DNSLabel = Field(
        description="Name that volumeMounts refer to; tmp, model, compile-cache, api-keys, gateway-key and credentials "
        "are the operator's."
    )


class VolumeMount(ApiModel):
    """Where a volume of `volumes` is seen in the server's container."""

    rules: ClassVar[tuple[Rule, ...]] = pod_rules.VOLUME_MOUNT

    name: DNSLabel = Field(description="Name of the volume.")
    mount_path: Annotated[str, Field(max_length=1024, pattern=r"^(/[^/:]+)+/?$")] = Field(
        description="Absolute path in the container; /tmp and /octavo are the operator's.", examples=["/models"]
    )
    sub_path: Annotated[str, Field(max_length=1024)] | None = Field(
        None, description="Path inside the volume; left out: its root."
    )
    read_only: bool | None = Field(None, description="Whether the server may only read; false when left out.")


class InitContainer(PreservedModel):
    """A container that runs to its end before the server, as in a Pod, passed on as given.

    Without a securityContext of its own it gets the server's (Pod Security `restricted`).
    """

    name: DNSLabel = Field(description="Name of the container; server and pull are the operator's.")
    image: Annotated[str, Field(min_length=1, max_length=1024)] = Field(description="Image of the container.")


class TopologySpreadConstraint(PreservedModel):
    """How replicas spread over zones or nodes, as in a Pod; by default counted over this deployment's pods."""

    max_skew: Annotated[int, Field(ge=1, le=1_000)] = Field(
        description="Most pods that one domain may have more than another."
    )
    topology_key: QualifiedName = Field(
        description="Label of the nodes that makes a domain.", examples=["topology.kubernetes.io/zone"]
    )
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = Field(
        description="What becomes of a pod that fits nowhere."
    )


class PodTemplate(ApiModel):
    """Additions to the server's pods. What the operator sets itself wins."""

    rules: ClassVar[tuple[Rule, ...]] = pod_rules.POD_TEMPLATE

    labels: Labels = Field({}, description="Further labels of the pods.", examples=["{team: search}"])
    annotations: Annotations = Field({}, description="Annotations of the pods.")
    node_selector: Labels = Field(
        {}, description="Labels that a node must carry.", examples=["{node.kubernetes.io/instance-type: p5.4xlarge}"]
    )
    tolerations: Annotated[list[Toleration], Field(max_length=32), ListType("atomic")] = Field(
        [], description="Taints of nodes that the pods put up with, such as those of GPU nodes."
    )
    affinity: (
        Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] | None
    ) = Field(
        None,
        description="Affinity as in a Pod, passed on as given; its nodeAffinity is narrowed to accelerator.products.",
    )
    topology_spread_constraints: Annotated[
        list[TopologySpreadConstraint], Field(max_length=8), ListType("map", ("topologyKey", "whenUnsatisfiable"))
    ] = Field([], description="How replicas spread over zones or nodes.")
    priority_class_name: DNSSubdomain | None = Field(None, description="PriorityClass of the pods.")
    runtime_class_name: DNSSubdomain | None = Field(None, description="RuntimeClass of the pods.", examples=["nvidia"])
    service_account_name: DNSSubdomain | None = Field(
        None, description="ServiceAccount of the pods, whose token is not mounted; default when left out."
    )
    image_pull_secrets: Annotated[list[LocalObjectReference], Field(max_length=16), ListType("map", ("name",))] = Field(
        [], description="Secrets of type kubernetes.io/dockerconfigjson that the images are pulled with."
    )
    volumes: Annotated[list[Volume], Field(max_length=32), ListType("map", ("name",))] = Field(
        [], description="Further volumes of the pods."
    )
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=32), ListType("map", ("mountPath",))] = Field(
        [], description="Where the server sees those volumes."
    )
    init_containers: Annotated[list[InitContainer], Field(max_length=8), ListType("map", ("name",))] = Field(
        [], description="Containers that run to their end before the server starts."
    )
