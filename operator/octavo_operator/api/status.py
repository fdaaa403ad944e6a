"""`LLMDeployment.status`: what the operator saw. Written by it alone, as one patch, when something changed."""

from typing import Annotated, Literal

from pydantic import Field

from octavo_operator.api.base import ApiModel, ListType

ConditionType = Literal["Ready", "Available", "Progressing", "ModelCached", "Scheduled", "ScalingActive", "Degraded"]
MAX_MESSAGE: int = 4096

_Replicas = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Condition(ApiModel):
    """One aspect of the state, as Kubernetes' own conditions are."""

    type: ConditionType = Field(
        description="Ready: what is wanted is there. Available: at least one replica takes requests. Progressing: pods "
        "are being started or replaced. ModelCached: the model is where the pods read it from. Scheduled: every pod "
        "has a node. ScalingActive: the operator scales the pods by load. Degraded: something stands in the way that "
        "waiting does not cure."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it is so.")
    reason: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")] = (
        Field(description="Why, in one word for programs.")
    )
    message: Annotated[str, Field(max_length=MAX_MESSAGE)] = Field(description="Why, for people, and what to do.")
    last_transition_time: Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})] = Field(
        description="When status last changed."
    )
    observed_generation: Annotated[int, Field(ge=0, le=2**53)] = Field(
        description="The metadata.generation that it was seen for."
    )


class Resolved(ApiModel):
    """What the spec leaves open and was decided once, so that neither a new operator nor a moved branch rolls pods."""

    for_spec: Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]+$")] = Field(
        description="Digest of the spec that this holds for, without replicas and suspend: scaling changes none of it."
    )
    image: Annotated[str, Field(max_length=1024)] = Field(description="Image of the server, as pods ask for it.")
    image_id: Annotated[str, Field(max_length=1024)] | None = Field(
        None, alias="imageID", description="The same by digest, as the node of the first pod of this spec resolved it."
    )
    pull_image: Annotated[str, Field(max_length=1024)] | None = Field(
        None, description="Image that downloads the model, where pods do so themselves."
    )
    revision: Annotated[str, Field(max_length=255)] | None = Field(
        None, description="Commit of model.source.huggingFace that every pod downloads, where pods do so themselves."
    )
    startup_timeout_seconds: Annotated[int, Field(ge=1, le=2**31 - 1)] = Field(
        description="Seconds that a replica has to become ready: startup.timeoutSeconds, or what was computed for it."
    )


class Accounting(ApiModel):
    """What was used since the LLMDeployment was made. Written along with other changes; live values are metrics."""

    replica_seconds: Annotated[int, Field(ge=0, le=2**53)] = Field(
        description="Seconds that pods had a node, summed over the pods."
    )
    accelerator_seconds: Annotated[int, Field(ge=0, le=2**53)] = Field(
        description="The same times the units of resources.accelerator that each pod held: GPU-seconds, of whole GPUs."
    )
    as_of: Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})] = Field(
        description="Until when that is counted."
    )


class AutoscalingStatus(ApiModel):
    """What the autoscaler did, and what it has learned. Learned figures are told when they are a tenth off, and not
    more often than every 5 minutes.
    """

    last_scale_time: Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})] | None = Field(
        None, description="When it last changed the number of replicas."
    )
    reason: Annotated[str, Field(max_length=1024)] | None = Field(
        None, description="Why it did, as it was told in the event."
    )
    recommended_replicas: _Replicas | None = Field(
        None, description="Replicas that the load needs, in mode Recommend; replicas says how many there are."
    )
    replica_tokens: Annotated[int, Field(ge=0, le=2**53)] | None = Field(
        None, description="Tokens that the KV cache of a replica can hold."
    )
    startup_seconds: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="Seconds from a pod's making until it is ready."
    )
    learned: Annotated[str, Field(max_length=4096)] | None = Field(
        None, description="All that was learned, for the operator's next start: JSON, whose fields may change."
    )


class LLMDeploymentStatus(ApiModel):
    """What the operator saw of an LLMDeployment."""

    conditions: Annotated[list[Condition], Field(max_length=16), ListType("map", ("type",))] = Field(
        [],
        description="Ready, Available, Progressing, ModelCached, Scheduled, ScalingActive and Degraded, each with "
        "reason and message.",
    )
    observed_generation: Annotated[int, Field(ge=0, le=2**53)] | None = Field(
        None, description="The metadata.generation that all of this is about."
    )
    replicas: _Replicas | None = Field(None, description="Pods that are there.")
    ready_replicas: _Replicas | None = Field(None, description="Pods that take requests.")
    updated_replicas: _Replicas | None = Field(None, description="Pods of the newest spec.")
    desired_replicas: _Replicas | None = Field(
        None, description="Pods wanted: spec.replicas, or what autoscaling decided; 0 while suspended."
    )
    selector: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="Label selector of the pods, as text; read by `kubectl scale` and autoscalers."
    )
    url: Annotated[str, Field(max_length=1024)] | None = Field(
        None, description="Base URL for OpenAI clients inside the cluster."
    )
    model: Annotated[str, Field(max_length=253)] | None = Field(None, description="Name that clients ask for.")
    model_revision: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="Revision of the model's source that the pods of this spec serve, as the download told it."
    )
    restarts: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="Restarts of the servers of those pods that are there."
    )
    resolved: Resolved | None = Field(
        None, description="What the spec leaves open, decided once for all pods until the spec changes."
    )
    autoscaling: AutoscalingStatus | None = Field(None, description="What the autoscaler did, and what it has learned.")
    accounting: Accounting | None = Field(None, description="What was used since the LLMDeployment was made.")
