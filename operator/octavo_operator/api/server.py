"""`LLMDeployment.spec.server`: the inference server's container."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from octavo_operator.api import rules
from octavo_operator.api.base import ApiModel, ListType, Rule
from octavo_operator.api.types import DNSSubdomain, Image, MemoryQuantity, SecretKey


class KeyReference(ApiModel):
    """A key of a Secret or ConfigMap in the same namespace."""

    name: DNSSubdomain = Field(description="Name of the Secret or ConfigMap.")
    key: SecretKey = Field(description="Key inside it.")
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


class ApiKeys(ApiModel):
    """A Secret with the keys that clients must send; the kubelet mounts it, the operator never reads it."""

    name: DNSSubdomain = Field(description="Name of the Secret, in the same namespace.", examples=["llama-keys"])
    key: SecretKey | None = Field(
        None,
        description="The only key of the Secret that is used; when left out each of them names a tenant.",
        examples=["api-keys"],
    )


class CompileCache(ApiModel):
    """Where compiled GPU kernels are kept."""

    claim_name: DNSSubdomain = Field(
        description="PersistentVolumeClaim in the same namespace, that every replica can write to.",
        examples=["octavo-kernels"],
    )


class Server(ApiModel):
    """The inference server's container."""

    rules: ClassVar[tuple[Rule, ...]] = rules.SERVER

    image: Image | None = Field(
        None,
        description="Image of the server, best by digest; the one that came with the operator when left out.",
        examples=["ghcr.io/example/octavo-server@sha256:…"],
    )
    args: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=64), ListType("atomic")
    ] = Field(
        [],
        description="Further flags of `octavo serve`; those that a field of this spec sets are refused.",
        examples=["[--max-num-seqs, '64']"],
    )
    env: Annotated[list[EnvVar], Field(max_length=64), ListType("map", ("name",))] = Field(
        [],
        description="Further variables of the server's environment. HF_ENDPOINT, HTTP_PROXY, HTTPS_PROXY, NO_PROXY and "
        "SSL_CERT_FILE hold for the download of the model, too.",
    )
    max_model_length: Annotated[int, Field(ge=1, le=16_777_216)] | None = Field(
        None,
        description="Longest prompt plus answer, in tokens; when left out, what the model and the memory allow.",
        examples=[8192],
    )
    dtype: Literal["Auto", "Float32", "Float16", "BFloat16"] = Field(
        "Auto", description="Number format of weights and KV cache. Auto: the model's own on a GPU, Float32 on a CPU."
    )
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="GPUs that share one replica's model; 1 is all that works so far."
    )
    host_memory_for_kv_cache: MemoryQuantity | None = Field(
        None,
        alias="hostMemoryForKVCache",
        description="Host memory for pages of the KV cache that leave the GPU, as a quantity in bytes: a part of "
        "resources.memory, which must be more. When left out 4Gi, or a quarter of the free memory if that is less; on "
        "a CPU none.",
        examples=["16Gi"],
    )
    api_key_secret_ref: ApiKeys | None = Field(
        None,
        description="Keys that clients must send one of; when left out, whoever networkPolicy lets in is served. A "
        "change of the Secret reaches running pods in a minute or so, without a roll-out.",
    )
    compile_cache: CompileCache | None = Field(
        None, description="Where compiled GPU kernels outlive a pod; when left out, each pod compiles its own."
    )
