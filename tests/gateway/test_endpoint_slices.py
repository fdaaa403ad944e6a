"""A fleet as a cluster has it: which models there are, and their pods, through all that happens to a watch."""

import asyncio
from typing import Any

import pytest

from gateways import until
from kube_fixture import ControlPlane, Faults, Kube
from octavo_common.names import API_GROUP, API_VERSION, DEPLOYMENT_LABEL
from octavo_gateway.discovery import Endpoint, Fleet, Wishes
from octavo_gateway.endpoint_slices import EndpointSlices
from octavo_gateway.slices import fleet_of, wishes_of
from octavo_operator.api.crd import custom_resource_definition

Manifest = dict[str, Any]


def deployment(name: str, model: str | None = None, created: str = "") -> Manifest:
    source: Manifest = {"source": {"huggingFace": {"repo": "org/one"}}} | ({} if model is None else {"name": model})
    metadata = {"name": name, "namespace": "ns"} | ({"creationTimestamp": created} if created else {})
    return {"metadata": metadata, "spec": {"model": source}}


def slice_of(name: str, *pods: Manifest, suffix: str = "1", port: str = "http") -> Manifest:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-{suffix}", "namespace": "ns", "labels": {DEPLOYMENT_LABEL: name}},
        "addressType": "IPv4",
        "ports": [{"name": port, "port": 8000, "protocol": "TCP"}],
        "endpoints": list(pods),
    }


def pod(name: str, address: str, **conditions: bool) -> Manifest:
    return {"addresses": [address], "conditions": conditions, "targetRef": {"kind": "Pod", "name": name}}


def test_pods_are_found_by_their_slices_and_models_by_the_names_that_clients_use() -> None:
    slices = [
        slice_of("one", pod("one-a", "10.0.0.1", ready=True), pod("one-b", "10.0.0.2", ready=False)),
        slice_of("one", pod("one-c", "10.0.0.3", ready=False, serving=True, terminating=True), suffix="2"),
        slice_of("two", pod("two-a", "10.0.0.4", ready=True), port="other"),
        slice_of("stranger", pod("x", "10.0.0.9", ready=True)),
    ]
    fleet = fleet_of([deployment("one", "org/one"), deployment("two"), deployment("asleep")], slices)
    assert fleet == {
        "org/one": (
            Endpoint("one-a", "http://10.0.0.1:8000", True, False, "http://10.0.0.1:8001"),
            Endpoint("one-b", "http://10.0.0.2:8000", False, False, "http://10.0.0.2:8001"),
            Endpoint("one-c", "http://10.0.0.3:8000", True, True, "http://10.0.0.3:8001"),
        ),
        "two": (),
        "asleep": (),
    }


def test_of_two_of_the_same_name_the_older_one_has_it() -> None:
    both = [deployment("new", "m", "2026-02-01T00:00:00Z"), deployment("old", "m", "2026-01-01T00:00:00Z")]
    slices = [slice_of(name, pod(name, "10.0.0.1", ready=True)) for name in ("new", "old")]
    assert [endpoint.id for endpoint in fleet_of(both, slices)["m"]] == ["old"]


def test_what_a_manifest_says_of_its_targets_and_queue_is_known() -> None:
    full = deployment("one", "m")
    full["spec"]["autoscaling"] = {
        "targets": {"timeToFirstTokenMilliseconds": 500, "timePerOutputTokenMilliseconds": 20},
        "scaleToZero": {"maxQueuedRequests": 7},
    }
    assert wishes_of([full, deployment("two")]) == {"m": Wishes(0.5, 0.02, 7), "two": Wishes()}


@pytest.mark.real
async def test_what_happens_in_the_cluster_is_followed(kube: Kube, control_plane: ControlPlane, faults: Faults) -> None:
    await kube.install_crd(custom_resource_definition())
    published: list[Fleet] = []
    task = asyncio.create_task(
        EndpointSlices([kube.namespace], control_plane.kubeconfig).run(lambda fleet, _: published.append(fleet))
    )

    def now() -> Fleet:
        return published[-1] if published else {"nothing yet": ()}

    try:
        await until(lambda: now() == {})
        model = deployment("one", "org/one") | {"apiVersion": f"{API_GROUP}/{API_VERSION}", "kind": "LLMDeployment"}
        model["metadata"] = {"name": "one", "namespace": kube.namespace}
        await kube.create(model)
        await until(lambda: now() == {"org/one": ()})
        made = slice_of("one", pod("one-a", "10.0.0.1", ready=False))
        made["metadata"]["namespace"] = kube.namespace
        made = await kube.create(made)
        await until(lambda: [endpoint.ready for endpoint in now()["org/one"]] == [False])
        made["endpoints"] = [pod("one-a", "10.0.0.1", ready=True), pod("one-b", "10.0.0.2", ready=True)]
        made = await kube.replace(made)
        await until(lambda: [endpoint.ready for endpoint in now()["org/one"]] == [True, True])
        with faults.watches_down():
            await kube.delete(made)
        await until(lambda: now() == {"org/one": ()})
        await kube.delete(model)
        await until(lambda: now() == {})
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.real
async def test_of_all_namespaces_objects_of_one_name_are_kept_apart(kube: Kube, control_plane: ControlPlane) -> None:
    await kube.install_crd(custom_resource_definition())
    other = f"{kube.namespace}-b"
    await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    published: list[Fleet] = []
    task = asyncio.create_task(EndpointSlices([], control_plane.kubeconfig).run(lambda f, _: published.append(f)))
    try:
        for namespace in (kube.namespace, other):
            model = deployment("one", namespace) | {"apiVersion": f"{API_GROUP}/{API_VERSION}", "kind": "LLMDeployment"}
            model["metadata"] = {"name": "one", "namespace": namespace}
            await kube.create(model)
        await until(lambda: {kube.namespace, other} <= set(published[-1] if published else ()))
        await kube.delete(model)
        await until(lambda: other not in published[-1])
        assert kube.namespace in published[-1]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
