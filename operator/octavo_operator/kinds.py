"""Where the API server keeps each kind that the operator reads or writes."""

from typing import Final

from octavo_common.names import API_GROUP, API_VERSION, KIND, PLURAL

COLLECTIONS: Final = {
    KIND: f"/apis/{API_GROUP}/{API_VERSION}/namespaces/{{}}/{PLURAL}",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "Service": "/api/v1/namespaces/{}/services",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "PodMonitor": "/apis/monitoring.coreos.com/v1/namespaces/{}/podmonitors",
    "InferencePool": "/apis/inference.networking.k8s.io/v1/namespaces/{}/inferencepools",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Event": "/api/v1/namespaces/{}/events",
    "Lease": "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
}


def collection(kind: str, namespace: str | None) -> str:
    """The path of all objects of a kind in a namespace, or (None) in all of them."""
    path = COLLECTIONS[kind]
    return path.replace("namespaces/{}/", "") if namespace is None else path.format(namespace)
