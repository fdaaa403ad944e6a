"""What all rendered objects share: labels, owners, a security context, and the images that the operator knows of."""

from dataclasses import dataclass
from typing import Any, Final

from octavo_common.names import API_GROUP, API_VERSION, DEPLOYMENT_LABEL, FIELD_MANAGER, KIND
from octavo_operator.api import LLMDeployment

Manifest = dict[str, Any]

RESTRICTED: Final[Manifest] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""A container's part of Pod Security `restricted`."""
_USER: Final = 65532


@dataclass(frozen=True, slots=True)
class RenderSettings:
    """What a manifest does not say.

    Attributes:
        server_image: image of the server where spec.server.image is left out; None: such a spec is refused.
        pull_image: the operator's own image, which downloads models; None: such a spec is refused.
        operator_namespace: where the operator and the gateway run, whom network policies let in.
        gateway_key_secret: Secret, of the pods' namespace, with the key by which they know the gateway; None: by none.
        gateway_url: base URL of the gateway, told to clients; None: they are told the Service's.
    """

    server_image: str | None = None
    pull_image: str | None = None
    operator_namespace: str = "octavo-system"
    gateway_key_secret: str | None = None
    gateway_url: str | None = None


def selector(deployment: LLMDeployment) -> dict[str, str]:
    """What tells this deployment's pods from all others. Never to be changed: a Deployment's selector is immutable."""
    return {DEPLOYMENT_LABEL: deployment.name}


def labels_of(deployment: LLMDeployment) -> dict[str, str]:
    """The labels of everything that belongs to `deployment` alone."""
    return selector(deployment) | {
        "app.kubernetes.io/name": "octavo",
        "app.kubernetes.io/instance": deployment.name,
        "app.kubernetes.io/component": "server",
        "app.kubernetes.io/managed-by": FIELD_MANAGER,
    }


def metadata_of(deployment: LLMDeployment) -> Manifest:
    """The metadata of what `deployment` alone owns, and is named like it."""
    metadata: Manifest = {
        "name": deployment.name,
        "namespace": deployment.namespace,
        "labels": labels_of(deployment),
    }
    if deployment.metadata.uid is not None:
        metadata["ownerReferences"] = [
            owner_reference(deployment) | {"controller": True, "blockOwnerDeletion": True},
        ]
    return metadata


def owner_reference(deployment: LLMDeployment) -> Manifest:
    """A reference to `deployment`, whose uid is known."""
    owner = {"apiVersion": f"{API_GROUP}/{API_VERSION}", "kind": KIND, "name": deployment.name}
    return owner | {"uid": deployment.metadata.uid}


def pod_security_context() -> Manifest:
    """A pod's part of Pod Security `restricted`; volumes are the group's, so that this user can write to them."""
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def plain(model: Any) -> Manifest:
    """A model of the API as the dict that it was made from."""
    fields: Manifest = model.model_dump(by_alias=True, exclude_none=True)
    return fields


def without_empty(fields: Manifest) -> Manifest:
    """`fields` but for those that say nothing."""
    return {name: value for name, value in fields.items() if value not in (None, [], {}, "")}
