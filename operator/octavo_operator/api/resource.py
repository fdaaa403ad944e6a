"""The whole object: `LLMDeployment`, with the part of its metadata that Octavo looks at."""

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from octavo_operator.api import pod_rules, rules
from octavo_operator.api.base import ApiModel, Rule
from octavo_operator.api.spec import LLMDeploymentSpec
from octavo_operator.api.status import LLMDeploymentStatus
from octavo_operator.api.types import DNSLabel, LabelValue

_MOST_ANNOTATED: Final = 256 * 1024
"""Bytes of all annotations together, keys and values."""


def _qualified_keys(items: dict[str, str]) -> dict[str, str]:
    for key in items:
        if not pod_rules.is_qualified(key):
            raise PydanticCustomError("key", "the key {key} must be a qualified name", {"key": key})
    return items


def _annotations(items: dict[str, str]) -> dict[str, str]:
    """As the API server has it: capitals are allowed in a key's prefix, and what counts is the size of all."""
    _qualified_keys({key.lower(): value for key, value in items.items()})
    size = sum(len(key.encode()) + len(value.encode()) for key, value in items.items())
    if size > _MOST_ANNOTATED:
        raise PydanticCustomError("size", "have {size} bytes; 262144 are allowed", {"size": size})
    return items


def _empty_for_null(items: Any) -> Any:
    """A null in metadata is an empty text to the API server."""
    return {key: "" if item is None else item for key, item in items.items()} if isinstance(items, dict) else items


def _none_for_empty(name: Any) -> Any:
    return None if name == "" else name


class ObjectMeta(ApiModel):
    """Kubernetes' metadata. What is not used here is known, so that it is not refused, and left unread."""

    name: str
    namespace: Annotated[DNSLabel | None, BeforeValidator(_none_for_empty)] = None
    labels: Annotated[dict[str, LabelValue], BeforeValidator(_empty_for_null), AfterValidator(_qualified_keys)] = Field(
        {}
    )
    annotations: Annotated[dict[str, str], BeforeValidator(_empty_for_null), AfterValidator(_annotations)] = Field({})
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    generate_name: str | None = None
    self_link: str | None = None
    finalizers: list[str] = Field([])
    owner_references: list[Any] = Field([])
    managed_fields: list[Any] = Field([])


class LLMDeployment(ApiModel):
    """A large language model, served: one manifest gives pods that run it and a URL for OpenAI clients."""

    rules: ClassVar[tuple[Rule, ...]] = rules.LLM_DEPLOYMENT

    api_version: Literal["octavo.dev/v1alpha1"]
    kind: Literal["LLMDeployment"]
    metadata: ObjectMeta
    spec: LLMDeploymentSpec = Field(description="What is wanted.")
    status: Annotated[LLMDeploymentStatus | None, Field(description="What the operator saw.")] = None

    @property
    def name(self) -> str:
        """metadata.name."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """metadata.namespace; "default" where a manifest leaves it out."""
        return self.metadata.namespace or "default"

    @property
    def model_name(self) -> str:
        """The name that clients ask for."""
        return self.spec.model.name or self.metadata.name

    @property
    def desired_replicas(self) -> int:
        """Pods wanted: 0 while suspended."""
        return 0 if self.spec.suspend else self.spec.replicas

    def scaled(self, decided: int | None = None, there: int | None = None) -> "LLMDeployment":
        """Itself with the number of replicas that it is to have where autoscaling decides it: what was `decided`, else
        as many as are `there`, else the fewest; always within its bounds. In every other mode spec.replicas counts.
        """
        autoscaling = self.spec.autoscaling
        if autoscaling is None or autoscaling.mode != "Internal":
            return self
        wanted = next(each for each in (decided, there, autoscaling.min_replicas) if each is not None)
        spec = self.spec.model_copy(update={"replicas": autoscaling.bounded(wanted)})
        return self.model_copy(update={"spec": spec})
