"""The Job that finds out which commit a branch is now, for pods that each download the model themselves.

Without it replicas that start at different times would serve different models. Its pods carry no label of a deployment:
they are nobody's replicas, and hold no accelerator.
"""

from typing import Final

from octavo_common.names import DEPLOYMENT_LABEL, LABEL_PREFIX, REVISION_LABEL
from octavo_operator.api import LLMDeployment
from octavo_operator.render.common import (
    Manifest,
    RenderSettings,
    labels_of,
    metadata_of,
    plain,
    pod_security_context,
    without_empty,
)
from octavo_operator.render.network import DNS, outward
from octavo_operator.render.pull import FINAL_EXIT_CODES, download_ports, pull_volumes, resolve_container

SPEC_ANNOTATION: Final = f"{LABEL_PREFIX}for-spec"
_ATTEMPTS: Final = 20
_KEPT_SECONDS: Final = 3600
"""After its end: people may read its log, and one that has failed is then made again."""


def revision_name(deployment: LLMDeployment) -> str:
    """The name of the Job and of its policy."""
    return revision_name_of(deployment.name)


def revision_name_of(name: str) -> str:
    """The same for an LLMDeployment of this name."""
    return f"{name}-revision"


def revision_job(deployment: LLMDeployment, settings: RenderSettings, digest: str | None = None) -> Manifest:
    """The Job; `digest` is that of the spec that it is for.

    Raises:
        ManifestError: the operator does not know its own image.
    """
    template = deployment.spec.pod_template
    metadata = _metadata(deployment)
    if digest is not None:
        metadata["annotations"] = {SPEC_ANNOTATION: digest}
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security_context(),
        "containers": [resolve_container(deployment, settings)],
        "volumes": [{"name": "tmp", "emptyDir": {}}, *pull_volumes(deployment)],
        "tolerations": [plain(each) for each in template.tolerations],
        "serviceAccountName": template.service_account_name,
        "imagePullSecrets": [plain(each) for each in template.image_pull_secrets],
    }
    exit_codes = {"containerName": "pull", "operator": "In", "values": list(FINAL_EXIT_CODES)}
    labels = {REVISION_LABEL: deployment.name} | _without_deployment(deployment)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": _ATTEMPTS,
            "ttlSecondsAfterFinished": _KEPT_SECONDS,
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": exit_codes},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": labels}, "spec": without_empty(pod)},
        },
    }


def revision_policy(deployment: LLMDeployment) -> Manifest | None:
    """Where the Job's pods may connect to, and nobody to them; None where there are no policies."""
    if deployment.spec.networking.network_policy == "Disabled":
        return None
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(deployment),
        "spec": {
            "podSelector": {"matchLabels": {REVISION_LABEL: deployment.name}},
            "policyTypes": ["Ingress", "Egress"],
            "egress": [{"ports": DNS}, *outward(download_ports(deployment))],
        },
    }


def _metadata(deployment: LLMDeployment) -> Manifest:
    component = {"app.kubernetes.io/component": "model-revision", DEPLOYMENT_LABEL: deployment.name}
    own = metadata_of(deployment)
    return own | {"name": revision_name(deployment), "labels": own["labels"] | component}


def _without_deployment(deployment: LLMDeployment) -> dict[str, str]:
    component = {"app.kubernetes.io/component": "model-revision"}
    return {name: value for name, value in labels_of(deployment).items() if name != DEPLOYMENT_LABEL} | component
