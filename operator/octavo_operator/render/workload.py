"""The Deployment that keeps the replicas, and the budget that drains of nodes respect."""

from octavo_operator.api import LLMDeployment
from octavo_operator.render.common import Manifest, RenderSettings, labels_of, metadata_of, selector, without_empty
from octavo_operator.render.pods import pod_spec
from octavo_operator.render.timing import progress_seconds


def deployment_of(deployment: LLMDeployment, image: str, settings: RenderSettings) -> Manifest:
    """The Deployment whose pods run `image`."""
    rollout, template = deployment.spec.rollout, deployment.spec.pod_template
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata_of(deployment),
        "spec": {
            # Always applied, zero included: left out, a server-side apply would give up the field and it fell to 1.
            "replicas": deployment.desired_replicas,
            "selector": {"matchLabels": selector(deployment)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable},
            },
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": progress_seconds(deployment),
            "template": {
                "metadata": without_empty(
                    {"labels": template.labels | labels_of(deployment), "annotations": dict(template.annotations)}
                ),
                "spec": pod_spec(deployment, image, settings),
            },
        },
    }


def disruption_budget(deployment: LLMDeployment) -> Manifest:
    """The PodDisruptionBudget. A pod that is not ready serves nobody: its node can be drained all the same."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata_of(deployment),
        "spec": {
            "maxUnavailable": deployment.spec.disruption.max_unavailable,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector(deployment)},
        },
    }
