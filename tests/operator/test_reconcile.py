"""One pass over one LLMDeployment: what it writes, what it leaves alone, and that it can be cut off anywhere."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kube_fixture import ControlPlane, Faults, Kube, run_deployment
from llm_deployments import API, IMAGE, KIND, Passes, conditions, llm_deployment, reconciling
from octavo_operator.render import RenderSettings
from octavo_operator.workqueue import Retry

Object = dict[str, Any]


@pytest.fixture
async def passes(control_plane: ControlPlane, octavo: Kube, faults: Faults) -> AsyncIterator[Passes]:
    async with reconciling(control_plane, octavo.namespace) as made:
        yield made


async def children(kube: Kube) -> dict[str, Object]:
    found = {
        "Deployment": await kube.list("apps/v1", "Deployment"),
        "Service": await kube.list("v1", "Service"),
    }
    assert all(len(each) <= 1 for each in found.values())
    return {kind: each[0] for kind, each in found.items() if each}


def versions(found: dict[str, Object]) -> list[str]:
    return [each["metadata"]["resourceVersion"] for each in found.values()]


async def test_an_llmdeployment_becomes_a_deployment_and_a_service(octavo: Kube, passes: Passes) -> None:
    made = await octavo.create(llm_deployment(replicas=2))
    await passes.once()
    found = await children(octavo)
    assert set(found) == {"Deployment", "Service"}
    for child in found.values():
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (made["metadata"]["uid"], True)
    assert found["Deployment"]["spec"]["replicas"] == 2
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == IMAGE and container["args"][:2] == ["serve", "demo"]
    assert found["Service"]["spec"]["ports"][0]["port"] == 8000


@pytest.mark.real
async def test_what_is_applied_is_owned_by_one_field_manager_and_no_more_than_that(
    octavo: Kube, passes: Passes
) -> None:
    await octavo.create(llm_deployment())
    await passes.once()
    for child in (await children(octavo)).values():
        (ours,) = [each for each in child["metadata"]["managedFields"] if each["manager"] == "octavo-operator"]
        assert ours["operation"] == "Apply"
    live = await octavo.get(API, KIND, "demo")
    managed = live["metadata"]["managedFields"]
    assert {each.get("subresource") for each in managed if each["manager"] == "octavo-operator"} == {"status"}
    assert not {"annotations", "finalizers"} & set(live["metadata"])


@pytest.mark.usefixtures("node")
async def test_status_comes_back(control_plane: ControlPlane, octavo: Kube, passes: Passes) -> None:
    made = await octavo.create(llm_deployment(replicas=2))
    await passes.once()
    seen = await conditions(octavo)
    assert seen["Ready"][0] == "False" and seen["Progressing"][0] == "True" and seen["Degraded"][0] == "False"
    await run_deployment(octavo, control_plane, "demo", ready=1)
    await passes.once()
    seen = await conditions(octavo)
    assert seen["Ready"][0] == "False" and "1 of 2 replicas ready" in seen["Ready"][2]
    assert seen["Available"][0] == "True"
    await run_deployment(octavo, control_plane, "demo")
    await passes.once()
    seen = await conditions(octavo)
    assert [seen[kind][0] for kind in ("Ready", "Available", "Progressing", "Scheduled", "Degraded")] == [
        *("True", "True", "False", "True", "False")
    ]
    status = (await octavo.get(API, KIND, "demo"))["status"]
    assert status["resolved"].items() >= {"image": IMAGE, "startupTimeoutSeconds": 600}.items()
    assert {key: status[key] for key in status if key not in {"conditions", "resolved", "accounting"}} == {
        "observedGeneration": made["metadata"]["generation"],
        "replicas": 2,
        "readyReplicas": 2,
        "updatedReplicas": 2,
        "desiredReplicas": 2,
        "restarts": 0,
        "selector": "octavo.dev/deployment=demo",
        "url": f"http://demo.{octavo.namespace}.svc:8000/v1",
        "model": "demo",
    }


@pytest.mark.usefixtures("node")
async def test_a_second_pass_writes_nothing(
    control_plane: ControlPlane, octavo: Kube, passes: Passes, faults: Faults
) -> None:
    spec: Object = {
        "resources": {"cpu": "0.5", "memory": "1024Mi", "accelerator": {"products": ["H100"]}},
        "server": {"args": ["--max-num-seqs", "8"], "env": [{"name": "B"}, {"name": "A", "value": ""}]},
        "podTemplate": {
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "volumes": [{"name": "cache", "emptyDir": {"sizeLimit": "1000m"}}],
            "volumeMounts": [{"name": "cache", "mountPath": "/cache", "readOnly": False}],
            "initContainers": [{"name": "init", "image": "busybox", "resources": {"limits": {"cpu": "1000m"}}}],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway"}],
        },
    }
    await octavo.create(llm_deployment(**spec))
    await passes.once()
    await run_deployment(octavo, control_plane, "demo")
    await passes.once()
    before = versions(await children(octavo))
    faults.reset()
    await passes.once()
    assert faults.writes() == [] and faults.requests
    async with reconciling(control_plane, octavo.namespace) as restarted:
        await restarted.once()
    assert faults.writes() == []
    assert versions(await children(octavo)) == before


async def test_a_changed_spec_rolls_and_what_was_taken_out_goes(octavo: Kube, passes: Passes) -> None:
    made = await octavo.create(llm_deployment(server={"env": [{"name": "A", "value": "1"}], "args": ["--seed=1"]}))
    await passes.once()
    await octavo.patch(made, {"spec": {"server": {"env": None, "args": None, "maxModelLength": 512}, "replicas": 3}})
    await passes.once()
    deployment = (await children(octavo))["Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert [each["name"] for each in container["env"]] == ["HOME"]
    assert "--seed=1" not in container["args"] and "--max-model-len" in container["args"]
    assert deployment["spec"]["replicas"] == 3
    status = (await octavo.get(API, KIND, "demo"))["status"]
    assert status["observedGeneration"] == 2 and status["desiredReplicas"] == 3


async def test_suspension_applies_zero_and_keeps_replicas(
    control_plane: ControlPlane, octavo: Kube, passes: Passes
) -> None:
    made = await octavo.create(llm_deployment(replicas=2, suspend=True))
    await passes.once()
    assert (await children(octavo))["Deployment"]["spec"]["replicas"] == 0
    await run_deployment(octavo, control_plane, "demo")
    await passes.once()
    seen = await conditions(octavo)
    assert seen["Available"][:2] == ("False", "Suspended") and seen["Ready"][:2] == ("True", "Suspended")
    await octavo.patch(made, {"spec": {"suspend": False}})
    await passes.once()
    assert (await children(octavo))["Deployment"]["spec"]["replicas"] == 2


async def test_drift_is_corrected_and_foreign_fields_are_left_alone(octavo: Kube, passes: Passes) -> None:
    await octavo.create(llm_deployment(replicas=2))
    await passes.once()
    found = await children(octavo)
    drifted: Object = {
        "metadata": {"annotations": {"foreign": "kept"}, "labels": {"app.kubernetes.io/managed-by": "somebody"}},
        "spec": {"replicas": 5, "progressDeadlineSeconds": 7, "template": {"spec": {"hostNetwork": False}}},
    }
    await octavo.patch(found["Deployment"], drifted)
    await octavo.patch(found["Service"], {"spec": {"selector": {"octavo.dev/deployment": "other"}}})
    await passes.once()
    corrected = await children(octavo)
    assert corrected["Deployment"]["spec"]["replicas"] == 2
    assert corrected["Deployment"]["spec"]["progressDeadlineSeconds"] > 7
    assert corrected["Deployment"]["metadata"]["annotations"]["foreign"] == "kept"
    assert corrected["Deployment"]["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "octavo-operator"
    assert corrected["Service"]["spec"]["selector"] == {"octavo.dev/deployment": "demo"}


async def test_a_child_that_is_gone_is_made_again(octavo: Kube, passes: Passes) -> None:
    await octavo.create(llm_deployment())
    await passes.once()
    await octavo.delete((await children(octavo))["Service"])
    await passes.once()
    assert set(await children(octavo)) == {"Deployment", "Service"}


async def test_a_strangers_service_is_not_touched(octavo: Kube, passes: Passes, faults: Faults) -> None:
    port = {"name": "web", "port": 80, "protocol": "TCP"}
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "demo"},
        "spec": {"selector": {"app": "theirs"}, "ports": [port]},
    }
    before = await octavo.create(theirs)
    await octavo.create(llm_deployment())
    with pytest.raises(Retry, match="NameConflict"):
        await passes.once()
    assert await octavo.get("v1", "Service", "demo") == before
    assert set(await children(octavo)) == {"Service"}
    seen = await conditions(octavo)
    assert seen["Degraded"][:2] == ("True", "NameConflict")
    assert "there is a Service demo, not made by Octavo; it is left alone" in seen["Degraded"][2]
    assert seen["Ready"][:2] == ("False", "NameConflict")
    faults.reset()
    with pytest.raises(Retry):
        await passes.once()
    assert faults.writes() == []
    await octavo.delete(before)
    await passes.once()
    assert set(await children(octavo)) == {"Deployment", "Service"}
    assert (await conditions(octavo))["Degraded"][0] == "False"


@pytest.mark.real
async def test_a_stranger_who_comes_between_read_and_create_is_not_taken_over(
    octavo: Kube, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await octavo.create(llm_deployment())
    # With a named port, so that nothing but the conflict over its fields stands in the way of taking it over.
    port = {"name": "http", "port": 8000, "targetPort": 1}
    theirs = {"metadata": {"name": "demo"}, "spec": {"selector": {"app": "theirs"}, "ports": [port]}}
    find = passes.reconciler._kube.find

    async def find_then_lose_the_race(kind: str, namespace: str, name: str) -> Object | None:
        found = await find(kind, namespace, name)
        if kind == "Service" and found is None:
            await octavo.create({"apiVersion": "v1", "kind": "Service", **theirs})
        return found

    monkeypatch.setattr(passes.reconciler._kube, "find", find_then_lose_the_race)
    with pytest.raises(Retry):
        await passes.once()
    service = await octavo.get("v1", "Service", "demo")
    assert service["spec"]["selector"] == {"app": "theirs"} and "ownerReferences" not in service["metadata"]


async def test_what_an_earlier_installation_left_is_adopted(octavo: Kube, passes: Passes) -> None:
    made = await octavo.create(llm_deployment())
    await passes.once()
    for child in (await children(octavo)).values():
        await octavo.patch(child, {"metadata": {"ownerReferences": None}})
    await passes.once()
    for child in (await children(octavo)).values():
        assert [owner["uid"] for owner in child["metadata"]["ownerReferences"]] == [made["metadata"]["uid"]]


async def test_children_of_a_predecessor_are_waited_for(octavo: Kube, passes: Passes) -> None:
    await octavo.create(llm_deployment())
    await passes.once()
    found = await children(octavo)
    owner = copy.deepcopy(found["Service"]["metadata"]["ownerReferences"][0]) | {
        "uid": "00000000-0000-0000-0000-000000000000"
    }
    # A real garbage collector would have it at once: a finalizer holds it back.
    change: Object = {"metadata": {"ownerReferences": [owner], "finalizers": ["octavo.dev/test"]}}
    await octavo.patch(found["Service"], change)
    with pytest.raises(Retry, match="PredecessorTerminating"):
        await passes.once()
    seen = await conditions(octavo)
    assert seen["Progressing"][:2] == ("True", "PredecessorTerminating") and seen["Degraded"][0] == "False"
    await octavo.patch(found["Service"], {"metadata": {"finalizers": None}})
    if (left := await octavo.find("v1", "Service", "demo")) is not None and not passes_collects(left):
        await octavo.delete(left)

    async def collected() -> bool:
        return await octavo.find("v1", "Service", "demo") is None

    await octavo.until(collected)
    await passes.once()
    assert set(await children(octavo)) == {"Deployment", "Service"}


def passes_collects(service: Object) -> bool:
    """Whether somebody is deleting it already."""
    return "deletionTimestamp" in service["metadata"]


@pytest.mark.usefixtures("node")
async def test_an_invalid_spec_gets_a_condition_and_no_writes_after_that(
    octavo: Kube, passes: Passes, faults: Faults, control_plane: ControlPlane
) -> None:
    made = await octavo.create(llm_deployment())
    await passes.once()
    await run_deployment(octavo, control_plane, "demo")
    await passes.once()
    before = versions(await children(octavo))
    await around_the_schema(octavo, made, passes)
    await passes.once()
    seen = await conditions(octavo)
    assert (
        seen["Degraded"][:2] == ("True", "InvalidSpec") and "spec.replicas: must be an integer" in seen["Degraded"][2]
    )
    assert seen["Ready"][:2] == ("False", "InvalidSpec") and seen["Available"][0] == "True"
    assert (await octavo.get(API, KIND, "demo"))["status"]["model"] == "demo"
    faults.reset()
    await passes.once()
    assert faults.writes() == []
    assert versions(await children(octavo)) == before


async def around_the_schema(kube: Kube, made: Object, passes: Passes) -> None:
    """What the API server would not store: the reconciler is handed it as if it came from there."""
    get = passes.reconciler._kube.get

    async def get_a_bad_one(kind: str, namespace: str, name: str) -> Object | None:
        found = await get(kind, namespace, name)
        return found if found is None or kind != KIND else found | {"spec": found["spec"] | {"replicas": "two"}}

    passes.reconciler._kube.get = get_a_bad_one  # type: ignore[method-assign]


async def test_a_spec_without_any_image_gets_a_condition(octavo: Kube, passes: Passes) -> None:
    passes.reconciler._settings = RenderSettings()
    await octavo.create(llm_deployment())
    await passes.once()
    assert "spec.server.image: is required" in (await conditions(octavo))["Degraded"][2]
    assert await children(octavo) == {}


async def test_an_apply_that_the_api_server_refuses_becomes_a_condition_and_is_tried_later(
    octavo: Kube, passes: Passes, faults: Faults
) -> None:
    await octavo.create(llm_deployment())
    faults.fail_write(1, 422)
    with pytest.raises(Retry, match="ApplyRefused"):
        await passes.once()
    seen = await conditions(octavo)
    assert seen["Degraded"][:2] == ("True", "ApplyRefused")
    await passes.once()
    assert (await conditions(octavo))["Degraded"][0] == "False"


@pytest.mark.real
async def test_a_passed_on_field_that_no_pod_has_is_told_in_the_api_servers_words(octavo: Kube, passes: Passes) -> None:
    await octavo.create(llm_deployment(podTemplate={"volumes": [{"name": "a", "emptyDirr": {}}]}))
    with pytest.raises(Retry, match="ApplyRefused"):
        await passes.once()
    assert "emptyDirr" in (await conditions(octavo))["Degraded"][2]


async def test_nothing_is_made_for_what_vanished(octavo: Kube, passes: Passes, faults: Faults) -> None:
    made = await octavo.create(llm_deployment())
    await octavo.delete(made)
    await passes.once()
    assert faults.writes() == [] and await children(octavo) == {}


async def test_nothing_is_made_for_what_vanishes_during_the_pass(
    octavo: Kube, passes: Passes, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await octavo.create(llm_deployment())
    find = passes.reconciler._kube.find

    async def find_after_it_was_replaced(kind: str, namespace: str, name: str) -> Object | None:
        if kind == "Service":
            await octavo.delete(made)
            await octavo.create(llm_deployment())
        return await find(kind, namespace, name)

    monkeypatch.setattr(passes.reconciler._kube, "find", find_after_it_was_replaced)
    with pytest.raises(Retry, match="deleted meanwhile"):
        await passes.once()
    assert faults.writes() == [] and await children(octavo) == {}


async def test_nothing_is_made_while_it_is_being_deleted(octavo: Kube, passes: Passes, faults: Faults) -> None:
    body = llm_deployment()
    body["metadata"]["finalizers"] = ["octavo.dev/test"]
    made = await octavo.create(body)
    await octavo.delete(made)
    await passes.once()
    assert [write.path.rsplit("/", 1)[1] for write in faults.writes()] == ["status"] and await children(octavo) == {}
    await passes.once()
    assert len(faults.writes()) == 1
    await octavo.patch(made, {"metadata": {"finalizers": None}})


@pytest.mark.usefixtures("node")
async def test_status_says_that_it_is_being_deleted(
    control_plane: ControlPlane, octavo: Kube, passes: Passes, faults: Faults
) -> None:
    body = llm_deployment()
    body["metadata"]["finalizers"] = ["octavo.dev/test"]
    made = await octavo.create(body)
    await passes.once()
    await run_deployment(octavo, control_plane, "demo")
    await passes.once()
    assert (await conditions(octavo))["Ready"][0] == "True"
    await octavo.delete(made)
    await passes.once()
    seen = await conditions(octavo)
    assert seen["Ready"][:2] == seen["Available"][:2] == ("False", "Terminating")
    assert seen["Progressing"][:2] == ("True", "Terminating") and seen["Degraded"][0] == "False"
    await octavo.patch(made, {"metadata": {"finalizers": None}})


async def test_a_child_that_is_being_deleted_is_left_alone_and_made_again_when_it_is_gone(
    octavo: Kube, passes: Passes
) -> None:
    made = await octavo.create(llm_deployment())
    await passes.once()
    child = await octavo.patch(
        (await children(octavo))["Deployment"], {"metadata": {"finalizers": ["octavo.dev/test"]}}
    )
    await octavo.delete(child)
    await octavo.patch(made, {"spec": {"replicas": 2}})
    with pytest.raises(Retry, match="ChildTerminating"):
        await passes.once()
    assert (await children(octavo))["Deployment"]["spec"]["replicas"] == 1
    seen = await conditions(octavo)
    message = "the Deployment is being deleted; it is made again when it is gone"
    assert seen["Progressing"] == ("True", "ChildTerminating", message) and seen["Degraded"][0] == "False"
    assert seen["Ready"][0] == "False"
    await octavo.patch(child, {"metadata": {"finalizers": None}})
    await passes.once()
    again = (await children(octavo))["Deployment"]
    assert again["metadata"]["uid"] != child["metadata"]["uid"] and again["spec"]["replicas"] == 2


@pytest.mark.parametrize("outcome", ["after", "disconnect", 500, 429, 409])
async def test_a_crash_at_any_write_converges(
    control_plane: ControlPlane, octavo: Kube, faults: Faults, outcome: Any
) -> None:
    """For every k: the answer to the k-th write is lost, and a new operator takes over. Every third is refused."""
    wanted = await undisturbed(control_plane, octavo, faults)
    step = 1 if outcome in {"after", "disconnect"} else 3
    k = 1 - step
    while True:
        k += step
        name = f"crash-{k}"
        await octavo.create(llm_deployment(name))
        faults.reset()
        fault = faults.fail_write(k, outcome)
        async with reconciling(control_plane, octavo.namespace) as first:
            await first_pass(first, name)
        hit = fault.hit.is_set()
        faults.reset()
        async with reconciling(control_plane, octavo.namespace) as second:
            await second.until_done(name)
        assert await state(octavo, name) == wanted, f"after a crash at write {k}"
        if not hit:
            assert k > 5  # four children and the status at least
            return


async def first_pass(passes: Passes, name: str) -> None:
    try:
        await passes.once(name)
    except Retry:
        return


async def undisturbed(plane: ControlPlane, kube: Kube, faults: Faults) -> Object:
    await kube.create(llm_deployment("crash-0"))
    async with reconciling(plane, kube.namespace) as passes:
        await passes.until_done("crash-0")
    return await state(kube, "crash-0")


async def state(kube: Kube, name: str) -> Object:
    """What the operator is to bring about, without what differs from object to object."""
    kinds = [("apps/v1", "Deployment"), ("v1", "Service"), ("policy/v1", "PodDisruptionBudget")]
    kinds += [("networking.k8s.io/v1", "NetworkPolicy")]
    found = [await kube.get(api, kind, name) for api, kind in kinds]
    llmd, deployment = await kube.get(API, KIND, name), found[0]
    owners = [each["metadata"]["ownerReferences"][0]["uid"] == llmd["metadata"]["uid"] for each in found]
    fields = deployment["spec"]["template"]["spec"]["containers"][0]
    arguments = [argument.replace(name, "NAME") for argument in fields["args"]]
    known = sorted(each["type"] for each in llmd["status"]["conditions"])
    return {"owners": owners, "arguments": arguments, "conditions": known, "replicas": deployment["spec"]["replicas"]}


async def test_an_api_server_that_never_answers_a_write_does_not_hold_the_pass_for_ever(
    octavo: Kube, passes: Passes, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_operator.kube.REQUEST_SECONDS", 0.5)
    await octavo.create(llm_deployment())
    faults.fail_write(1, "hang")
    async with asyncio.timeout(20):
        with pytest.raises(Retry, match="no answer"):
            await passes.once()
        await passes.until_done()
    assert set(await children(octavo)) == {"Deployment", "Service"}


async def test_a_retry_waits_as_long_as_the_api_server_asks(octavo: Kube, passes: Passes, faults: Faults) -> None:
    await octavo.create(llm_deployment())
    faults.fail_write(1, 429)
    with pytest.raises(Retry) as retry:
        await passes.once()
    assert retry.value.after == 1.0


async def test_every_change_of_state_is_told_in_an_event_once(octavo: Kube, passes: Passes, faults: Faults) -> None:
    await octavo.create(llm_deployment())
    await passes.once()
    await passes.once()
    events = await octavo.list("v1", "Event", fields=f"involvedObject.kind={KIND},reason=Created")
    kinds = ("Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service")
    assert sorted(each["message"] for each in events) == [f"created {kind} demo" for kind in kinds]
