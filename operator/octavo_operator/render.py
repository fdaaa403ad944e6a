"""From a validated LLMDeployment to the objects that serve it. Pure: the same input gives the same dicts.

Fields that are empty are left out, so that a server-side apply owns exactly what stands here.
"""

import math
from typing import Any, Final

from octavo_common.names import API_GROUP, API_VERSION, DEPLOYMENT_LABEL, FIELD_MANAGER, KIND, SERVER_PORT
from octavo_operator.api import FieldError, LLMDeployment, ManifestError
from octavo_operator.api.pod_template import InitContainer, TopologySpreadConstraint
from octavo_operator.api.spec import Accelerator, Resources, Server

Manifest = dict[str, Any]

MODEL_DIRECTORY: Final = "/octavo/model"
COMPILE_CACHE_DIRECTORY: Final = "/octavo/compile-cache"
DEFAULT_STARTUP_SECONDS: Final = 1800
GRACE_MARGIN_SECONDS: Final = 30
"""Between the end of the drain and SIGKILL: for the processes to end, and for a kubelet that is late."""
PROGRESS_MARGIN_SECONDS: Final = 600
"""For what a new pod goes through before its container starts: a node, its volumes, an image of several GB."""

_STARTUP_PERIOD: Final = 2
_USER: Final = 65532
_RESTRICTED: Final[Manifest] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def render(deployment: LLMDeployment, default_image: str | None) -> list[Manifest]:
    """The objects that stand for `deployment`: a Deployment and a Service, both of its name and in its namespace.

    Where metadata.uid is known (it is not in a file), they carry an owner reference to it.

    Raises:
        ManifestError: spec.server.image is left out and there is no `default_image`.
    """
    image = deployment.spec.server.image or default_image
    if not image:
        raise ManifestError([FieldError("spec.server.image", "is required, as the operator has no default image")])
    return [_deployment(deployment, image), _service(deployment)]


def selector(deployment: LLMDeployment) -> dict[str, str]:
    """What tells this deployment's pods from all others. Never to be changed: a Deployment's selector is immutable."""
    return {DEPLOYMENT_LABEL: deployment.name}


def model_argument(deployment: LLMDeployment) -> str:
    """What `octavo serve` is given as MODEL: a built-in name, or a directory inside the container."""
    source = deployment.spec.model.source
    if source.builtin is not None:
        return source.builtin.name
    if source.path is not None:
        return source.path.path
    claim = source.persistent_volume_claim
    return f"{MODEL_DIRECTORY}/{claim.path}" if claim is not None and claim.path else MODEL_DIRECTORY


def server_arguments(deployment: LLMDeployment, host: str, port: int, model: str | None = None) -> list[str]:
    """The command line of a replica, after `octavo`: in a container, or as a process of this machine."""
    server = deployment.spec.server
    arguments = ["serve", model or model_argument(deployment)]
    arguments += ["--served-model-name", deployment.model_name, "--host", host, "--port", str(port)]
    arguments += ["--dtype", server.dtype.lower()]
    if server.max_model_length is not None:
        arguments += ["--max-model-len", str(server.max_model_length)]
    arguments += ["--drain-seconds", str(deployment.spec.termination.drain_seconds)]
    return arguments + list(server.args)


def startup_seconds(deployment: LLMDeployment) -> int:
    """How long a replica may take to become ready."""
    return deployment.spec.startup.timeout_seconds or DEFAULT_STARTUP_SECONDS


def grace_seconds(deployment: LLMDeployment) -> int:
    """How long a replica may take to end."""
    termination = deployment.spec.termination
    return termination.propagation_seconds + termination.drain_seconds + GRACE_MARGIN_SECONDS


def _deployment(deployment: LLMDeployment, image: str) -> Manifest:
    rollout, template = deployment.spec.rollout, deployment.spec.pod_template
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(deployment),
        "spec": {
            # Always applied, zero included: left out, a server-side apply would give up the field and it fell to 1.
            "replicas": deployment.desired_replicas,
            "selector": {"matchLabels": selector(deployment)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable},
            },
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": startup_seconds(deployment)
            + grace_seconds(deployment)
            + PROGRESS_MARGIN_SECONDS,
            "template": {
                "metadata": _without_empty(
                    {"labels": template.labels | _labels(deployment), "annotations": dict(template.annotations)}
                ),
                "spec": _pod_spec(deployment, image),
            },
        },
    }


def _service(deployment: LLMDeployment) -> Manifest:
    port = deployment.spec.networking.service.port
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(deployment),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(deployment),
            "ports": [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"}],
        },
    }


def _metadata(deployment: LLMDeployment) -> Manifest:
    metadata: Manifest = {
        "name": deployment.name,
        "namespace": deployment.namespace,
        "labels": _labels(deployment),
    }
    if deployment.metadata.uid is not None:
        owner = {"apiVersion": f"{API_GROUP}/{API_VERSION}", "kind": KIND, "name": deployment.name}
        owner |= {"uid": deployment.metadata.uid}
        metadata["ownerReferences"] = [owner | {"controller": True, "blockOwnerDeletion": True}]
    return metadata


