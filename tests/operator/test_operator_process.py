"""A whole operator, kopf and all: events lead to passes, broken watches to no harm, and one of several acts."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from typing import Any

import aiohttp
import pytest

from kube_fixture import ControlPlane, Faults, Kube, finish_job, run_deployment
from llm_deployments import API, KIND, RunningOperator, llm_deployment, operating, until_condition
from octavo_operator.api import parse
from octavo_operator.render import cache_name

Object = dict[str, Any]


async def exists(kube: Kube, kind: str, name: str = "demo") -> bool:
    return await kube.find("apps/v1" if kind == "Deployment" else "v1", kind, name) is not None


async def until_both(kube: Kube, name: str = "demo") -> None:
    async def both() -> bool:
        return await exists(kube, "Deployment", name) and await exists(kube, "Service", name)

    await kube.until(both, 30, f"the children of {name}")


@pytest.mark.usefixtures("node")
async def test_from_apply_to_ready_to_a_roll_and_back_to_nothing(control_plane: ControlPlane, octavo: Kube) -> None:
    async with operating(control_plane, octavo.namespace):
        made = await octavo.create(llm_deployment(replicas=2))
        await until_both(octavo)
        await run_deployment(octavo, control_plane, "demo")
        await until_condition(octavo, "Ready", "True")
        await octavo.patch(made, {"spec": {"replicas": 1, "server": {"maxModelLength": 99}}})
        await until_condition(octavo, "Ready", "False")
        await run_deployment(octavo, control_plane, "demo")
        await until_condition(octavo, "Ready", "True")
        deployment = await octavo.get("apps/v1", "Deployment", "demo")
        assert "99" in deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        live = await octavo.get(API, KIND, "demo")
        assert not {"annotations", "finalizers"} & set(live["metadata"])
        await octavo.delete(made)

        async def gone() -> bool:
            return await octavo.find(API, KIND, "demo") is None

        await octavo.until(gone)


async def test_drift_is_corrected_when_it_happens(control_plane: ControlPlane, octavo: Kube) -> None:
    async with operating(control_plane, octavo.namespace):
        await octavo.create(llm_deployment(replicas=2))
        await until_both(octavo)
        deployment = await octavo.get("apps/v1", "Deployment", "demo")
        await octavo.patch(deployment, {"spec": {"replicas": 7}})

        async def corrected() -> bool:
            return bool((await octavo.get("apps/v1", "Deployment", "demo"))["spec"]["replicas"] == 2)

        await octavo.until(corrected)
        await octavo.delete(await octavo.get("v1", "Service", "demo"))
        await until_both(octavo)


async def test_a_shared_download_brings_up_all_that_wait_for_it(control_plane: ControlPlane, octavo: Kube) -> None:
    spec: Object = {
        "model": {"source": {"huggingFace": {"repo": "org/model"}}},
        "storage": {"cache": {"size": "1Gi"}},
    }
    names = ["one", "two"]
    async with operating(control_plane, octavo.namespace):
        made = [await octavo.create(llm_deployment(name, **spec)) for name in names]
        volume = cache_name(parse(made[0]))
        assert volume is not None
        for name in names:
            await until_condition(octavo, "ModelCached", "False", name)
        await finish_job(octavo, control_plane, volume)
        for name in names:
            await until_both(octavo, name)
            await until_condition(octavo, "ModelCached", "True", name)
        await octavo.delete(made[0])

        async def left() -> bool:
            claim = await octavo.get("v1", "PersistentVolumeClaim", volume)
            return [each["name"] for each in claim["metadata"]["ownerReferences"]] == ["two"]

        await octavo.until(left)


@pytest.mark.usefixtures("node")
async def test_a_restarted_operator_writes_nothing(control_plane: ControlPlane, octavo: Kube, faults: Faults) -> None:
    names = ["one", "two", "three"]
    async with operating(control_plane, octavo.namespace):
        for name in names:
            await octavo.create(llm_deployment(name))
        for name in names:
            await until_both(octavo, name)
            await run_deployment(octavo, control_plane, name)
        for name in names:
            await until_condition(octavo, "Ready", "True", name)
    faults.reset()
    async with operating(control_plane, octavo.namespace) as operator:
        await octavo.until(lambda: settled(operator, len(names)), what="every one to be looked at")
    assert faults.requests and faults.writes() == []


async def settled(running: RunningOperator, count: int) -> bool:
    operator = running.operator
    return running.counted("done") >= count and len(operator.known) == count and operator.queue.is_idle


async def test_what_vanishes_while_the_watch_is_broken_is_not_made_again(
    control_plane: ControlPlane, octavo: Kube, faults: Faults
) -> None:
    async with operating(control_plane, octavo.namespace, resync_seconds=0.3) as running:
        made = await octavo.create(llm_deployment())
        await until_both(octavo)
        faults.reset()
        with faults.watches_down():
            await octavo.delete(made)
            for api_version, kind in (("apps/v1", "Deployment"), ("v1", "Service")):
                with contextlib.suppress(Exception):
                    await octavo.delete(await octavo.get(api_version, kind, "demo"))

        async def forgotten() -> bool:
            return "demo" not in {key.name for key in list(running.operator.known)}

        # No DELETED will ever tell: it is missing from the next list, and that it is must make nothing.
        await octavo.until(forgotten)
        await octavo.create(llm_deployment("other"))
        await until_both(octavo, "other")
        assert not await exists(octavo, "Deployment") and not await exists(octavo, "Service")
        made_again = [each for each in faults.writes() if each.name == "demo" and each.plural != "llmdeployments"]
        assert made_again == []


@pytest.mark.parametrize("how", ["drop", "expire", "stale lists", "refuse", "hang"])
async def test_after_the_api_server_is_back_everything_converges(
    control_plane: ControlPlane, octavo: Kube, faults: Faults, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("octavo_operator.kube.REQUEST_SECONDS", 1.0)
    async with operating(control_plane, octavo.namespace):
        made = await octavo.create(llm_deployment())
        await until_both(octavo)
        change: Object = {"spec": {"replicas": 3}}
        if how == "drop":
            faults.drop_watches()
            await octavo.patch(made, change)
        elif how == "expire":
            with faults.watches_down():
                await octavo.patch(made, change)
        elif how == "stale lists":
            with faults.stale_lists():
                faults.expire_watches()
                await octavo.patch(made, change)
        else:
            with faults.unreachable("refuse" if how == "refuse" else "hang"):
                await octavo.patch(made, change)

        async def applied() -> bool:
            return bool((await octavo.get("apps/v1", "Deployment", "demo"))["spec"]["replicas"] == 3)

        await octavo.until(applied, 60)
        assert await exists(octavo, "Service")


async def test_a_key_that_always_fails_holds_up_no_other(
    control_plane: ControlPlane, octavo: Kube, faults: Faults
) -> None:
    for k in range(1, 40):
        faults.fail_write(k, 500, match=lambda record: record.name == "bad")
    async with operating(control_plane, octavo.namespace, workers=1):
        await octavo.create(llm_deployment("bad"))
        await octavo.create(llm_deployment("good"))
        await until_both(octavo, "good")
        assert not await exists(octavo, "Deployment", "bad")


async def test_probes_and_metrics_are_served(control_plane: ControlPlane, octavo: Kube) -> None:
    async with operating(control_plane, octavo.namespace, probe_port=0) as running, aiohttp.ClientSession() as session:

        async def leading() -> bool:
            return running.is_leading

        await octavo.until(leading)
        base = f"http://127.0.0.1:{running.operator.probe_port}"
        for path, text in (("/healthz", "ok"), ("/readyz", "ok"), ("/metrics", "octavo_operator_leading 1.0")):
            async with session.get(base + path) as answer:
                assert answer.status == 200 and text in await answer.text()


async def test_an_operator_that_has_no_api_server_yet_waits_and_is_not_ready(
    control_plane: ControlPlane, octavo: Kube, faults: Faults
) -> None:
    with faults.unreachable():
        async with (
            operating(control_plane, octavo.namespace, probe_port=0) as running,
            aiohttp.ClientSession() as session,
        ):

            async def serving() -> bool:
                return running.operator.probe_port is not None

            await octavo.until(serving)
            async with session.get(f"http://127.0.0.1:{running.operator.probe_port}/readyz") as answer:
                assert answer.status == 503


def in_a_process(plane: ControlPlane, namespace: str) -> subprocess.Popen[str]:
    """An operator as `octavo operator` runs it, with a Lease of two seconds."""
    code = f"""
