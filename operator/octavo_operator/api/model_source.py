"""`LLMDeployment.spec.model`: what is served, and where its files come from."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from octavo_operator.api import rules
from octavo_operator.api.base import ApiModel, Rule
from octavo_operator.api.types import DNSSubdomain


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
