"""The pods that serve a model: containers, volumes, probes, and where they may run."""

import math
from typing import Final

from octavo_common.names import ADMIN_PORT, SERVER_PORT
from octavo_operator.api import LLMDeployment
from octavo_operator.api.pod_template import InitContainer
from octavo_operator.api.server import Server
from octavo_operator.api.spec import Resources
from octavo_operator.render.arguments import (
    API_KEYS_DIRECTORY,
    COMPILE_CACHE_DIRECTORY,
    GATEWAY_KEY_DIRECTORY,
    MODEL_DIRECTORY,
    container_arguments,
    has_admin_port,
    names_gateway_key,
)
from octavo_operator.render.common import (
    RESTRICTED,
    Manifest,
    RenderSettings,
    plain,
    pod_security_context,
    selector,
    without_empty,
)
from octavo_operator.render.placement import affinity, spread
from octavo_operator.render.pull import pull_container, pull_volumes, pulls_itself, wants_prefetch
from octavo_operator.render.storage import cache_name
from octavo_operator.render.timing import grace_seconds, startup_seconds

_STARTUP_PERIOD: Final = 2
_FOR_GROUP: Final = 0o440
"""A Secret's files: this user's group may read them, nobody else."""


def pod_spec(deployment: LLMDeployment, image: str, settings: RenderSettings) -> Manifest:
    """The spec of a replica's pod; its server runs `image`.

    Raises:
        ManifestError: the model is downloaded, and the operator does not know its own image.
    """
    template = deployment.spec.pod_template
    gateway_key = None if names_gateway_key(deployment) else settings.gateway_key_secret
    constraints = [spread(each, selector(deployment)) for each in template.topology_spread_constraints]
    return without_empty(
        {
            "terminationGracePeriodSeconds": grace_seconds(deployment),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": pod_security_context(),
            "initContainers": _download(deployment, settings)
            + [_init_container(each) for each in template.init_containers],
            "containers": [_container(deployment, image, gateway_key=gateway_key is not None)],
            "volumes": _volumes(deployment, gateway_key) + [plain(each) for each in template.volumes],
            "nodeSelector": dict(template.node_selector),
            "tolerations": [plain(each) for each in template.tolerations],
            "affinity": affinity(template.affinity or {}, deployment.spec.resources.accelerator),
            "topologySpreadConstraints": constraints,
            "priorityClassName": template.priority_class_name,
            "runtimeClassName": template.runtime_class_name,
            "serviceAccountName": template.service_account_name,
            "imagePullSecrets": [plain(each) for each in template.image_pull_secrets],
        }
    )


def _volumes(deployment: LLMDeployment, gateway_key: str | None) -> list[Manifest]:
    volumes: list[Manifest] = [{"name": "tmp", "emptyDir": {}}, *_model_volume(deployment)]
    if pulls_itself(deployment):
        volumes += pull_volumes(deployment)
    cache = deployment.spec.server.compile_cache
    if cache is not None:
        volumes += [{"name": "compile-cache", "persistentVolumeClaim": {"claimName": cache.claim_name}}]
    keys = deployment.spec.server.api_key_secret_ref
    if keys is not None:
        items = [{"key": keys.key, "path": keys.key}] if keys.key is not None else []
        secret = without_empty({"secretName": keys.name, "items": items, "defaultMode": _FOR_GROUP})
        volumes += [{"name": "api-keys", "secret": secret}]
    if gateway_key is not None:
        # Optional: pods start without a gateway, and one that comes later restarts none of them.
        secret = {"secretName": gateway_key, "defaultMode": _FOR_GROUP, "optional": True}
        volumes += [{"name": "gateway-key", "secret": secret}]
    return volumes


def _model_volume(deployment: LLMDeployment) -> list[Manifest]:
    source, cache = deployment.spec.model.source, cache_name(deployment)
    if source.persistent_volume_claim is not None:
        name = source.persistent_volume_claim.claim_name
        return [{"name": "model", "persistentVolumeClaim": {"claimName": name, "readOnly": True}}]
    if source.oci is not None:
        return [{"name": "model", "image": {"reference": source.oci.image}}]
    if cache is not None:
        read_only = {"readOnly": True} if wants_prefetch(deployment) else {}
        return [{"name": "model", "persistentVolumeClaim": {"claimName": cache} | read_only}]
    if source.is_downloaded:
        disk = deployment.spec.resources.ephemeral_storage
        return [{"name": "model", "emptyDir": {"sizeLimit": str(disk)} if disk is not None else {}}]
    return []


