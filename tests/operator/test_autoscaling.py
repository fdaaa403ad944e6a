"""Replicas by load on a control plane: what is written, by whom, in which mode, and what a crash leaves behind."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException

from kube_fixture import ControlPlane, Faults, Kube, run_deployment
from kube_fixture.workloads import set_pod_ready
from llm_deployments import API, KIND, Passes, conditions, llm_deployment, operating, reconciling, until_condition
from metric_servers import MetricServer, metric_server, server_exposition, tells
from octavo_operator.autoscale.decisions import Decisions
from octavo_operator.autoscale.observation import Fleet
from octavo_operator.autoscale.pods import COST, OUR_COST
from octavo_operator.autoscale.state import Learned
from octavo_operator.workqueue import Retry
from wishes import Wish

Object = dict[str, Any]
INTERNAL: Object = {"maxReplicas": 8}


async def replicas(kube: Kube) -> int:
    count: int = (await kube.get("apps/v1", "Deployment", "demo"))["spec"]["replicas"]
    return count


async def status(kube: Kube) -> Object:
    found: Object = (await kube.get(API, KIND, "demo"))["status"]
    return found


def beyond_counts(faults: Faults) -> list[Any]:
    """What was written, but for a status that counts pods: a controller manager makes them when it likes."""
    told = [each for each in faults.writes() if each.plural == "llmdeployments"]
    news = [each for each in told if "autoscaling" in each.json["status"]]
    return news + [each for each in faults.writes() if each not in told]


@pytest.fixture
def wish() -> Wish:
    return Wish()


@pytest.fixture
def decisions(wish: Wish) -> Decisions:
    return Decisions(wish)


@pytest.fixture
async def passes(
    control_plane: ControlPlane, octavo: Kube, faults: Faults, decisions: Decisions
) -> AsyncIterator[Passes]:
    async with reconciling(control_plane, octavo.namespace, decisions) as made:
        yield made


def decide(decisions: Decisions, namespace: str, current: int) -> None:
    """One look at a fleet of which nothing is known."""
    taken = decisions.take((namespace, "demo"), Fleet(current), 0.0)
    assert taken is not None
    decisions.want((namespace, "demo"), taken[0], current)


async def test_a_decision_is_written_to_the_deployment_and_never_to_the_users_object(
    octavo: Kube, passes: Passes, decisions: Decisions, wish: Wish, faults: Faults
) -> None:
    made = await octavo.create(llm_deployment(autoscaling=INTERNAL))
    await passes.once()
    assert await replicas(octavo) == 1
    wish.replicas = 3
    decide(decisions, octavo.namespace, 1)
    faults.reset()
    await passes.once()
    assert await replicas(octavo) == 3
    live = await octavo.get(API, KIND, "demo")
    assert live["spec"] == made["spec"] and live["metadata"]["generation"] == made["metadata"]["generation"]
    assert {each.subresource for each in faults.writes() if each.plural == "llmdeployments"} == {"status"}
    assert live["status"]["desiredReplicas"] == 3
    assert live["status"]["autoscaling"] == {"lastScaleTime": "2026-01-01T00:00:00Z", "reason": "the work is for 3"}
    assert (await conditions(octavo))["ScalingActive"][:2] == ("True", "Deciding")
    (event,) = await octavo.list("v1", "Event", fields="reason=Scaled")
    assert event["message"] == "scaled from 1 to 3 replicas: the work is for 3"
    faults.reset()
    decide(decisions, octavo.namespace, 3)
    await passes.once()
    assert beyond_counts(faults) == []


async def test_a_new_operator_leaves_the_number_as_it_is_and_so_does_drift_of_another_kind(
    control_plane: ControlPlane, octavo: Kube, passes: Passes, decisions: Decisions, wish: Wish, faults: Faults
) -> None:
    await octavo.create(llm_deployment(autoscaling=INTERNAL))
    await passes.once()
    wish.replicas = 5
    decide(decisions, octavo.namespace, 1)
    await passes.once()
    async with reconciling(control_plane, octavo.namespace) as restarted:
        faults.reset()
        await restarted.once()
        assert beyond_counts(faults) == [] and await replicas(octavo) == 5
        deployment = await octavo.get("apps/v1", "Deployment", "demo")
        await octavo.patch(deployment, {"spec": {"progressDeadlineSeconds": 7}})
        await restarted.once()
    assert await replicas(octavo) == 5
    assert (await octavo.get("apps/v1", "Deployment", "demo"))["spec"]["progressDeadlineSeconds"] > 7


async def test_what_somebody_else_writes_to_the_deployment_does_not_last(
    octavo: Kube, passes: Passes, decisions: Decisions, wish: Wish
) -> None:
    await octavo.create(llm_deployment(autoscaling=INTERNAL))
    await passes.once()
    wish.replicas = 2
    decide(decisions, octavo.namespace, 1)
    await passes.once()
    await octavo.patch(await octavo.get("apps/v1", "Deployment", "demo"), {"spec": {"replicas": 7}})
    await passes.once()
    assert await replicas(octavo) == 2


@pytest.mark.parametrize("outcome", ["after", "disconnect", 500])
async def test_a_crash_between_decision_and_write_or_after_it_leaves_a_number_that_was_meant(
    control_plane: ControlPlane, octavo: Kube, faults: Faults, outcome: Any
) -> None:
    """For every write of a pass that scales: the next operator decides the same again, and it is so."""
    await octavo.create(llm_deployment(autoscaling=INTERNAL))
    async with reconciling(control_plane, octavo.namespace) as first:
        await first.until_done()
    there, k = 1, 0
    while True:
        k += 1
        wanted = 3 if there != 3 else 2
        decisions = Decisions(Wish(wanted))
        async with reconciling(control_plane, octavo.namespace, decisions) as dying:
            await dying.once()
            decide(decisions, octavo.namespace, there)
            faults.reset()
            fault = faults.fail_write(k, outcome)
            with contextlib.suppress(Retry):
                await dying.once()
            hit = fault.hit.is_set()
            faults.reset()
        assert await replicas(octavo) in {there, wanted}
        again = Decisions(Wish(wanted))
        async with reconciling(control_plane, octavo.namespace, again) as successor:
            await successor.until_done()
            decide(again, octavo.namespace, await replicas(octavo))
            await successor.until_done()
        assert await replicas(octavo) == wanted
        assert (await status(octavo))["desiredReplicas"] == wanted
        there = wanted
        if not hit:
            assert k > 2  # the Deployment and the status at least
            return


async def test_a_recommendation_is_told_beside_a_number_that_is_the_users(
    octavo: Kube, passes: Passes, decisions: Decisions, wish: Wish
) -> None:
    made = await octavo.create(llm_deployment(autoscaling={"mode": "Recommend", "maxReplicas": 8}, replicas=2))
    await passes.once()
    wish.replicas = 4
    decide(decisions, octavo.namespace, 2)
    await passes.once()
    assert await replicas(octavo) == 2
    assert (await status(octavo))["autoscaling"] == {"recommendedReplicas": 4, "reason": "the work is for 4"}
    assert (await conditions(octavo))["ScalingActive"][:2] == ("False", "Recommending")
    (event,) = await octavo.list("v1", "Event", fields="reason=Recommended")
    assert event["message"] == "recommends 4 replicas: the work is for 4"
    await octavo.patch(made, {"spec": {"autoscaling": None}})
    await passes.once()
    assert "autoscaling" not in await status(octavo)
    assert (await conditions(octavo))["ScalingActive"][:2] == ("False", "FixedReplicas")


async def test_at_zero_it_says_what_brings_a_replica_back(octavo: Kube, passes: Passes) -> None:
    zero: Object = {"minReplicas": 0, "maxReplicas": 2, "scaleToZero": {}}
    await octavo.create(llm_deployment(autoscaling=zero))
    await passes.once()
    assert await replicas(octavo) == 0
    seen = await conditions(octavo)
    assert seen["Available"][:2] == ("False", "ScaledToZero") and "gateway" in seen["Available"][2]


async def test_suspension_ends_all_and_forgets_the_number(
    octavo: Kube, passes: Passes, decisions: Decisions, wish: Wish
) -> None:
    made = await octavo.create(llm_deployment(autoscaling={"minReplicas": 2, "maxReplicas": 8}))
    await passes.once()
    wish.replicas = 5
    decide(decisions, octavo.namespace, 2)
    await passes.once()
    await octavo.patch(made, {"spec": {"suspend": True}})
    await passes.once()
    assert await replicas(octavo) == 0
    assert (await conditions(octavo))["ScalingActive"][:2] == ("False", "Suspended")
    await octavo.patch(made, {"spec": {"suspend": False}})
    await passes.once()
    assert await replicas(octavo) == 2


async def test_learned_figures_survive_the_operator(control_plane: ControlPlane, octavo: Kube, faults: Faults) -> None:
    await octavo.create(llm_deployment(autoscaling=INTERNAL))
    learned = Learned(replica_tokens=444_000.0, startup_seconds=61.0, utilization=0.5)
    before = Decisions(Wish(learned=learned))
    async with reconciling(control_plane, octavo.namespace, before) as passes:
        await passes.once()
        decide(before, octavo.namespace, 1)
        await passes.once()
    told = (await status(octavo))["autoscaling"]
    assert (told["replicaTokens"], told["startupSeconds"]) == (444_000, 61)
    wish = Wish()
    after = Decisions(wish)
    async with reconciling(control_plane, octavo.namespace, after) as passes:
        faults.reset()
        await passes.once()
        decide(after, octavo.namespace, 1)
        await passes.once()
    assert wish.states[0].learned == learned
    assert beyond_counts(faults) == [], "and telling it again is no news"


async def test_costs_of_ours_go_when_the_operator_scales_no_more(
    control_plane: ControlPlane, octavo: Kube, passes: Passes
) -> None:
    made = await octavo.create(llm_deployment(replicas=1))
    await passes.once()
    await run_deployment(octavo, control_plane, "demo", on_nodes=False)
    (pod,) = await octavo.list("v1", "Pod")
    await octavo.patch(pod, {"metadata": {"annotations": {COST: "-1", OUR_COST: "-1", "other": "kept"}}})
    await passes.once()
    annotations = (await octavo.get("v1", "Pod", pod["metadata"]["name"]))["metadata"]["annotations"]
    assert annotations["other"] == "kept" and not {COST, OUR_COST} & set(annotations)
    await octavo.delete(made)


@pytest.mark.real
async def test_scale_is_refused_where_the_operator_decides_and_taken_elsewhere(octavo: Kube, passes: Passes) -> None:
    made = await octavo.create(llm_deployment(autoscaling=INTERNAL))
    await passes.once()
    with pytest.raises(ApiException) as refused:
        await octavo.patch(made, {"spec": {"replicas": 3}}, subresource="scale")
    assert refused.value.status == 422 and "replicas is decided by autoscaling; leave it out" in refused.value.body
    scale = await octavo.patch(made, {}, subresource="scale")
    assert scale["status"]["selector"] == "octavo.dev/deployment=demo", "who reads it is not refused"
    for mode in ("Recommend", "External"):
        await octavo.patch(made, {"spec": {"autoscaling": {"mode": mode}}})
        wanted = 3 if mode == "Recommend" else 4
        await octavo.patch(made, {"spec": {"replicas": wanted}}, subresource="scale")
        await passes.once()
        assert await replicas(octavo) == wanted
    with pytest.raises(ApiException) as refused:
        await octavo.patch(made, {"spec": {"autoscaling": {"mode": "Internal"}}})
    assert "or give 1 where /scale has left another number" in refused.value.body
    await octavo.patch(made, {"spec": {"autoscaling": {"mode": "Internal"}, "replicas": 1}})
    await passes.once()
    assert await replicas(octavo) == 4, "the operator goes on with what is there"


def autoscaler(least: int) -> Object:
    """A HorizontalPodAutoscaler that has no metrics here: it sees to its bounds."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "demo"},
        "spec": {
            "scaleTargetRef": {"apiVersion": API, "kind": KIND, "name": "demo"},
            "minReplicas": least,
            "maxReplicas": 8,
        },
    }