def _labels(deployment: LLMDeployment) -> dict[str, str]:
    return selector(deployment) | {
        "app.kubernetes.io/name": "octavo",
        "app.kubernetes.io/instance": deployment.name,
        "app.kubernetes.io/component": "server",
        "app.kubernetes.io/managed-by": FIELD_MANAGER,
    }


def _pod_spec(deployment: LLMDeployment, image: str) -> Manifest:
    template = deployment.spec.pod_template
    volumes: list[Manifest] = [{"name": "tmp", "emptyDir": {}}]
    claim = deployment.spec.model.source.persistent_volume_claim
    if claim is not None:
        volumes += [{"name": "model", "persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": True}}]
    cache = deployment.spec.server.compile_cache
    if cache is not None:
        volumes += [{"name": "compile-cache", "persistentVolumeClaim": {"claimName": cache.claim_name}}]
    constraints = [_spread(each, selector(deployment)) for each in template.topology_spread_constraints]
    return _without_empty(
        {
            "terminationGracePeriodSeconds": grace_seconds(deployment),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "fsGroup": _USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "initContainers": [_init_container(each) for each in template.init_containers],
            "containers": [_container(deployment, image)],
            "volumes": volumes + [_plain(each) for each in template.volumes],
            "nodeSelector": dict(template.node_selector),
            "tolerations": [_plain(each) for each in template.tolerations],
            "affinity": _affinity(template.affinity or {}, deployment.spec.resources.accelerator),
            "topologySpreadConstraints": constraints,
            "priorityClassName": template.priority_class_name,
            "runtimeClassName": template.runtime_class_name,
            "serviceAccountName": template.service_account_name,
            "imagePullSecrets": [_plain(each) for each in template.image_pull_secrets],
        }
    )


def _container(deployment: LLMDeployment, image: str) -> Manifest:
    spec = deployment.spec
    mounts: list[Manifest] = [{"name": "tmp", "mountPath": "/tmp"}]
    if spec.model.source.persistent_volume_claim is not None:
        mounts += [{"name": "model", "mountPath": MODEL_DIRECTORY, "readOnly": True}]
    if spec.server.compile_cache is not None:
        mounts += [{"name": "compile-cache", "mountPath": COMPILE_CACHE_DIRECTORY}]
    return _without_empty(
        {
            "name": "server",
            "image": image,
            "command": ["octavo"],
            "args": server_arguments(deployment, host="0.0.0.0", port=SERVER_PORT),
            "env": _environment(spec.server),
            "ports": [{"name": "http", "containerPort": SERVER_PORT, "protocol": "TCP"}],
            "resources": _resources(spec.resources),
            "volumeMounts": mounts + [_plain(each) for each in spec.pod_template.volume_mounts],
            "startupProbe": _probe("/ready", period=_STARTUP_PERIOD, failures=_startup_failures(deployment)),
            "readinessProbe": _probe("/ready", period=5, failures=2),
            "livenessProbe": _probe("/health", period=10, failures=3),
            "lifecycle": _lifecycle(spec.termination.propagation_seconds),
            # The end of the log becomes the pod's own word on why it failed, which status quotes.
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": dict(_RESTRICTED),
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
    return given + [_plain(variable) for variable in server.env]


def _resources(resources: Resources) -> Manifest:
    """Memory is requested and limited alike, the CPU only requested: a throttled step stalls every stream."""
    device = resources.accelerator
    devices = {device.resource_name: str(device.count)} if device is not None else {}
    memory = {"memory": str(resources.memory)} if resources.memory is not None else {}
    cpu = {"cpu": str(resources.cpu)} if resources.cpu is not None else {}
    return _without_empty({"requests": cpu | memory | devices, "limits": memory | devices})


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
    given = _plain(container)
    return given if "securityContext" in given else given | {"securityContext": dict(_RESTRICTED)}


def _spread(constraint: TopologySpreadConstraint, labels: dict[str, str]) -> Manifest:
    given = _plain(constraint)
    return given if "labelSelector" in given else given | {"labelSelector": {"matchLabels": labels}}


def _affinity(given: Manifest, accelerator: Accelerator | None) -> Manifest:
    """What the user asked for, and in each of its alternatives one of the accelerator's products."""
    if accelerator is None or not accelerator.products:
        return given
    product = {"key": accelerator.product_label, "operator": "In", "values": list(accelerator.products)}
    node = given.get("nodeAffinity") or {}
    required = node.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = [
        term | {"matchExpressions": [*term.get("matchExpressions", []), product]}
        for term in required.get("nodeSelectorTerms") or [{}]
    ]
    return given | {
        "nodeAffinity": node | {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    }


def _plain(model: Any) -> Manifest:
    plain: Manifest = model.model_dump(by_alias=True, exclude_none=True)
    return plain


def _without_empty(fields: Manifest) -> Manifest:
    return {name: value for name, value in fields.items() if value not in (None, [], {}, "")}
