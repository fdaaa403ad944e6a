"""A fleet from what a cluster has: LLMDeployments name the models, EndpointSlices of their Services the pods. Pure."""

from collections.abc import Iterable, Iterator
from typing import Any

from octavo_common.names import ADMIN_PORT, DEPLOYMENT_LABEL
from octavo_gateway.discovery import Endpoint, Fleet, Wishes

Manifest = dict[str, Any]


def fleet_of(deployments: Iterable[Manifest], slices: Iterable[Manifest]) -> Fleet:
    """The pods of each model. Where several LLMDeployments name the same one, the oldest has it."""
    found: dict[str, tuple[Endpoint, ...]] = {}
    pods: dict[tuple[str, str], dict[str, Endpoint]] = {}
    for each in slices:
        metadata = each["metadata"]
        key = metadata["namespace"], (metadata.get("labels") or {}).get(DEPLOYMENT_LABEL, "")
        pods.setdefault(key, {}).update((endpoint.id, endpoint) for endpoint in _endpoints(each))
    for deployment in sorted(deployments, key=_age):
        metadata = deployment["metadata"]
        endpoints = pods.get((metadata["namespace"], metadata["name"]), {})
        found.setdefault(model_name(deployment), tuple(endpoints[name] for name in sorted(endpoints)))
    return found


def wishes_of(deployments: Iterable[Manifest]) -> dict[str, Wishes]:
    """What `spec.autoscaling` says of each model; of two that name the same one, the older one."""
    found: dict[str, Wishes] = {}
    for deployment in sorted(deployments, key=_age):
        autoscaling = deployment.get("spec", {}).get("autoscaling") or {}
        targets, to_zero = autoscaling.get("targets") or {}, autoscaling.get("scaleToZero") or {}
        ttft, tpot = (targets.get(name) for name in ("timeToFirstTokenMilliseconds", "timePerOutputTokenMilliseconds"))
        wishes = Wishes(
            None if ttft is None else ttft / 1000,
            None if tpot is None else tpot / 1000,
            to_zero.get("maxQueuedRequests"),
        )
        found.setdefault(model_name(deployment), wishes)
    return found


def model_name(deployment: Manifest) -> str:
    """What clients call it."""
    model = deployment.get("spec", {}).get("model") or {}
    return str(model.get("name") or deployment["metadata"]["name"])


def _age(deployment: Manifest) -> tuple[str, str, str]:
    metadata = deployment["metadata"]
    return str(metadata.get("creationTimestamp") or ""), metadata["namespace"], metadata["name"]


def _endpoints(slice_: Manifest) -> Iterator[Endpoint]:
    """Of one slice. A pod that ends is not ready, but may serve what it has."""
    port = next((port["port"] for port in slice_.get("ports") or () if port.get("name") in ("http", "", None)), None)
    if port is None:
        return
    for each in slice_.get("endpoints") or ():
        conditions = each.get("conditions") or {}
        draining = bool(conditions.get("terminating"))
        ready = conditions.get("ready") is not False
        for address in (each.get("addresses") or ())[:1]:
            host = f"[{address}]" if ":" in address else address
            name = (each.get("targetRef") or {}).get("name") or address
            # Which port tells metrics depends on the pod: the scraper asks at the other one where this one does not.
            metrics_url = f"http://{host}:{ADMIN_PORT}"
            yield Endpoint(name, f"http://{host}:{port}", ready or draining, draining, metrics_url)