import sys
from pathlib import Path
from octavo_operator.main import run_operator
from octavo_operator.settings import OperatorSettings
sys.exit(run_operator(OperatorSettings(
    namespaces=({namespace!r},), lease_namespace={namespace!r}, lease_seconds=(2.0, 1.5, 0.2), probe_port=None,
    default_image="image", kubeconfig=Path({str(plane.kubeconfig)!r}))))
"""
    return subprocess.Popen([sys.executable, "-c", code], text=True, stderr=subprocess.PIPE)


async def leader(kube: Kube) -> str:
    lease = await kube.find("coordination.k8s.io/v1", "Lease", "octavo-operator")
    return str(lease["spec"].get("holderIdentity") or "") if lease else ""


async def until_led_by_another(kube: Kube, than: str) -> str:
    async def led() -> str:
        now = await leader(kube)
        return now if now != than else ""

    return await kube.until(led, 60, "another leader")


async def test_a_second_operator_takes_over_from_one_that_is_told_to_stop_and_from_one_that_is_killed(
    control_plane: ControlPlane, octavo: Kube
) -> None:
    processes: list[subprocess.Popen[str]] = []
    try:
        processes.append(in_a_process(control_plane, octavo.namespace))
        first = await until_led_by_another(octavo, "")
        processes.append(in_a_process(control_plane, octavo.namespace))
        await octavo.create(llm_deployment("one"))
        await until_both(octavo, "one")
        assert await leader(octavo) == first
        processes[0].send_signal(signal.SIGTERM)
        second = await until_led_by_another(octavo, first)
        assert await asyncio.to_thread(processes[0].wait, 20) == 0
        await octavo.create(llm_deployment("two"))
        await until_both(octavo, "two")
        processes.append(in_a_process(control_plane, octavo.namespace))
        processes[1].kill()
        await until_led_by_another(octavo, second)
        await octavo.create(llm_deployment("three"))
        await until_both(octavo, "three")
    finally:
        for process in processes:
            process.kill()
            process.communicate()


async def test_an_operator_that_was_stopped_for_longer_than_its_lease_writes_nothing_more(
    control_plane: ControlPlane, octavo: Kube, faults: Faults
) -> None:
    """As on a machine that slept: what waited to be read would have it act, before any timer has gone off."""
    process = in_a_process(control_plane, octavo.namespace)
    try:
        made = [await octavo.create(llm_deployment(f"model-{index}")) for index in range(5)]
        for each in made:
            await until_both(octavo, each["metadata"]["name"])
        await octavo.until(lambda: still(octavo), what="nothing more to be written")
        process.send_signal(signal.SIGSTOP)
        for each in made:
            await octavo.patch(each, {"spec": {"replicas": 2}})
        await asyncio.sleep(2.0)  # what its Lease is good for
        faults.reset()
        process.send_signal(signal.SIGCONT)
        assert await asyncio.to_thread(process.wait, 30) == 1
        assert faults.writes() == []
    finally:
        process.kill()
        process.communicate()


async def still(kube: Kube) -> bool:
    before = [each["metadata"]["resourceVersion"] for each in await kube.list(API, KIND)]
    await asyncio.sleep(1.0)
    return before == [each["metadata"]["resourceVersion"] for each in await kube.list(API, KIND)]
