"""What a spec leaves open is decided once: image, commit and time to start hold until the spec changes."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kube_fixture import ControlPlane, Faults, Kube, finish_job, run_deployment
from llm_deployments import API, KIND, PULL_IMAGE, SETTINGS, Passes, conditions, llm_deployment, reconciling
from octavo_operator.api import parse
from octavo_operator.render import RenderSettings
from octavo_operator.resolved import resolve, spec_digest
from octavo_operator.workqueue import Retry

Object = dict[str, Any]
COMMIT = "0e9e39f249a16976918f6564b8830bc894c89659"
NEWER = "1f9e39f249a16976918f6564b8830bc894c89650"
JOB, DEPLOYMENT, POLICY = ("batch/v1", "Job"), ("apps/v1", "Deployment"), ("networking.k8s.io/v1", "NetworkPolicy")


def hub(name: str = "demo", revision: str = "main", **spec: Any) -> Object:
    source = {"huggingFace": {"repo": "org/model", "revision": revision}}
    return llm_deployment(name, **({"model": {"source": source}, "resources": {"ephemeralStorage": "8Gi"}} | spec))


def told(revision: str) -> str:
    return json.dumps({"source": "hf://org/model@main", "revision": revision})


@pytest.fixture
async def passes(control_plane: ControlPlane, octavo: Kube, faults: Faults) -> AsyncIterator[Passes]:
    async with reconciling(control_plane, octavo.namespace) as made:
        yield made


def test_scaling_changes_nothing_of_what_was_decided_and_anything_else_does() -> None:
    base = hub()
    digest = spec_digest(parse(base))
    for same in (
        {"replicas": 5},
        {"suspend": True},
        {"autoscaling": {"maxReplicas": 5}},
        {"rollout": {}},
        {"server": {"dtype": "Auto"}},
    ):
        assert spec_digest(parse(hub(**same))) == digest, same
    for other in ({"server": {"dtype": "Float16"}}, {"podTemplate": {"annotations": {"a": "b"}}}):
        assert spec_digest(parse(hub(**other))) != digest, other


def test_what_another_version_wrote_into_the_status_is_decided_anew() -> None:
    body = hub() | {"status": {"resolved": {"forSpec": "ab", "somethingNew": 1}}}
    assert resolve(body, parse(hub()), SETTINGS).image == SETTINGS.server_image


def changed(faults: Faults) -> set[str]:
    """Kinds that were written to; status may follow controllers meanwhile, and events tell of it."""
    return {write.plural for write in faults.writes()} - {"llmdeployments", "events"}


async def image(kube: Kube) -> str:
    pod = (await kube.get(*DEPLOYMENT, "demo"))["spec"]["template"]["spec"]
    return str(pod["containers"][0]["image"])


async def test_an_operator_with_another_image_replaces_no_pod_until_the_spec_changes(
    control_plane: ControlPlane, octavo: Kube, passes: Passes, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await octavo.create(llm_deployment())
    await passes.once()
    before = await octavo.get(*DEPLOYMENT, "demo")
    resolved = (await octavo.get(API, KIND, "demo"))["status"]["resolved"]
    assert (resolved["image"], resolved["startupTimeoutSeconds"]) == (SETTINGS.server_image, 600)
    faults.reset()
    monkeypatch.setattr("octavo_operator.render.timing.BASE_STARTUP_SECONDS", 900)
    async with reconciling(control_plane, octavo.namespace) as upgraded:
        upgraded.reconciler._settings = RenderSettings("registry.example/octavo-server:2", PULL_IMAGE)
        await upgraded.once()
        # The policy alone knows where the operator runs; pods are as they were.
        assert changed(faults) <= {"networkpolicies"}
        await octavo.patch(made, {"spec": {"replicas": 3}})
        await upgraded.once()
        after = await octavo.get(*DEPLOYMENT, "demo")
        assert after["spec"]["replicas"] == 3 and after["spec"]["template"] == before["spec"]["template"]
        await octavo.patch(made, {"spec": {"podTemplate": {"annotations": {"wants": "the newer image"}}}})
        await upgraded.once()
    assert await image(octavo) == "registry.example/octavo-server:2"
    resolved = (await octavo.get(API, KIND, "demo"))["status"]["resolved"]
    assert (resolved["image"], resolved["startupTimeoutSeconds"]) == ("registry.example/octavo-server:2", 900)


async def test_a_branch_becomes_a_commit_before_there_are_pods_and_stays_it(
    control_plane: ControlPlane, octavo: Kube, passes: Passes, faults: Faults
) -> None:
    made = await octavo.create(hub())
    await passes.once()
    assert await octavo.find(*DEPLOYMENT, "demo") is None
    job = await octavo.get(*JOB, "demo-revision")
    (asking,) = job["spec"]["template"]["spec"]["containers"]
    assert asking["args"] == ["pull", "hf://org/model@main", "--resolve", "--result-file", "/dev/termination-log"]
    assert "octavo.dev/deployment" not in job["spec"]["template"]["metadata"]["labels"]
    assert (await octavo.get(*POLICY, "demo-revision"))["spec"]["egress"][1] == {
        "ports": [{"port": 443, "protocol": "TCP"}]
    }
    seen = await conditions(octavo)
    assert seen["Progressing"][:2] == ("True", "Resolving") and seen["Ready"][0] == "False"
    assert seen["ModelCached"] == ("False", "Resolving", "Job demo-revision asks which commit hf://org/model@main is")
    await finish_job(octavo, control_plane, "demo-revision", words=told(COMMIT))
    await passes.once()
    (pull,) = (await octavo.get(*DEPLOYMENT, "demo"))["spec"]["template"]["spec"]["initContainers"]
    assert pull["args"][1] == f"hf://org/model@{COMMIT}"
    status = (await octavo.get(API, KIND, "demo"))["status"]
    assert status["modelRevision"] == status["resolved"]["revision"] == COMMIT
    assert await octavo.find(*POLICY, "demo-revision") is None
    # Neither the Job's end nor a restart nor scaling asks again.
    await octavo.delete(job)
    faults.reset()
    async with reconciling(control_plane, octavo.namespace) as restarted:
        await restarted.once()
        assert changed(faults) == set()
        await octavo.patch(made, {"spec": {"replicas": 2}})
        await restarted.once()
    again = (await octavo.get(*DEPLOYMENT, "demo"))["spec"]["template"]["spec"]["initContainers"]
    assert again == [pull]


@pytest.mark.usefixtures("node")
async def test_another_spec_asks_again_and_pods_serve_on_until_the_answer(
    control_plane: ControlPlane, octavo: Kube, passes: Passes
) -> None:
    made = await octavo.create(hub())
    await passes.once()
    await finish_job(octavo, control_plane, "demo-revision", words=told(COMMIT))
    await passes.once()
    await run_deployment(octavo, control_plane, "demo")
    await octavo.patch(made, {"spec": {"server": {"maxModelLength": 512}}})
    with pytest.raises(Retry, match="is being replaced"):
        await passes.once()
    await until_gone(octavo, passes)
    seen = await conditions(octavo)
    assert seen["Available"][0] == "True" and seen["Ready"][:2] == ("False", "Resolving")
    assert "modelRevision" not in (await octavo.get(API, KIND, "demo"))["status"]
    await finish_job(octavo, control_plane, "demo-revision", words=told(NEWER))
    await passes.once()
    assert (await octavo.get(API, KIND, "demo"))["status"]["modelRevision"] == NEWER
    (pull,) = (await octavo.get(*DEPLOYMENT, "demo"))["spec"]["template"]["spec"]["initContainers"]
    assert pull["args"][1].endswith(NEWER)


async def until_gone(kube: Kube, passes: Passes) -> None:
    """Passes until the Job of the earlier spec is collected and the next one made."""

    async def made() -> bool:
        with contextlib.suppress(Retry):
            await passes.once()
            return await kube.find(*JOB, "demo-revision") is not None
        return False

    await kube.until(made, 30, "another Job")


@pytest.mark.parametrize("change", ["a commit", "suspended"])
async def test_who_need_not_ask_any_more_stops_asking(octavo: Kube, passes: Passes, change: str) -> None:
    made = await octavo.create(hub())
    await passes.once()
    pinned = {"model": {"source": {"huggingFace": {"revision": COMMIT}}}}
    await octavo.patch(made, {"spec": {"suspend": True} if change == "suspended" else pinned})
    await passes.once()
    assert await gone(octavo, JOB) and await gone(octavo, POLICY)
    assert await octavo.find(*DEPLOYMENT, "demo") is not None


async def gone(kube: Kube, kind: tuple[str, str]) -> bool:
    found = await kube.find(*kind, "demo-revision")
    return found is None or "deletionTimestamp" in found["metadata"]


async def test_an_answer_that_is_an_error_is_told_in_the_hubs_words(
    control_plane: ControlPlane, octavo: Kube, passes: Passes
) -> None:
    await octavo.create(hub())
    await passes.once()
    words = "hf://org/model@main: the hub answers 401: Access to this model is restricted"
    await finish_job(octavo, control_plane, "demo-revision", exit_code=2, words=words)
    await passes.once()
    seen = await conditions(octavo)
    assert seen["Degraded"][:2] == ("True", "DownloadFailed") and words in seen["Degraded"][2]
    assert "delete Job demo-revision" in seen["Degraded"][2] and await octavo.find(*DEPLOYMENT, "demo") is None
    await octavo.delete(await octavo.get(*JOB, "demo-revision"))
    await until_gone(octavo, passes)


async def test_a_strangers_job_is_left_alone(octavo: Kube, passes: Passes) -> None:
    container = {"name": "c", "image": "busybox"}
    spec = {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
    theirs = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "demo-revision"}, "spec": spec}
    before = await octavo.create(theirs)
    await octavo.create(hub())
    with pytest.raises(Retry, match="NameConflict"):
        await passes.once()
    after = await octavo.get(*JOB, "demo-revision")
    assert after["metadata"]["uid"] == before["metadata"]["uid"] and after["spec"] == before["spec"]


@pytest.mark.parametrize(
    "spec", [{}, {"storage": {"cache": {"size": "1Gi"}}, "resources": {}}, {"suspend": True}], ids=lambda s: str([*s])
)
async def test_nobody_is_asked_where_the_answer_is_known_or_not_needed(
    octavo: Kube, passes: Passes, spec: Object
) -> None:
    await octavo.create(hub(revision="main" if spec else COMMIT, **spec))
    await passes.once()
    assert await octavo.find(*JOB, "demo-revision") is None
    status = (await octavo.get(API, KIND, "demo"))["status"]
    assert status.get("modelRevision") == (None if spec else COMMIT)


async def test_what_a_volume_holds_is_told_to_all_that_share_it_also_when_its_pod_is_gone(
    control_plane: ControlPlane, octavo: Kube, passes: Passes
) -> None:
    spec: Object = {"storage": {"cache": {"size": "1Gi"}}}
    await octavo.create(hub(**spec))
    await passes.once()
    (job,) = await octavo.list(*JOB)
    await finish_job(octavo, control_plane, job["metadata"]["name"], words=told(COMMIT))
    await passes.once()
    assert (await octavo.get(API, KIND, "demo"))["status"]["modelRevision"] == COMMIT
    assert COMMIT in (await conditions(octavo))["ModelCached"][2]
    for pod in await octavo.list("v1", "Pod", labels="octavo.dev/cache"):
        await octavo.delete(pod, grace=0)
    await octavo.create(hub("later", **copy.deepcopy(spec)))
    await passes.once("later")
    assert (await octavo.get(API, KIND, "later"))["status"]["modelRevision"] == COMMIT
    claim = await octavo.get("v1", "PersistentVolumeClaim", job["metadata"]["name"])
    assert claim["metadata"]["annotations"]["octavo.dev/revision"] == COMMIT


async def test_a_crash_while_a_branch_is_asked_for_converges(
    control_plane: ControlPlane, octavo: Kube, faults: Faults
) -> None:
    """Every fourth write of both passes: done, and its answer lost; another operator goes on."""
    k, hit = 1, True
    while hit:
        name = f"crash-{k}"
        await octavo.create(hub(name))
        faults.reset()
        fault = faults.fail_write(k, "after")
        for step in range(2):
            async with reconciling(control_plane, octavo.namespace) as first:
                with contextlib.suppress(Retry):
                    await first.once(name)
            async with reconciling(control_plane, octavo.namespace) as second:
                await second.until_done(name)
            if not step:
                await finish_job(octavo, control_plane, f"{name}-revision", words=told(COMMIT))
        (pull,) = (await octavo.get(*DEPLOYMENT, name))["spec"]["template"]["spec"]["initContainers"]
        assert pull["args"][1].endswith(COMMIT), f"after a crash at write {k}"
        assert (await octavo.get(API, KIND, name))["status"]["modelRevision"] == COMMIT
        assert await octavo.find(*POLICY, f"{name}-revision") is None, f"after a crash at write {k}"
        hit = fault.hit.is_set()
        k += 4
    assert k > 9
