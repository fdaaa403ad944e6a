"""`LLMDeployment.spec.storage`: where a model that is downloaded is kept."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from octavo_operator.api import rules
from octavo_operator.api.base import ApiModel, ListType, Rule
from octavo_operator.api.types import DNSSubdomain, MemoryQuantity


class Cache(ApiModel):
    """A volume with the downloaded model: of all replicas, and all deployments here that ask for the same one."""

    rules: ClassVar[tuple[Rule, ...]] = rules.CACHE

    size: MemoryQuantity = Field(
        description="Size of the volume, as a quantity in bytes; it can grow, where its class allows that, and never "
        "shrink. The largest of those that share it counts.",
        examples=["100Gi"],
    )
    storage_class_name: DNSSubdomain | None = Field(
        None, description="StorageClass of the volume; the cluster's default when left out.", examples=["fast"]
    )
    access_modes: Annotated[
        list[Literal["ReadWriteOnce", "ReadWriteMany"]], Field(min_length=1, max_length=2), ListType("set")
    ] = Field(
        ["ReadWriteMany"],
        description="Default: [ReadWriteMany], for pods on several nodes. ReadWriteOnce: for pods on one node.",
    )
    retain: bool = Field(
        False,
        description="True: the volume stays when the last deployment that uses it is gone, for one that comes later. "
        "Of several that share it, one that says so is enough.",
    )
    prefetch: bool = Field(
        True,
        description="True: a Job downloads the model before any pod is started, so that no accelerator waits for it. "
        "False: the first pod does, and the others wait.",
    )


class Storage(ApiModel):
    """Where a model that is downloaded is kept."""

    cache: Cache | None = Field(
        None,
        description="A volume for the model; when left out each pod downloads it to its node's disk "
        "(resources.ephemeralStorage).",
    )
