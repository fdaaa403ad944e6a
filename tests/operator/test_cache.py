"""A model that is downloaded once: its volume, its Job, who owns them, and pods that start when it is there."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException

from kube_fixture import ControlPlane, Faults, Kube, finish_job, run_deployment
from llm_deployments import Passes, conditions, llm_deployment, reconciling
from octavo_operator.api import parse
from octavo_operator.render import cache_name
from octavo_operator.workqueue import Retry

Object = dict[str, Any]
CLAIM, JOB, DEPLOYMENT = ("v1", "PersistentVolumeClaim"), ("batch/v1", "Job"), ("apps/v1", "Deployment")
POLICY = ("networking.k8s.io/v1", "NetworkPolicy")


def cached(name: str = "demo", repo: str = "org/model", **spec: Any) -> Object:
    """A model of the hub, on a volume."""
    cache = {"size": "10Gi"} | spec.pop("cache", {})
    return llm_deployment(
        name, **({"model": {"source": {"huggingFace": {"repo": repo}}}, "storage": {"cache": cache}} | spec)
    )


def volume_of(body: Object) -> str:
    name = cache_name(parse(body))
    assert name is not None
    return name


@pytest.fixture
async def passes(control_plane: ControlPlane, octavo: Kube, faults: Faults) -> AsyncIterator[Passes]:
    async with reconciling(control_plane, octavo.namespace) as made:
        yield made


async def owners(kube: Kube, volume: str) -> list[str]:
    found = await kube.get(*CLAIM, volume)
    return sorted(each["name"] for each in found["metadata"].get("ownerReferences", []))


async def test_a_model_is_downloaded_before_there_are_pods(
    control_plane: ControlPlane, octavo: Kube, passes: Passes, faults: Faults
) -> None:
    made = await octavo.create(cached())
    volume = volume_of(made)
    await passes.once()
    assert await octavo.find(*DEPLOYMENT, "demo") is None
    claim, job = await octavo.get(*CLAIM, volume), await octavo.get(*JOB, volume)
    assert claim["spec"]["resources"]["requests"]["storage"] == "10Gi"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert [each["uid"] for each in job["metadata"]["ownerReferences"]] == [claim["metadata"]["uid"]]
    assert "octavo.dev/deployment" not in job["spec"]["template"]["metadata"]["labels"]
    assert (await octavo.get(*POLICY, volume))["spec"]["egress"][1] == {"ports": [{"port": 443, "protocol": "TCP"}]}
    seen = await conditions(octavo)
    assert seen["ModelCached"][:2] == ("False", "Downloading") and "hf://org/model@main" in seen["ModelCached"][2]
    assert seen["Progressing"][:2] == ("True", "Downloading") and seen["Ready"][0] == "False"
    await finish_job(octavo, control_plane, volume)
    await passes.once()
    pod = (await octavo.get(*DEPLOYMENT, "demo"))["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"][1] == "/octavo/model/files" and "initContainers" not in pod
    source = {"claimName": volume, "readOnly": True}
    assert [each["persistentVolumeClaim"] for each in pod["volumes"] if each["name"] == "model"] == [source]
    assert (await conditions(octavo))["ModelCached"][:2] == ("True", "Cached")
    faults.reset()
    async with reconciling(control_plane, octavo.namespace) as restarted:
        await restarted.once()
    assert [write.path for write in faults.writes() if not write.path.endswith(("/status", "/events"))] == []


async def test_without_prefetch_the_pods_download_onto_the_volume(octavo: Kube, passes: Passes) -> None:
    made = await octavo.create(cached(cache={"prefetch": False}))
    await passes.once()
    assert await octavo.find(*JOB, volume_of(made)) is None
    pod = (await octavo.get(*DEPLOYMENT, "demo"))["spec"]["template"]["spec"]
    (pull,) = pod["initContainers"]
    assert pull["args"][:3] == ["pull", "hf://org/model@main", "/octavo/model/files"]
    (volume,) = [each["persistentVolumeClaim"] for each in pod["volumes"] if each["name"] == "model"]
    assert volume == {"claimName": volume_of(made)}
    assert (await conditions(octavo))["ModelCached"][:2] == ("False", "Downloading")


async def test_a_job_that_nobody_wants_any_more_is_deleted_unless_it_is_done(
    control_plane: ControlPlane, octavo: Kube, passes: Passes
) -> None:
    first, second = await octavo.create(cached("first")), await octavo.create(cached("second"))
    volume, without = volume_of(first), {"spec": {"storage": {"cache": {"prefetch": False}}}}
    await passes.once("first")
    await octavo.patch(first, without)
    await passes.once("first")
    assert not await gone(octavo, JOB, volume), "the other one waits for it"
    await octavo.patch(second, without)
    await passes.once("second")
    assert await gone(octavo, JOB, volume) and await gone(octavo, POLICY, volume)
    third = await octavo.create(cached("third", "org/other"))
    await passes.once("third")
    await finish_job(octavo, control_plane, volume_of(third))
    await octavo.patch(third, without)
    await passes.once("third")
    assert not await gone(octavo, JOB, volume_of(third))


async def test_deployments_of_one_model_share_its_volume_and_own_it_together(
    control_plane: ControlPlane, octavo: Kube, passes: Passes, faults: Faults
) -> None:
    first = await octavo.create(cached("first"))
    volume = volume_of(first)
    await passes.once("first")
    second = await octavo.create(cached("second", cache={"size": "20Gi"}))
    if control_plane.is_real:
        # A volume that is not bound cannot grow: that is told and tried again, and the Job goes on.
        with pytest.raises(Retry, match="refused PersistentVolumeClaim"):
            await passes.once("second")
    await octavo.delete(second)
    await octavo.create(cached("third"))
    await passes.once("third")
    assert await owners(octavo, volume) == ["first", "third"]
    faults.reset()
    await passes.once("first")
    await passes.once("third")
    assert [write.path for write in faults.writes() if not write.path.endswith(("/status", "/events"))] == []
    await octavo.delete(first)
    await passes.once("third")

    async def owned_by_the_other() -> bool:
        return await owners(octavo, volume) == ["third"]

    await octavo.until(owned_by_the_other)


async def gone(kube: Kube, kind: tuple[str, str], name: str) -> bool:
    found = await kube.find(*kind, name)
    # Where no kubelet ends its pods, protection holds a volume's name.
    return found is None or "deletionTimestamp" in found["metadata"]


async def test_a_volume_that_is_retained_has_no_owner_and_is_found_again(octavo: Kube, passes: Passes) -> None:
    made = await octavo.create(cached(cache={"retain": True}))
    volume = volume_of(made)
    await passes.once()
    before = await octavo.get(*CLAIM, volume)
    assert await owners(octavo, volume) == []
    await octavo.delete(made)
    await octavo.create(cached("later"))
    await passes.once("later")
    after = await octavo.get(*CLAIM, volume)
    assert after["metadata"]["uid"] == before["metadata"]["uid"] and await owners(octavo, volume) == ["later"]


@pytest.mark.usefixtures("node")
async def test_another_model_replaces_the_old_one_only_when_it_is_there(
    control_plane: ControlPlane, octavo: Kube, passes: Passes
) -> None:
    made = await octavo.create(cached())
    old = volume_of(made)
    await passes.once()
    await finish_job(octavo, control_plane, old)
    await passes.once()
    await run_deployment(octavo, control_plane, "demo", on_nodes=False)
    made = await octavo.patch(made, {"spec": {"model": {"source": {"huggingFace": {"repo": "org/newer"}}}}})
    new = volume_of(made)
    await passes.once()
    assert await served_volume(octavo) == old and await octavo.find(*CLAIM, old) is not None
    seen = await conditions(octavo)
    assert seen["Progressing"][:2] == ("True", "Downloading") and seen["Available"][0] == "True"
    await finish_job(octavo, control_plane, new)
    # Without a node, as its volume has no provisioner here, it would be gone the moment it is replaced.
    pods = await octavo.list("v1", "Pod", labels="octavo.dev/deployment=demo")
    for pod in pods:
        await octavo.patch(pod, {"metadata": {"finalizers": ["octavo.dev/test"]}})
    await passes.once()
    assert await served_volume(octavo) == new
    if control_plane.has_controller_manager:
        assert not await gone(octavo, CLAIM, old), "a pod still reads it"
        for pod in pods:
            await octavo.patch(pod, {"metadata": {"finalizers": None}})
        await run_deployment(octavo, control_plane, "demo", on_nodes=False)
        await passes.once()
        assert await gone(octavo, CLAIM, old)
        assert not await gone(octavo, CLAIM, new)


async def served_volume(kube: Kube) -> str:
    volumes = (await kube.get(*DEPLOYMENT, "demo"))["spec"]["template"]["spec"]["volumes"]
    (name,) = [str(each["persistentVolumeClaim"]["claimName"]) for each in volumes if each["name"] == "model"]
    return name


async def test_a_download_that_fails_for_good_is_told_in_its_own_words(
    control_plane: ControlPlane, octavo: Kube, passes: Passes, faults: Faults
) -> None:
    made = await octavo.create(cached())
    volume = volume_of(made)
    await passes.once()
    words = "org/model: access to this model must be asked for on its page"
    await finish_job(octavo, control_plane, volume, exit_code=2, words=words)
    await passes.once()  # and no Retry: only people can help
    seen = await conditions(octavo)
    assert seen["ModelCached"][:2] == ("False", "DownloadFailed")
    assert seen["Degraded"][:2] == ("True", "DownloadFailed") and words in seen["Degraded"][2]
    assert f"delete Job {volume}" in seen["Degraded"][2]
    faults.reset()
    await passes.once()
    assert faults.writes() == []
    failed = await octavo.get(*JOB, volume)
    await octavo.delete(failed)
    await passes.until_done()
    assert (await octavo.get(*JOB, volume))["metadata"]["uid"] != failed["metadata"]["uid"]
    assert (await conditions(octavo))["Degraded"][0] == "False"


async def test_another_token_replaces_a_job_that_is_not_done(octavo: Kube, passes: Passes) -> None:
    made = await octavo.create(cached())
    volume = volume_of(made)
    await passes.once()
    before = await octavo.get(*JOB, volume)
    await octavo.patch(made, {"spec": {"model": {"source": {"huggingFace": {"tokenSecretRef": {"name": "hf"}}}}}})
    with pytest.raises(Retry, match="is being replaced"):
        await passes.once()

    async def collected() -> bool:
        found = await octavo.find(*JOB, volume)
        return found is None

    await octavo.until(collected)
    await passes.once()
    after = await octavo.get(*JOB, volume)
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    (container,) = after["spec"]["template"]["spec"]["containers"]
    assert container["args"][3:5] == ["--token-file", "/octavo/credentials/token"]


async def test_nothing_is_downloaded_while_suspended(octavo: Kube, passes: Passes) -> None:
    made = await octavo.create(cached())
    volume = volume_of(made)
    await passes.once()
    await octavo.patch(made, {"spec": {"suspend": True}})
    await passes.once()
    assert (await octavo.get(*DEPLOYMENT, "demo"))["spec"]["replicas"] == 0

    async def ended() -> bool:
        return await octavo.find(*JOB, volume) is None

    await octavo.until(ended)
    assert await octavo.find(*CLAIM, volume) is not None
    await octavo.patch(made, {"spec": {"suspend": False}})
    await passes.until_done()
    assert await octavo.find(*JOB, volume) is not None


async def test_a_strangers_volume_is_not_touched(octavo: Kube, passes: Passes) -> None:
    body = cached()
    resources = {"requests": {"storage": "1Gi"}}
    theirs = {"apiVersion": "v1", "kind": CLAIM[1], "metadata": {"name": volume_of(body)}}
    before = await octavo.create(theirs | {"spec": {"accessModes": ["ReadWriteOnce"], "resources": resources}})
    await octavo.create(body)
    with pytest.raises(Retry, match="NameConflict"):
        await passes.once()
    after = await octavo.get(*CLAIM, volume_of(body))
    assert after["spec"] == before["spec"] and "ownerReferences" not in after["metadata"]
    assert await octavo.find(*JOB, volume_of(body)) is None


@pytest.mark.real
async def test_a_volume_may_grow_and_never_shrink(octavo: Kube) -> None:
    made = await octavo.create(cached(cache={"size": "1536Mi"}))
    grown = await octavo.patch(made, {"spec": {"storage": {"cache": {"size": "1.501Gi"}}}})
    for smaller in ("1.5Gi", "1536Mi", 1, "1500M"):
        with pytest.raises(ApiException) as refused:
            await octavo.patch(grown, {"spec": {"storage": {"cache": {"size": smaller}}}})
        told = json.loads(str(refused.value.body))["message"]
        assert "spec.storage.cache.size" in told and "a volume cannot shrink" in told
    without = await octavo.patch(grown, {"spec": {"storage": None}})
    await octavo.patch(without, {"spec": {"storage": {"cache": {"size": "1Gi"}}}})


async def test_a_crash_after_any_write_converges(control_plane: ControlPlane, octavo: Kube, faults: Faults) -> None:
    k = 0
    while True:
        k += 1
        body = await octavo.create(cached(f"crash-{k}", repo=f"org/model-{k}"))
        faults.reset()
        fault = faults.fail_write(k, "after")
        async with reconciling(control_plane, octavo.namespace) as first:
            with contextlib.suppress(Retry):
                await first.once(f"crash-{k}")
        hit = fault.hit.is_set()
        faults.reset()
        async with reconciling(control_plane, octavo.namespace) as second:
            await second.until_done(f"crash-{k}")
        volume = volume_of(body)
        assert await owners(octavo, volume) == [f"crash-{k}"], f"after a crash at write {k}"
        for kind, name in ((JOB, volume), (POLICY, volume), (POLICY, f"crash-{k}"), (("v1", "Service"), f"crash-{k}")):
            assert await octavo.find(*kind, name) is not None, f"{kind[1]} after a crash at write {k}"
        if not hit:
            assert k > 7  # claim, policy, Job, its own three and the status at least
            return


def test_what_is_downloaded_and_onto_what_makes_the_name_and_nothing_else() -> None:
    body = cached()
    same = copy.deepcopy(body)
    same["metadata"]["name"] = "other"
    same["spec"]["model"]["source"]["huggingFace"]["tokenSecretRef"] = {"name": "hf"}
    same["spec"]["storage"]["cache"] |= {"size": "99Gi", "retain": True}
    assert volume_of(same) == volume_of(body)
    others = [{"storageClassName": "fast"}, {"accessModes": ["ReadWriteOnce"]}]
    names = {volume_of(cached(cache=each)) for each in others} | {volume_of(cached(repo="org/other"))}
    revised = copy.deepcopy(body)
    revised["spec"]["model"]["source"]["huggingFace"]["revision"] = "v2"
    hub = cached(server={"env": [{"name": "HF_ENDPOINT", "value": "https://hub"}]})
    assert len(names | {volume_of(revised), volume_of(body), volume_of(hub)}) == 6
