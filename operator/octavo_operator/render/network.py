"""How the pods are reached, by whom, and by whose metrics collector."""

from collections.abc import Sequence
from typing import Final

from octavo_common.names import ADMIN_PORT, SERVER_PORT
from octavo_operator.api import LLMDeployment
from octavo_operator.api.labels import LabelSelector
from octavo_operator.api.networking import NetworkPeer
from octavo_operator.render.arguments import has_admin_port
from octavo_operator.render.common import Manifest, RenderSettings, metadata_of, plain, selector, without_empty
from octavo_operator.render.pull import download_ports, pulls_itself

DNS: Final[list[Manifest]] = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]


def service(deployment: LLMDeployment) -> Manifest:
    """The Service before the pods."""
    port = deployment.spec.networking.service.port
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata_of(deployment),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(deployment),
            "ports": [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"}],
        },
    }


def network_policy(deployment: LLMDeployment, settings: RenderSettings) -> Manifest | None:
    """Who may connect to the pods, and where they may connect to; None where all may.

    The kubelet's probes come from the pod's own node, which no policy shuts out. Names are looked up wherever the
    cluster has its DNS: in pods, or on the node itself.
    """
    networking = deployment.spec.networking
    if networking.network_policy == "Disabled":
        return None
    callers = [_control_plane(settings), *(_peer(each) for each in networking.allow_from)]
    ingress: list[Manifest] = [{"from": callers, "ports": [{"port": SERVER_PORT, "protocol": "TCP"}]}]
    if has_admin_port(deployment):
        ingress += [{"ports": [{"port": ADMIN_PORT, "protocol": "TCP"}]}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata_of(deployment),
        "spec": {
            "podSelector": {"matchLabels": selector(deployment)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": [{"ports": DNS}, *outward(download_ports(deployment) if pulls_itself(deployment) else [])],
        },
    }


def outward(ports: Sequence[int]) -> list[Manifest]:
    """A policy's rule that lets pods connect to these ports, wherever that is; none for no port."""
    return [{"ports": [{"port": port, "protocol": "TCP"} for port in ports]}] if ports else []


def inference_pool(deployment: LLMDeployment) -> Manifest | None:
    """The pods for routes of the Gateway API, None where they are not asked for."""
    pool = deployment.spec.networking.inference_pool
    if pool is None:
        return None
    picker = pool.endpoint_picker_ref
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": metadata_of(deployment),
        "spec": {
            "selector": {"matchLabels": selector(deployment)},
            "targetPorts": [{"number": SERVER_PORT}],
            "endpointPickerRef": {
                "kind": "Service",
                "name": picker.name,
                "port": {"number": picker.port},
                "failureMode": picker.failure_mode,
            },
        },
    }


def pod_monitor(deployment: LLMDeployment) -> Manifest | None:
    """What leads Prometheus to the pods' metrics, None where it is not asked for."""
    if deployment.spec.observability.pod_monitor == "Disabled":
        return None
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata_of(deployment),
        "spec": {
            "selector": {"matchLabels": selector(deployment)},
            "podMetricsEndpoints": [{"port": "admin", "path": "/metrics"}],
        },
    }


def _control_plane(settings: RenderSettings) -> Manifest:
    component = {"key": "app.kubernetes.io/component", "operator": "In", "values": ["gateway", "operator"]}
    return {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.operator_namespace}},
        "podSelector": {"matchExpressions": [component]},
    }


def _peer(peer: NetworkPeer) -> Manifest:
    selectors = {"namespaceSelector": peer.namespace_selector, "podSelector": peer.pod_selector}
    return {name: _selector(each) for name, each in selectors.items() if each is not None}


def _selector(given: LabelSelector) -> Manifest:
    requirements = [without_empty(plain(each)) for each in given.match_expressions]
    return without_empty({"matchLabels": dict(given.match_labels), "matchExpressions": requirements})