@pytest.mark.real
async def test_an_hpa_scales_in_mode_external_and_is_told_off_in_mode_internal(
    control_plane: ControlPlane, octavo: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not control_plane.has_controller_manager:
        pytest.skip("needs a kube-controller-manager")
    monkeypatch.setattr("octavo_operator.main.Decisions", lambda: Decisions(Wish()))
    async with operating(control_plane, octavo.namespace):
        made = await octavo.create(llm_deployment(autoscaling={"mode": "External", "maxReplicas": 8}))
        hpa = await octavo.create(autoscaler(3))
        await octavo.until(lambda: _has(octavo, 3), 60, "the HPA's number")
        assert (await octavo.get(API, KIND, "demo"))["spec"]["replicas"] == 3
        await until_condition(octavo, "ScalingActive", "Unknown", reason="External")
        await octavo.delete(hpa)
        await octavo.patch(made, {"spec": {"autoscaling": {"mode": "Internal"}, "replicas": 1}})
        await until_condition(octavo, "ScalingActive", "True", reason="Deciding")
        await octavo.create(autoscaler(5))

        async def refused() -> bool:
            found = await octavo.get("autoscaling/v2", "HorizontalPodAutoscaler", "demo")
            told = {each["type"]: each for each in found.get("status", {}).get("conditions", [])}
            return "replicas is decided by autoscaling" in told.get("AbleToScale", {}).get("message", "")

        await octavo.until(refused, 60, "the HPA to be refused")
        assert await replicas(octavo) == 3, "it goes on with what was there"


async def _has(kube: Kube, count: int) -> bool:
    found = await kube.find("apps/v1", "Deployment", "demo")
    return found is not None and found["spec"]["replicas"] == count


class Machines:
    """Stands in for kubelets: pods that are there get an address of this machine, behind which metrics are told."""

    def __init__(self, kube: Kube, port: int) -> None:
        self._kube = kube
        self._port = port
        self._stack = contextlib.AsyncExitStack()
        self.servers: dict[str, MetricServer] = {}

    async def __aenter__(self) -> Machines:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def serve(self) -> None:
        """Behind every pod of the deployment that has no server yet."""
        for pod in await self._kube.list("v1", "Pod", labels="octavo.dev/deployment=demo"):
            name = pod["metadata"]["name"]
            if name in self.servers or "deletionTimestamp" in pod["metadata"]:
                continue
            address = f"127.0.7.{len(self.servers) + 2}"
            body = server_exposition(kv_blocks_used=10 * (len(self.servers) + 1))
            server = await self._stack.enter_async_context(metric_server(tells, body, address, self._port))
            self.servers[name] = server
            await set_pod_ready(self._kube, pod)
            told = {"status": {"podIP": address, "podIPs": [{"ip": address}]}}
            await self._kube.patch(pod, told, subresource="status")


@pytest.fixture
async def machines(octavo: Kube, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machines]:
    async with metric_server(tells, address="127.0.7.1") as free:
        port = free.port
    monkeypatch.setattr("octavo_operator.render.pods.SERVER_PORT", port)
    async with Machines(octavo, port) as made:
        yield made


@pytest.mark.usefixtures("node")
async def test_a_whole_operator_scrapes_decides_and_ends_the_least_loaded(
    control_plane: ControlPlane, octavo: Kube, machines: Machines, wish: Wish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_operator.main.Decisions", lambda: Decisions(wish))
    async with operating(control_plane, octavo.namespace) as running:
        await octavo.create(llm_deployment(autoscaling=INTERNAL))
        wish.replicas = 3
        await octavo.until(lambda: _has(octavo, 3), 30, "three replicas")
        await run_deployment(octavo, control_plane, "demo")
        await machines.serve()

        async def all_told() -> bool:
            return bool(wish.fleets) and [each.sample is not None for each in wish.fleets[-1].ready] == [True] * 3

        await octavo.until(all_told, 30, "three samples")
        used = {each.name: each.sample.kv_tokens_used for each in wish.fleets[-1].ready if each.sample is not None}
        assert sorted(used.values()) == [160, 320, 480]
        least, *others = sorted(used, key=lambda name: used[name])
        wish.replicas = 2
        await octavo.until(lambda: _has(octavo, 2), 30, "two replicas")
        pods = {each["metadata"]["name"]: each for each in await octavo.list("v1", "Pod")}
        if least in pods:  # or it is gone already
            assert pods[least]["metadata"]["annotations"][COST] == "-1"
        assert not any(COST in pods[name]["metadata"].get("annotations", {}) for name in others)
        if control_plane.has_controller_manager:

            async def ended() -> bool:
                live = await octavo.list("v1", "Pod", labels="octavo.dev/deployment=demo")
                return {each["metadata"]["name"] for each in live if "deletionTimestamp" not in each["metadata"]} == {
                    *others
                }

            await octavo.until(ended, 30, "the least loaded to end")
        told = running.operator.metrics.registry.get_sample_value
        assert (told("octavo_operator_scrapes_total", {"result": "ok"}) or 0) >= 3
        assert running.counted("error") == 0


@pytest.mark.usefixtures("node")
async def test_costs_are_written_before_the_number_and_taken_back_after_it(
    control_plane: ControlPlane,
    octavo: Kube,
    machines: Machines,
    wish: Wish,
    faults: Faults,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("octavo_operator.main.Decisions", lambda: Decisions(wish))
    async with operating(control_plane, octavo.namespace):
        wish.replicas = 3
        await octavo.create(llm_deployment(autoscaling=INTERNAL))
        await octavo.until(lambda: _has(octavo, 3), 30, "three replicas")
        await run_deployment(octavo, control_plane, "demo")
        faults.reset()
        wish.replicas = 1
        await octavo.until(lambda: _has(octavo, 1), 30, "one replica")
        writes = [each.plural for each in faults.writes() if each.plural in {"pods", "deployments"}]
        assert writes[:3] == ["pods", "pods", "deployments"]
        wish.replicas = 3  # before it is over: all pods stay, and none is marked any more
        await octavo.until(lambda: _has(octavo, 3), 30, "three replicas again")

        async def unmarked() -> bool:
            pods = await octavo.list("v1", "Pod", labels="octavo.dev/deployment=demo")
            staying = [each["metadata"] for each in pods if "deletionTimestamp" not in each["metadata"]]
            return not any(OUR_COST in each.get("annotations", {}) for each in staying)

        await octavo.until(unmarked, 30, "costs to be taken back")


async def test_a_held_request_wakes_from_zero(
    control_plane: ControlPlane, octavo: Kube, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real decider: a gateway beside the operator holds a request for a model that has no replica."""
    monkeypatch.setattr("octavo_operator.autoscale.loop.INTERVAL_SECONDS", 0.2)
    body = b"".join(
        f'octavo:gateway_{name}{{model="demo"}} {count}\n'.encode()
        for name, count in (("held_requests", 0), ("held_tokens", 0), ("in_flight", 0), ("arrivals_total", 0))
    )
    zero: Object = {"minReplicas": 0, "maxReplicas": 2, "scaleToZero": {}}
    async with (
        metric_server(tells, body, "127.0.7.1") as gateway,
        operating(control_plane, octavo.namespace, operator_namespace=octavo.namespace) as running,
    ):
        port = {"name": "metrics", "containerPort": gateway.port}
        pod = await octavo.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "gateway", "labels": {"app.kubernetes.io/component": "gateway"}},
                "spec": {"containers": [{"name": "gateway", "image": "i", "ports": [port]}]},
            }
        )
        await set_pod_ready(octavo, pod)
        address = {"status": {"podIP": "127.0.7.1", "podIPs": [{"ip": "127.0.7.1"}]}}
        await octavo.patch(pod, address, subresource="status")
        await octavo.create(llm_deployment(autoscaling=zero))
        await until_condition(octavo, "ScalingActive", "True", reason="Deciding")
        assert await replicas(octavo) == 0 and gateway.asked >= 1
        gateway.body = body.replace(b'held_requests{model="demo"} 0', b'held_requests{model="demo"} 1')
        await octavo.until(lambda: _has(octavo, 1), 30, "the first replica")

        async def told_why() -> bool:
            return "1 requests are held" in (await status(octavo)).get("autoscaling", {}).get("reason", "")

        await octavo.until(told_why, 30, "the reason")
        assert running.counted("error") == 0


async def test_at_rest_nothing_is_asked_for_those_that_are_not_autoscaled(
    control_plane: ControlPlane, octavo: Kube, faults: Faults
) -> None:
    async with operating(control_plane, octavo.namespace, operator_namespace=octavo.namespace) as running:
        await octavo.create(llm_deployment())
        await octavo.create(llm_deployment("external", autoscaling={"mode": "External"}))
        await until_condition(octavo, "Progressing", "True")
        await until_condition(octavo, "ScalingActive", "Unknown", "external")
        asked = [each for each in faults.requests if "component" in each.query.get("labelSelector", "")]
        assert asked == [], "nor is anybody looked up who would be asked"
        assert running.counted("error") == 0
