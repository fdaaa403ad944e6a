"""Objects that a spec asks for or not: made, corrected, taken away, and told of where the cluster has no such kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException

from kube_fixture import ControlPlane, Faults, Kube
from llm_deployments import Passes, conditions, llm_deployment, reconciling
from optional_kinds import definition, remove

Object = dict[str, Any]
POLICY = ("networking.k8s.io/v1", "NetworkPolicy")
BUDGET = ("policy/v1", "PodDisruptionBudget")
POOL = ("inference.networking.k8s.io/v1", "InferencePool")
MONITOR = ("monitoring.coreos.com/v1", "PodMonitor")


@pytest.fixture
async def passes(control_plane: ControlPlane, octavo: Kube, faults: Faults) -> AsyncIterator[Passes]:
    async with reconciling(control_plane, octavo.namespace) as made:
        yield made


def writes_but_status(faults: Faults) -> list[str]:
    """Status may follow the Deployment's controller meanwhile, and tell of it."""
    return [write.path for write in faults.writes() if not write.path.endswith(("/status", "/events"))]


async def test_what_a_spec_asks_for_no_more_is_deleted_and_told(octavo: Kube, passes: Passes) -> None:
    made = await octavo.create(llm_deployment())
    await passes.once()
    assert await octavo.find(*POLICY, "demo") is not None
    await octavo.patch(made, {"spec": {"networking": {"networkPolicy": "Disabled"}}})
    await passes.once()
    assert await octavo.find(*POLICY, "demo") is None and await octavo.find(*BUDGET, "demo") is not None
    events = [each["message"] for each in await octavo.list("v1", "Event") if each["reason"] == "Deleted"]
    assert events == ["deleted NetworkPolicy demo: the spec does not ask for it any more"]
    await octavo.patch(made, {"spec": {"networking": {"networkPolicy": "Restricted"}}})
    await passes.once()
    assert await octavo.find(*POLICY, "demo") is not None


async def test_a_strangers_object_that_is_not_asked_for_is_left_alone(octavo: Kube, passes: Passes) -> None:
    theirs = {"apiVersion": POLICY[0], "kind": POLICY[1], "metadata": {"name": "demo"}}
    before = await octavo.create(theirs | {"spec": {"podSelector": {"matchLabels": {"app": "theirs"}}}})
    await octavo.create(llm_deployment(networking={"networkPolicy": "Disabled"}))
    await passes.once()
    assert await octavo.find(*POLICY, "demo") == before
    assert (await conditions(octavo))["Degraded"][0] == "False"


@pytest.mark.parametrize(
    ("kind", "drifted"),
    [
        (POLICY, {"spec": {"ingress": [{}]}}),
        (POLICY, {"spec": {"egress": None}}),
        (BUDGET, {"spec": {"maxUnavailable": 5}}),
    ],
)
async def test_drift_is_corrected(octavo: Kube, passes: Passes, kind: tuple[str, str], drifted: Object) -> None:
    await octavo.create(llm_deployment())
    await passes.once()
    live = await octavo.get(*kind, "demo")
    await octavo.patch(live, drifted)
    assert (await octavo.get(*kind, "demo"))["spec"] != live["spec"]
    await passes.once()
    assert (await octavo.get(*kind, "demo"))["spec"] == live["spec"]


@pytest.mark.real
async def test_a_kind_that_the_cluster_lacks_is_told_and_everything_else_works(
    octavo: Kube, passes: Passes, faults: Faults
) -> None:
    made = await octavo.create(llm_deployment(observability={"podMonitor": "Enabled"}))
    await passes.once()  # and no Retry: nothing but a definition or another spec helps
    seen = await conditions(octavo)
    assert seen["Degraded"][:2] == ("True", "MissingAPI")
    assert "spec.observability.podMonitor asks for a PodMonitor" in seen["Degraded"][2]
    assert "monitoring.coreos.com/v1" in seen["Degraded"][2]
    assert await octavo.find("apps/v1", "Deployment", "demo") is not None
    faults.reset()
    await passes.once()
    assert writes_but_status(faults) == []
    crd = definition("monitoring.coreos.com", "PodMonitor")
    await octavo.install_crd(crd)
    try:
        await passes.once()
        found = await octavo.get(*MONITOR, "demo")
        assert found["spec"]["podMetricsEndpoints"] == [{"port": "admin", "path": "/metrics"}]
        assert (await conditions(octavo))["Degraded"][0] == "False"
        faults.reset()
        await passes.once()
        assert writes_but_status(faults) == []
        await octavo.patch(made, {"spec": {"observability": {"podMonitor": "Disabled"}}})
        await passes.once()
        assert await octavo.find(*MONITOR, "demo") is None
    finally:
        await remove(octavo, crd)


@pytest.mark.real
async def test_an_inference_pool_is_as_its_published_api_wants_it_and_no_drift_of_its_defaults(
    octavo: Kube, passes: Passes, faults: Faults
) -> None:
    crd = definition("inference.networking.k8s.io", "InferencePool")
    await octavo.install_crd(crd)
    try:
        picker: Object = {"name": "llama-epp"}
        made = await octavo.create(llm_deployment(networking={"inferencePool": {"endpointPickerRef": picker}}))
        await passes.once()
        found = await octavo.get(*POOL, "demo")
        assert found["spec"] == {
            "selector": {"matchLabels": {"octavo.dev/deployment": "demo"}},
            "targetPorts": [{"number": 8000}],
            "endpointPickerRef": {
                **{"group": "", "kind": "Service", "name": "llama-epp"},
                **{"port": {"number": 9002}, "failureMode": "FailClose"},
            },
        }
        faults.reset()
        await passes.once()
        assert writes_but_status(faults) == []
        changed = {"endpointPickerRef": picker | {"port": 9100, "failureMode": "FailOpen"}}
        await octavo.patch(made, {"spec": {"networking": {"inferencePool": changed}}})
        await passes.once()
        found = await octavo.get(*POOL, "demo")
        assert (
            found["spec"]["endpointPickerRef"].items() >= {"port": {"number": 9100}, "failureMode": "FailOpen"}.items()
        )
        await octavo.patch(found, {"spec": {"targetPorts": [{"number": 9999}]}})
        await passes.once()
        assert (await octavo.get(*POOL, "demo"))["spec"]["targetPorts"] == [{"number": 8000}]
        # The schema bites: what the operator must not forget is refused.
        for bad in ({"endpointPickerRef": {"name": "a", "port": None}}, {"targetPorts": []}, {"selector": None}):
            with pytest.raises(ApiException):
                await octavo.patch(found, {"spec": bad})
    finally:
        await remove(octavo, crd)
