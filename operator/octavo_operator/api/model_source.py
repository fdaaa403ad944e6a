"""`LLMDeployment.spec.model`: what is served, and where its files come from."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from octavo_operator.api import rules
from octavo_operator.api.base import ApiModel, Rule
from octavo_operator.api.types import HOST, DNSSubdomain, Image, SecretKey

_DIRECTORY = r"^([A-Za-z0-9._@+][A-Za-z0-9._@+/-]*)?$"


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
    path: Annotated[str, Field(max_length=1024, pattern=_DIRECTORY)] = Field(
        "",
        description="Directory on the volume, in Hugging Face layout, without a leading slash; empty: its root.",
        examples=["llama-3.1-8b-instruct"],
    )


class TokenReference(ApiModel):
    """A key of a Secret in the same namespace, that the kubelet mounts where the model is downloaded."""

    name: DNSSubdomain = Field(description="Name of the Secret.", examples=["huggingface"])
    key: SecretKey = Field("token", description="Key inside it.")


class SecretReference(ApiModel):
    """A Secret in the same namespace."""

    name: DNSSubdomain = Field(description="Name of the Secret.", examples=["models-s3"])


class HuggingFaceSource(ApiModel):
    """A repository of the Hugging Face Hub. Only what serving reads is downloaded, and no pickle ever."""

    rules: ClassVar[tuple[Rule, ...]] = rules.HUGGING_FACE

    repo: Annotated[
        str, Field(max_length=193, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")
    ] = Field(description="Organisation and name.", examples=["meta-llama/Llama-3.1-8B-Instruct"])
    revision: Annotated[str, Field(max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")] = Field(
        "main",
        description="Commit, tag or branch. Best a commit: which one a branch is, is asked once for all pods, and "
        "again with each change of the spec but of replicas and suspend.",
        examples=["0e9e39f249a16976918f6564b8830bc894c89659"],
    )
    token_secret_ref: TokenReference | None = Field(
        None, description="Token for a model that is not public; the operator never reads it. None when left out."
    )


class S3Source(ApiModel):
    """The objects below a prefix of an S3 bucket, in Hugging Face layout."""

    rules: ClassVar[tuple[Rule, ...]] = rules.S3

    uri: Annotated[
        str, Field(max_length=1024, pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._@+=-]+)*/?$")
    ] = Field(description="Bucket and prefix.", examples=["s3://models/llama-3.1-8b-instruct"])
    endpoint: Annotated[str, Field(max_length=512, pattern=rf"^https?://{HOST}/?$")] | None = Field(
        None, description="URL of a store that is not AWS; AWS when left out.", examples=["https://minio.storage:9000"]
    )
    credentials_secret_ref: SecretReference | None = Field(
        None,
        description="Secret with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN and "
        "AWS_REGION if they are needed. When left out the identity of the pod's ServiceAccount counts.",
    )


class HTTPSource(ApiModel):
    """An archive, or a directory with a list of its files, on a web server."""

    url: Annotated[
        str, Field(max_length=2048, pattern=rf"^https?://{HOST}/([A-Za-z0-9._~@+/%-]*)(/|[.]tar|[.]tar[.]gz|[.]tgz)$")
    ] = Field(
        description="Archive (.tar, .tar.gz, .tgz), or directory (ends in /) with a file SHA256SUMS.",
        examples=["https://models.example.com/llama-3.1-8b-instruct.tar"],
    )
    sha256: Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{64}$")] = Field(
        description="SHA-256 of the archive, or of SHA256SUMS, in hexadecimal; anything else is refused."
    )


class OCISource(ApiModel):
    """An image whose files are the model; the kubelet pulls and mounts it, read-only (an image volume)."""

    rules: ClassVar[tuple[Rule, ...]] = rules.PATH

    image: Image = Field(
        description="The image, best by digest; pulled with podTemplate.imagePullSecrets.",
        examples=["registry.example.com/models/llama@sha256:…"],
    )
    path: Annotated[str, Field(max_length=1024, pattern=_DIRECTORY)] = Field(
        "", description="Directory in the image, without a leading slash; empty: its root.", examples=["models"]
    )


class ModelSource(ApiModel):
    """Where the weights come from; exactly one field is given."""

    rules: ClassVar[tuple[Rule, ...]] = rules.SOURCE

    builtin: BuiltinSource | None = Field(None, description="A model that ships with the server.")
    path: PathSource | None = Field(None, description="A directory that the server's container already has.")
    persistent_volume_claim: PersistentVolumeClaimSource | None = Field(
        None, description="A directory on a PersistentVolumeClaim, mounted read-only."
    )
    oci: OCISource | None = Field(None, description="An image whose files are the model, mounted read-only.")
    hugging_face: HuggingFaceSource | None = Field(None, description="A repository of the Hugging Face Hub.")
    s3: S3Source | None = Field(None, description="Objects below a prefix of an S3 bucket.")
    http: HTTPSource | None = Field(None, description="An archive or a directory on a web server.")

    @property
    def is_downloaded(self) -> bool:
        """Whether `octavo pull` fetches it, onto a disk of the pod or into storage.cache."""
        return self.hugging_face is not None or self.s3 is not None or self.http is not None


class Model(ApiModel):
    """The model that is served."""

    name: Annotated[str, Field(max_length=253, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$")] | None = Field(
        None,
        description="Name that clients ask for; metadata.name when left out.",
        examples=["llama-3.1-8b-instruct"],
    )
    source: ModelSource = Field(description="Where the weights come from: exactly one of the fields.")
