"""The command line of a replica: the same in a container and, but for host and port, as a process of this machine."""

from decimal import ROUND_DOWN, Decimal
from typing import Final

from octavo_common.names import ADMIN_PORT
from octavo_operator.api import LLMDeployment
from octavo_operator.api.quantities import quantity

MODEL_DIRECTORY: Final = "/octavo/model"
PULLED_DIRECTORY: Final = f"{MODEL_DIRECTORY}/files"
"""Below the mount: a download appears there as a whole, by a rename, and volumes have a `lost+found`."""
COMPILE_CACHE_DIRECTORY: Final = "/octavo/compile-cache"
API_KEYS_DIRECTORY: Final = "/octavo/api-keys"
GATEWAY_KEY_DIRECTORY: Final = "/octavo/gateway-key"
_GATEWAY_KEY_FLAG: Final = "--gateway-api-key-file"


def model_argument(deployment: LLMDeployment) -> str:
    """What `octavo serve` is given as MODEL: a built-in name, or a directory inside the container."""
    source = deployment.spec.model.source
    if source.builtin is not None:
        return source.builtin.name
    if source.path is not None:
        return source.path.path
    if source.is_downloaded:
        return PULLED_DIRECTORY
    mounted = source.persistent_volume_claim or source.oci
    return f"{MODEL_DIRECTORY}/{mounted.path}" if mounted is not None and mounted.path else MODEL_DIRECTORY


def server_arguments(deployment: LLMDeployment, host: str, port: int, model: str | None = None) -> list[str]:
    """What every replica is started with, after `octavo`."""
    server = deployment.spec.server
    arguments = ["serve", model or model_argument(deployment)]
    arguments += ["--served-model-name", deployment.model_name, "--host", host, "--port", str(port)]
    arguments += ["--dtype", server.dtype.lower()]
    if server.max_model_length is not None:
        arguments += ["--max-model-len", str(server.max_model_length)]
    if server.host_memory_for_kv_cache is not None:
        arguments += ["--swap-space", _gibibytes(server.host_memory_for_kv_cache)]
    arguments += ["--drain-seconds", str(deployment.spec.termination.drain_seconds)]
    return arguments + list(server.args)


def container_arguments(deployment: LLMDeployment, port: int, *, gateway_key: bool = False) -> list[str]:
    """The same in a container, with what only a cluster has: the Secret of keys, and who asks for metrics.

    `gateway_key`: the Secret with the gateway's key is mounted, if it is there.
    """
    arguments = server_arguments(deployment, host="0.0.0.0", port=port)
    if has_admin_port(deployment):
        arguments += ["--admin-port", str(ADMIN_PORT)]
    if deployment.spec.server.api_key_secret_ref is not None:
        arguments += ["--api-key-file", API_KEYS_DIRECTORY]
    if gateway_key:
        arguments += [_GATEWAY_KEY_FLAG, GATEWAY_KEY_DIRECTORY]
    return arguments


def names_gateway_key(deployment: LLMDeployment) -> bool:
    """Whether the spec itself says where the gateway's key is, which then counts."""
    return any(argument.partition("=")[0] == _GATEWAY_KEY_FLAG for argument in deployment.spec.server.args)


def has_admin_port(deployment: LLMDeployment) -> bool:
    """Whether metrics are served on a port of their own: Prometheus has no key, and no business on the other port."""
    spec = deployment.spec
    return spec.server.api_key_secret_ref is not None or spec.observability.pod_monitor == "Enabled"


def _gibibytes(memory: int | str) -> str:
    """A quantity in GiB, rounded down to about a kilobyte: more than was asked for might not fit."""
    return f"{(quantity(memory) / 2**30).quantize(Decimal('0.000001'), ROUND_DOWN).normalize():f}"