def _download(deployment: LLMDeployment, settings: RenderSettings) -> list[Manifest]:
    """The init container that downloads the model, where no Job has done so before."""
    if not pulls_itself(deployment):
        return []
    return [pull_container(deployment, settings, on_disk=deployment.spec.storage.cache is None)]


def _mounts(deployment: LLMDeployment, *, gateway_key: bool) -> list[Manifest]:
    spec = deployment.spec
    mounts: list[Manifest] = [{"name": "tmp", "mountPath": "/tmp"}]
    if _model_volume(deployment):
        mounts += [{"name": "model", "mountPath": MODEL_DIRECTORY, "readOnly": True}]
    if spec.server.compile_cache is not None:
        mounts += [{"name": "compile-cache", "mountPath": COMPILE_CACHE_DIRECTORY}]
    if spec.server.api_key_secret_ref is not None:
        # The whole directory: through a subPath a change of the Secret would never come.
        mounts += [{"name": "api-keys", "mountPath": API_KEYS_DIRECTORY, "readOnly": True}]
    if gateway_key:
        mounts += [{"name": "gateway-key", "mountPath": GATEWAY_KEY_DIRECTORY, "readOnly": True}]
    return mounts


def _container(deployment: LLMDeployment, image: str, *, gateway_key: bool) -> Manifest:
    spec = deployment.spec
    ports = [{"name": "http", "containerPort": SERVER_PORT, "protocol": "TCP"}]
    if has_admin_port(deployment):
        ports += [{"name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP"}]
    return without_empty(
        {
            "name": "server",
            "image": image,
            "command": ["octavo"],
            "args": container_arguments(deployment, SERVER_PORT, gateway_key=gateway_key),
            "env": _environment(spec.server),
            "ports": ports,
            "resources": _resources(spec.resources),
            "volumeMounts": _mounts(deployment, gateway_key=gateway_key)
            + [plain(each) for each in spec.pod_template.volume_mounts],
            "startupProbe": _probe("/ready", period=_STARTUP_PERIOD, failures=_startup_failures(deployment)),
            "readinessProbe": _probe("/ready", period=5, failures=2),
            "livenessProbe": _probe("/health", period=10, failures=3),
            "lifecycle": _lifecycle(spec.termination.propagation_seconds),
            # The end of the log becomes the pod's own word on why it failed, which status quotes.
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": dict(RESTRICTED),
        }
    )


def _environment(server: Server) -> list[Manifest]:
    """HOME is where caches go: the root file system is read-only, and the user has no entry that names another.

    Compiled kernels are kept elsewhere by Triton's own variable: replicas may share the directory, as it moves each
    file there when it is complete, under a name that stands for what it was compiled from, and for what device.
    """
    ours = {"HOME": "/tmp"}
    if server.compile_cache is not None:
        ours["TRITON_CACHE_DIR"] = COMPILE_CACHE_DIRECTORY
    named = {variable.name for variable in server.env}
    given = [{"name": name, "value": value} for name, value in ours.items() if name not in named]
    return given + [plain(variable) for variable in server.env]


def _resources(resources: Resources) -> Manifest:
    """Memory and disk are requested and limited alike, the CPU only requested: a throttled step stalls every stream."""
    device = resources.accelerator
    devices = {device.resource_name: str(device.count)} if device is not None else {}
    cpu = {"cpu": str(resources.cpu)} if resources.cpu is not None else {}
    sizes = {"memory": resources.memory, "ephemeral-storage": resources.ephemeral_storage}
    both = {name: str(size) for name, size in sizes.items() if size is not None} | devices
    return without_empty({"requests": cpu | both, "limits": both})


def _probe(path: str, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": "http", "scheme": "HTTP"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }


def _startup_failures(deployment: LLMDeployment) -> int:
    return math.ceil(startup_seconds(deployment) / _STARTUP_PERIOD)


def _lifecycle(propagation_seconds: int) -> Manifest:
    """The kubelet itself waits before SIGTERM, so that the image needs no `sleep`; it refuses to wait 0 s."""
    return {"preStop": {"sleep": {"seconds": propagation_seconds}}} if propagation_seconds else {}


def _init_container(container: InitContainer) -> Manifest:
    given = plain(container)
    return given if "securityContext" in given else given | {"securityContext": dict(RESTRICTED)}
