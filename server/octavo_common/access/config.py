"""The part of the configuration that says who may ask for what: ports, keys and their limits, TLS."""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

ApiKey = Annotated[str, Field(min_length=1, max_length=4096)]  # an empty one would let everybody in
KEY_VARIABLES: Final = ("OCTAVO_API_KEY", "VLLM_API_KEY")  # in the environment; the first that is set


class AccessConfig(BaseModel):
    """What server and gateway can be told of access."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65_535, description="port to listen on; 0: any free one, which is printed")
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="second port, and the only one for /metrics: with /health and /ready without a key, and /version",
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

    # What would be ignored is refused.

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
