"""What `octavo gateway` can be told: a field is a flag, its description the help."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from octavo_common.access.config import AccessConfig
from octavo_common.names import GATEWAY_PORT

Names = tuple[Annotated[str, Field(min_length=1, max_length=253)], ...]


class GatewayConfig(AccessConfig):
    """The whole configuration of a gateway."""

    port: int = Field(GATEWAY_PORT, ge=0, le=65_535, description="port to listen on; 0: any free one, which is printed")
    max_connections: int | None = Field(
        None, ge=1, le=1_048_576, description="connections that a port takes at once; more are closed [default: 8192]"
    )
    endpoints_file: Path | None = Field(
        None, description="JSON file that says which replicas there are, read again when it is replaced"
    )
    namespace: Names = Field(
        (), description="Kubernetes namespace(s) whose LLMDeployments are served, found by their EndpointSlices"
    )
    all_namespaces: bool = Field(False, description="instead those of every namespace; needs a ClusterRole")
    kubeconfig: Path | None = Field(
        None, description="how to reach the cluster [default: the pod's service account, else KUBECONFIG]"
    )
    replica_api_key_file: Path | None = Field(
        None,
        description="file whose first key is the gateway's own towards replicas; without it, clients' are passed on "
        "and broken streams cannot go on elsewhere where replicas have keys",
    )
    hold_requests: int = Field(
        1024, ge=0, le=1_000_000, description="requests of a model that wait for a replica; more are answered with 503"
    )
    hold_mib: int = Field(256, ge=1, le=65_536, description="MiB that the bodies of these may have together, by model")
    hold_seconds: float = Field(
        300.0, ge=0.1, le=86_400.0, description="seconds after which a request that waits is answered with 503"
    )
    max_waiting: int = Field(
        64, ge=1, le=100_000, description="requests that may wait at a replica; more are held for whoever is free first"
    )
    attempts: int = Field(
        4, ge=1, le=100, description="replicas that one request may see break down before it ends with an error"
    )
    stall_seconds: float = Field(
        60.0, ge=1.0, le=86_400.0, description="seconds without a token after which a begun stream goes on elsewhere"
    )
    ttft_target: float = Field(
        1.0, gt=0.0, le=86_400.0, description="seconds within which a first token is in time, besides the next flag's"
    )
    ttft_target_per_1000_tokens: float = Field(
        0.25, ge=0.0, le=86_400.0, description="and seconds for each 1,000 tokens of the prompt"
    )
    tpot_target: float = Field(
        0.05, gt=0.0, le=3_600.0, description="seconds between tokens, on an answer's average, that are in time"
    )
    drain_delay_seconds: float = Field(
        5.0, ge=0.0, le=3_600.0, description="after SIGTERM, time in which requests still come in and are answered"
    )
    drain_seconds: float = Field(
        600.0, ge=0.0, le=86_400.0, description="then, time for open requests to finish before they are cut off"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged")
    log_format: Literal["text", "json"] = Field("text", description="how it is logged: lines of text, or of JSON")
    log_requests: Literal["all", "errors", "none"] = Field(
        "all", description="requests that the log tells of; never what they say"
    )

    @field_validator("namespace")
    @classmethod
    def _one_source(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("endpoints_file") is not None:
            raise PydanticCustomError("source", "There is --endpoints-file already: give one of them")
        return value

    @field_validator("all_namespaces")
    @classmethod
    def _no_other_source(cls, value: bool, info: ValidationInfo) -> bool:
        if value and (info.data.get("endpoints_file") is not None or info.data.get("namespace")):
            raise PydanticCustomError("source", "There is --endpoints-file or --namespace already: give one of them")
        return value

    @field_validator("kubeconfig")
    @classmethod
    def _of_a_cluster(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and not (info.data.get("namespace") or info.data.get("all_namespaces")):
            text = "It is only read with --namespace or --all-namespaces: give both"
            raise PydanticCustomError("kubeconfig", text)
        return value

    @property
    def is_in_cluster(self) -> bool:
        """Whether a cluster says which replicas there are."""
        return bool(self.namespace) or self.all_namespaces
