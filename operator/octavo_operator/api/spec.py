"""`LLMDeployment.spec`: what the user wants. Every field does something, every one is bounded.

The descriptions are what `kubectl explain llmd.spec --recursive` prints.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from octavo_operator.api import rules
from octavo_operator.api.base import ApiModel, ListType, Rule
from octavo_operator.api.pod_template import PodTemplate
from octavo_operator.api.types import (
    Count,
    CPUQuantity,
    DNSSubdomain,
    LabelValue,
    MemoryQuantity,
    PortNumber,
    QualifiedName,
    Seconds,
)


class BuiltinSource(ApiModel):
    """A model that ships with the server."""

    name: Literal["demo"] = Field(description="demo: the small chat model that every server image carries.")


class PathSource(ApiModel):
    """A directory that the server's container already has."""

    rules: ClassVar[tuple[Rule, ...]] = rules.PATH

    path: Annotated[str, Field(max_length=1024, pattern=r"^/[A-Za-z0-9._@+/-]+$")] = Field(
        description="Absolute path of a directory in Hugging Face layout (config.json, *.safetensors, tokenizer): "
        "from the image or a volume of podTemplate; under `octavo up` a directory of this machine.",
        examples=["/models/llama-3.1-8b-instruct"],
    )


class PersistentVolumeClaimSource(ApiModel):
    """A directory on a volume, mounted read-only."""

    rules: ClassVar[tuple[Rule, ...]] = rules.PATH

    claim_name: DNSSubdomain = Field(description="PersistentVolumeClaim in the same namespace.", examples=["models"])
    path: Annotated[str, Field(max_length=1024, pattern=r"^([A-Za-z0-9._@+][A-Za-z0-9._@+/-]*)?$")] = Field(
        "",
        description="Directory on the volume, in Hugging Face layout, without a leading slash; empty: its root.",
        examples=["llama-3.1-8b-instruct"],
    )


class ModelSource(ApiModel):
    """Where the weights come from; exactly one field is given."""

    rules: ClassVar[tuple[Rule, ...]] = rules.SOURCE

    builtin: BuiltinSource | None = Field(None, description="A model that ships with the server.")
    path: PathSource | None = Field(None, description="A directory that the server's container already has.")
    persistent_volume_claim: PersistentVolumeClaimSource | None = Field(
        None, description="A directory on a PersistentVolumeClaim, mounted read-only."
    )


class Model(ApiModel):
    """The model that is served."""

    name: Annotated[str, Field(max_length=253, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$")] | None = Field(
        None,
        description="Name that clients ask for; metadata.name when left out.",
        examples=["llama-3.1-8b-instruct"],
    )
    source: ModelSource = Field(description="Where the weights come from: exactly one of the fields.")


class KeyReference(ApiModel):
    """A key of a Secret or ConfigMap in the same namespace."""

    name: DNSSubdomain = Field(description="Name of the Secret or ConfigMap.")
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = Field(
        description="Key inside it."
    )
    optional: bool | None = Field(
        None, description="Whether the pod starts without it; false when left out: it waits until the key is there."
    )


class EnvVarSource(ApiModel):
    """Where a variable's value is read when a pod starts; exactly one field is given."""

    rules: ClassVar[tuple[Rule, ...]] = rules.ENV_SOURCE

    secret_key_ref: KeyReference | None = Field(None, description="A key of a Secret.")
    config_map_key_ref: KeyReference | None = Field(None, description="A key of a ConfigMap.")


class EnvVar(ApiModel):
    """A variable of the server's environment."""

    rules: ClassVar[tuple[Rule, ...]] = rules.ENV

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = Field(
        description="Name of the variable.", examples=["TRITON_CACHE_DIR"]
    )
    value: Annotated[str, Field(max_length=32_768)] | None = Field(None, description="Its value; empty when left out.")
    value_from: EnvVarSource | None = Field(None, description="Where its value is read from, instead of value.")


class CompileCache(ApiModel):
    """Where compiled GPU kernels are kept."""

    claim_name: DNSSubdomain = Field(
        description="PersistentVolumeClaim in the same namespace, that every replica can write to.",
        examples=["octavo-kernels"],
    )


class Server(ApiModel):
    """The inference server's container."""

    rules: ClassVar[tuple[Rule, ...]] = rules.SERVER

    image: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")] | None = (
        Field(
            None,
            description="Image of the server, best by digest; the one that came with the operator when left out.",
            examples=["ghcr.io/example/octavo-server@sha256:…"],
        )
    )
    args: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=64), ListType("atomic")
    ] = Field(
        [],
        description="Further flags of `octavo serve`; those that a field of this spec sets are refused.",
        examples=["[--max-num-seqs, '64']"],
    )
    env: Annotated[list[EnvVar], Field(max_length=64), ListType("map", ("name",))] = Field(
        [], description="Further variables of the server's environment."
    )
    max_model_length: Annotated[int, Field(ge=1, le=16_777_216)] | None = Field(
        None,
        description="Longest prompt plus answer, in tokens; when left out, what the model and the memory allow.",
        examples=[8192],
    )
    dtype: Literal["Auto", "Float32", "Float16", "BFloat16"] = Field(
        "Auto", description="Number format of weights and KV cache. Auto: the model's own on a GPU, Float32 on a CPU."
    )
    compile_cache: CompileCache | None = Field(
        None, description="Where compiled GPU kernels outlive a pod; when left out, each pod compiles its own."
    )


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


class Startup(ApiModel):
    """How long a replica may take to become ready."""

    timeout_seconds: Annotated[int, Field(ge=10, le=86_400)] | None = Field(
        None,
        description="Seconds from the start of the container until it is restarted if not ready; 1800 when left out.",
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


class Service(ApiModel):
    """The Service before the pods, named like the LLMDeployment."""

    port: PortNumber = Field(8000, description="Port that clients connect to.")


class Networking(ApiModel):
    """How clients reach the model."""

    service: Service = Field(Service(), description="The Service before the pods, named like the LLMDeployment.")


class LLMDeploymentSpec(ApiModel):
    """What is wanted of an LLMDeployment."""

    model: Model = Field(description="The model that is served.")
    server: Server = Field(Server(), description="The inference server's container.")
    resources: Resources = Field(Resources(), description="What a replica gets of its node.")
    replicas: Count = Field(1, description="Pods that serve the model; `kubectl scale` changes it.")
    startup: Startup = Field(Startup(), description="How long a replica may take to become ready.")
    rollout: Rollout = Field(Rollout(), description="How pods are replaced when the spec changes.")
    termination: Termination = Field(Termination(), description="How a pod ends without losing a request.")
    pod_template: PodTemplate = Field(PodTemplate(), description="Additions to the server's pods.")
    networking: Networking = Field(Networking(), description="How clients reach the model.")
    suspend: bool = Field(False, description="True: no pods at all, and replicas kept for later.")
