"""The server's configuration: one model, from which the flags of `octavo serve` are made.

A field's name is the flag (`max_model_len` → `--max-model-len`), its description the help. Names are vLLM's where vLLM
has the flag.
"""

import json
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Name = Annotated[str, Field(min_length=1, max_length=256)]
ApiKey = Annotated[str, Field(min_length=1, max_length=4096)]  # an empty one would let everybody in
Texts = tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...]
DISK_CACHE_GIB: Final = 16.0
DTypeName = Literal["auto", "float32", "float16", "bfloat16"]


class EngineConfig(BaseModel):
    """What the engine process needs; sent to it as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(description="directory in Hugging Face layout")
    load_format: Literal["safetensors", "random"] = Field(
        "safetensors",
        description="random: no weights are read, they are noise of the shape that config.json describes, "
        "to time a model that is not at hand",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is a GPU, else cpu")
    dtype: DTypeName = Field("auto", description="auto: the model's own on a GPU, float32 on the CPU")
    max_model_len: int | None = Field(
        None,
        ge=1,
        le=16_777_216,
        description="longest prompt plus answer in tokens [default: what model and memory allow]",
    )
    block_size: Literal[8, 16, 32, 64, 128, 256] = Field(16, description="tokens in a page of the KV cache")
    num_gpu_blocks_override: int | None = Field(
        None, ge=1, le=2**31 - 1, description="pages of the KV cache, instead of as many as fit (CPU too)"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0.0, le=1.0, description="share of the GPU's memory for weights, workspace and KV cache"
    )
    kv_cache_memory_bytes: int | None = Field(
        None, ge=1, le=2**50, description="bytes of KV cache [default: on a GPU what is left, on the CPU 1 GiB at most]"
    )
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="requests in a step at most [default: 512 on a GPU with 40 GiB of memory or more, else 256]",
    )
    max_num_batched_tokens: int | None = Field(
        None,
        ge=1,
        le=1_048_576,
        description="tokens in a step at most, of prefill and decode together [default: 2048 on a GPU, 512 on the CPU]",
    )
    enable_prefix_caching: bool = Field(True, description="share pages between requests that begin alike")
    swap_space: float | None = Field(
        None,
        ge=0.0,
        le=65_536.0,
        description="GiB of host memory for pages that leave the device "
        "[default: 4 on a GPU, or a quarter of the memory that is free; 0 on the CPU]",
        json_schema_extra={"flags": ["kv_offloading_size"]},
    )
    preemption_mode: Literal["auto", "swap", "recompute"] = Field(
        "auto", description="what becomes of a preempted request's pages; auto: what is estimated to be faster"
    )
    disk_cache_dir: Path | None = Field(
        None, description="directory for copies of the cached pages in host memory; needs --swap-space above 0"
    )
    disk_cache_size: float | None = Field(
        None, gt=0.0, le=1_048_576.0, description=f"GiB that --disk-cache-dir may take [default: {DISK_CACHE_GIB:g}]"
    )
    async_scheduling: bool | None = Field(
        None, description="decide the next step while one runs [default: on a GPU, where it hides the host's work]"
    )
    batch_invariant: bool = Field(
        False, description="a request's tokens depend on it alone, not on its batch (always so on the CPU)"
    )
    enforce_eager: bool = Field(
        False, description="no CUDA graphs: a step launches each kernel by itself (always so on the CPU)"
    )
    profile_dir: Path | None = Field(
        None,
        description="name steps for profilers (NVTX); once a file `start` appears here, record the next 50 beside it",
    )
    compile_cache_dir: Path | None = Field(
        None,
        description="directory for compiled GPU kernels, which replicas may share "
        "[default: TRITON_CACHE_DIR, else ~/.triton/cache]",
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="seed of requests that bring none is drawn from this one")

    # What would be ignored is refused. Where that depends on the device that is found, `memory_bill` does it.

    @field_validator("kv_cache_memory_bytes")
    @classmethod
    def _one_size_of_the_cache(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("num_gpu_blocks_override") is not None:
            raise PydanticCustomError("kv_cache", "--num-gpu-blocks-override says the same in pages: give one of them")
        return value

    @field_validator("preemption_mode")
    @classmethod
    def _swap_needs_host_memory(cls, value: str, info: ValidationInfo) -> str:
        if value == "swap" and _without_host_memory(info):
            raise PydanticCustomError("preemption_mode", "Pages are swapped to host memory: give --swap-space above 0")
        return value

    @field_validator("disk_cache_dir")
    @classmethod
    def _disk_needs_host_memory(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and _without_host_memory(info):
            raise PydanticCustomError(
                "disk_cache", "Pages come to the disk from host memory: give --swap-space above 0"
            )
        if value is not None and not info.data.get("enable_prefix_caching", True):
            raise PydanticCustomError(
                "disk_cache", "No page on disk is ever looked up with --no-enable-prefix-caching: leave one of them out"
            )
        if value is not None and info.data.get("load_format") == "random":
            raise PydanticCustomError(
                "disk_cache", "Pages on disk are named by the weights they come from: leave out --load-format random"
            )
        return value

    @field_validator("disk_cache_size")
    @classmethod
    def _size_needs_a_disk(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("disk_cache_dir", Path()) is None:
            raise PydanticCustomError("disk_cache", "There is no disk cache without --disk-cache-dir: give both")
        return value


def _without_host_memory(info: ValidationInfo) -> bool:
    """Whether the flags say that there is none, before the device is known."""
    swap_space = info.data.get("swap_space", 1.0)  # not there: it is refused itself
    return swap_space == 0.0 or (swap_space is None and info.data.get("device") == "cpu")


def _list_of(text: Any) -> list[Any]:
    if isinstance(text, str) and text.startswith("["):
        with suppress(ValueError):
            return list(json.loads(text))
    return [text]


class ServerConfig(EngineConfig):
    """Everything `octavo serve` can be told."""

    served_model_name: tuple[Name, ...] = Field(
        (), description="name(s) clients may ask for [default: the directory's name]; the first one is in the answers"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65_535, description="port to listen on; 0: any free one, which is printed")
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="second port, for /health, /ready, /version and /metrics, which is then there alone, without a key",
    )
    admin_host: str | None = Field(None, description="address of the admin port [default: that of --host]")
    api_key: tuple[ApiKey, ...] = Field(
        (), description="key(s), one of which a client must send as Bearer token; who lists processes sees them"
    )
    api_key_file: tuple[Path, ...] = Field(
        (),
        description="file(s) of keys, or directories of such files; read again when they change (docs/access.md)",
    )
    max_requests_per_minute: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="requests a minute that each API key may make, unless its file says otherwise",
    )
    max_tokens_per_minute: int | None = Field(
        None, ge=1, le=10**12, description="tokens a minute, of prompts and answers, that each API key may use"
    )
    max_concurrent_requests: int | None = Field(
        None, ge=1, le=10**12, description="requests that each API key may have open at once"
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        le=1_048_576,
        description="connections that a port takes at once; beyond it, only probes are answered "
        "[default: 8192, or what the limit on open files allows]",
    )
    ssl_certfile: Path | None = Field(None, description="certificate in PEM, with those between it and its authority")
    ssl_keyfile: Path | None = Field(None, description="its key, without a password [default: in --ssl-certfile]")
    ssl_ca_certs: Path | None = Field(None, description="authorities (PEM) whose certificates clients must show")
    ssl_cert_reqs: Literal[0, 1, 2] | None = Field(
        None,
        description="clients show a certificate: 0 never, 1 if they like, 2 always [default: 2 with --ssl-ca-certs]",
    )
    enable_ssl_refresh: bool = Field(True, description="take certificates that have changed, for new connections")
    allowed_origins: Texts = Field(
        (), description="origin(s) whose pages may ask from a browser, as a JSON list too; * is any [default: none]"
    )
    allowed_methods: Texts = Field(("GET", "POST"), description="methods that they may use [default: GET and POST]")
    allowed_headers: Texts = Field(("*",), description="headers that they may send [default: *, any]")
    allow_credentials: bool = Field(False, description="their browsers may send cookies and certificates along")
    drain_seconds: float = Field(
        30.0, ge=0.0, le=86_400.0, description="after SIGTERM, time for open requests to finish before they are cut off"
    )
    max_queued_requests: int = Field(
        1024, ge=0, le=1_048_576, description="requests that wait beyond --max-num-seqs; more are answered with 429"
    )
    request_timeout: float | None = Field(
        None, gt=0.0, le=86_400.0, description="seconds after which a request ends with an error [default: none]"
    )
    crash_report_dir: Path | None = Field(
        None, description="where reports of an engine that died are kept [default: the system's temporary directory]"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")

    @field_validator("allowed_origins", "allowed_methods", "allowed_headers", mode="before")
    @classmethod
    def _lists_as_json(cls, value: Any) -> Any:
        """vLLM takes one JSON list."""
        return tuple(chain.from_iterable(map(_list_of, value))) if isinstance(value, list | tuple) else value

    # What would be ignored is refused here, too.

    @field_validator("admin_host")
    @classmethod
    def _host_of_a_port(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("admin_port", 0) is None:
            raise PydanticCustomError("admin_host", "There is no admin port without --admin-port: give both")
        return value

    @field_validator("admin_port")
    @classmethod
    def _another_port(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and value == info.data.get("port"):
            raise PydanticCustomError("admin_port", "That is --port: choose another")
        return value

    @field_validator("max_requests_per_minute", "max_tokens_per_minute", "max_concurrent_requests")
    @classmethod
    def _limits_of_keys(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("api_key", True) and not info.data.get("api_key_file", True):
            raise PydanticCustomError("limits", "It is for each API key: give --api-key-file or --api-key, too")
        return value

    @field_validator("ssl_keyfile", "ssl_ca_certs")
    @classmethod
    def _certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("ssl_certfile", Path()) is None:
            raise PydanticCustomError("tls", "There is no TLS without --ssl-certfile: give both")
        return value

    @field_validator("ssl_cert_reqs")
    @classmethod
    def _authorities(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and info.data.get("ssl_ca_certs", Path()) is None:
            raise PydanticCustomError("tls", "Nobody's certificate is known without --ssl-ca-certs: give both")
        return value

    @field_validator("allow_credentials")
    @classmethod
    def _credentials_of_some(cls, value: bool, info: ValidationInfo) -> bool:
        if value and "*" in info.data.get("allowed_origins", ()):
            raise PydanticCustomError(
                "cors", "Any page could act for its reader: name the --allowed-origins, without *"
            )
        return value

    def engine(self) -> EngineConfig:
        """The part that the engine process gets."""
        return EngineConfig.model_validate({name: getattr(self, name) for name in EngineConfig.model_fields})
