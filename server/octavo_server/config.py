"""The server's configuration: one model, from which the flags of `octavo serve` are made.

A field's name is the flag (`max_model_len` → `--max-model-len`), its description the help. Names are vLLM's where vLLM
has the flag.
"""

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from octavo_server.access_config import OriginsConfig

Name = Annotated[str, Field(min_length=1, max_length=256)]
DISK_CACHE_GIB: Final = 16.0
LogFormat = Literal["text", "json"]  # as in logs.py, which a base install cannot import
LoggedRequests = Literal["all", "errors", "none"]
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
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that a model is spread over: 1, more are not possible")
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
        description="tokens in a step at most, of prefill and decode together; more than 2048 only while many wait "
        "[default: 8192 for models of 3e9 parameters on a GPU with 40 GiB or more, else 2048; 512 on the CPU]",
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

    @field_validator("tensor_parallel_size")
    @classmethod
    def _one_gpu(cls, value: int) -> int:
        if value > 1:
            raise PydanticCustomError(
                "one_gpu", "A model is not spread over several GPUs yet: it must fit on one; start a server for each"
            )
        return value

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


class ServerConfig(OriginsConfig, EngineConfig):
    """Everything `octavo serve` can be told."""

    served_model_name: tuple[Name, ...] = Field(
        (), description="name(s) clients may ask for [default: the directory's name]; the first one is in the answers"
    )
    gateway_api_key_file: Path | None = Field(
        None,
        description="file with the key(s) of Octavo's gateway, one a line, or directory of such files, which may be "
        "empty: it alone may resume answers",
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        max_length=65_536,
        description="file with a Jinja chat template, or the template itself, instead of the model's own",
    )
    chat_template_content_format: Literal["auto", "string", "openai"] = Field(
        "auto",
        description="what the chat template takes for a message's content: a string, or OpenAI's list of parts; "
        "auto: found out by reading it",
    )
    enable_auto_tool_choice: bool = Field(
        True, description="take what the model writes as tool calls for such; no: requests with tools are refused"
    )
    tool_call_parser: Name | None = Field(
        None,
        description="how the model writes tool calls: hermes, llama3_json, mistral, pythonic, qwen3_coder, or none "
        "[default: what its chat template shows]",
    )
    reasoning_parser: Name | None = Field(
        None,
        description="how the model writes its thoughts: deepseek_r1, qwen3, mistral, or none "
        "[default: what its chat template shows]",
    )
    pooling: Literal["mean", "last", "cls"] | None = Field(
        None,
        description="which hidden states make an embedding: all of them, the last token's or the first one's "
        "[default: what the model's modules.json says, else last]",
    )
    pooling_normalize: bool | None = Field(
        None, description="whether embeddings have length 1 [default: what modules.json says, else yes]"
    )
    matryoshka: bool | None = Field(
        None, description="whether embeddings may be cut short by `dimensions` [default: what config.json says]"
    )
    response_store_size: float = Field(
        64.0,
        ge=0.0,
        le=1_048_576.0,
        description="MiB of memory for responses (/v1/responses) that previous_response_id may name; 0: none is kept",
    )
    response_store_seconds: float = Field(
        86_400.0, gt=0.0, le=31_536_000.0, description="seconds after which a response is forgotten"
    )
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
    log_format: LogFormat = Field("text", description="form of a line of the logs, on stderr; json: an object a line")
    log_requests: LoggedRequests = Field(
        "all", description="which requests have a line in the logs once they have ended; never what they say"
    )
    otlp_traces_endpoint: str | None = Field(
        None,
        max_length=2048,
        description="URL of an OpenTelemetry collector (OTLP over HTTP), which gets a span for each request",
    )

    @field_validator("otlp_traces_endpoint")
    @classmethod
    def _speaks_http(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", value):
            raise PydanticCustomError("otlp", "Give a URL like http://collector:4318; gRPC is not spoken")
        return value

    @property
    def tool_parser(self) -> str | None:
        """The parser for tool calls; None: to be chosen by the chat template."""
        return self.tool_call_parser if self.enable_auto_tool_choice else "none"

    def engine(self) -> EngineConfig:
        """The part that the engine process gets."""
        return EngineConfig.model_validate({name: getattr(self, name) for name in EngineConfig.model_fields})
