"""`LLMDeployment.status`: what the operator saw. Written by it alone, as one patch, when something changed."""

from typing import Annotated, Literal

from pydantic import Field

from octavo_operator.api.base import ApiModel, ListType

ConditionType = Literal["Ready", "Available", "Progressing", "ModelCached", "Scheduled", "Degraded"]
MAX_MESSAGE: int = 4096

_Replicas = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Condition(ApiModel):
    """One aspect of the state, as Kubernetes' own conditions are."""

    type: ConditionType = Field(
        description="Ready: what is wanted is there. Available: at least one replica takes requests. Progressing: pods "
        "are being started or replaced. ModelCached: the model is on storage.cache. Scheduled: every pod has a node. "
        "Degraded: something stands in the way that waiting does not cure."
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


class LLMDeploymentStatus(ApiModel):
    """What the operator saw of an LLMDeployment."""

    conditions: Annotated[list[Condition], Field(max_length=16), ListType("map", ("type",))] = Field(
        [],
        description="Ready, Available, Progressing, ModelCached (for storage.cache), Scheduled and Degraded, each with "
        "reason and message.",
    )
    observed_generation: Annotated[int, Field(ge=0, le=2**53)] | None = Field(
        None, description="The metadata.generation that all of this is about."
    )
    replicas: _Replicas | None = Field(None, description="Pods that are there.")
    ready_replicas: _Replicas | None = Field(None, description="Pods that take requests.")
    updated_replicas: _Replicas | None = Field(None, description="Pods of the newest spec.")
    desired_replicas: _Replicas | None = Field(None, description="Pods wanted: spec.replicas, or 0 while suspended.")
    selector: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="Label selector of the pods, as text; read by `kubectl scale` and autoscalers."
    )
    url: Annotated[str, Field(max_length=1024)] | None = Field(
        None, description="Base URL for OpenAI clients inside the cluster."
    )
    model: Annotated[str, Field(max_length=253)] | None = Field(None, description="Name that clients ask for.")
