"""The clients that the operator is made of, and kubectl, work against every control plane."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import kopf
import pytest

from kube_fixture import ControlPlane, Faults, Kube, add_node, run_deployment, set_pod_ready
from kube_fixture.widget import GROUP, Widget

pytestmark = pytest.mark.every_control_plane
Object = dict[str, Any]


class Operator:
    """A kopf operator over the widgets of one namespace that notes what it is told."""

    def __init__(self, namespace: str) -> None:
        self.seen: Counter[tuple[str | None, str]] = Counter()
        self._namespace = namespace
        self._registry = kopf.OperatorRegistry()
        self._ready, self._stop = asyncio.Event(), asyncio.Event()

        @kopf.on.startup(registry=self._registry)
        def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
            settings.posting.enabled = False
            settings.scanning.disabled = True
            settings.watching.reconnect_backoff = 0.1
            settings.networking.error_backoffs = [0.1, 0.2, 0.5]

        @kopf.on.login(registry=self._registry)
        def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo | None:
            return kopf.login_with_kubeconfig(settings=settings)

        @kopf.on.event(GROUP, "v1", "widgets", registry=self._registry)
        def note(type: str | None, name: str | None, **_: Any) -> None:
            self.seen[type, str(name)] += 1

    async def __aenter__(self) -> Operator:
        self._task = asyncio.create_task(
            kopf.operator(
                registry=self._registry,
                namespaces=[self._namespace],
                standalone=True,
                ready_flag=self._ready,
                stop_flag=self._stop,
            )
        )
        await asyncio.wait_for(self._ready.wait(), 20)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.wait_for(self._task, 20)


async def test_kopf_sees_what_happens_and_not_what_vanished_meanwhile(
    control_plane: ControlPlane, kube: Kube, widget: Widget, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    early = await kube.create(widget("early"))
    async with Operator(kube.namespace) as operator:

        async def saw(kind: str | None, name: str) -> None:
            async def check() -> bool:
                return operator.seen[kind, name] > 0

            await kube.until(check, what=f"{kind} {name}")

        await saw(None, "early")
        late = await kube.create(widget("late"))
        await saw("ADDED", "late")
        await kube.patch(late, {"spec": {"size": 4}})
        await saw("MODIFIED", "late")
        await kube.delete(late)
        await saw("DELETED", "late")
        with faults.watches_down():
            await kube.delete(early)
        await kube.create(widget("after"))
        await kube.until(lambda: _any(operator.seen, "after"), what="the object made after the watch broke")
        assert operator.seen["DELETED", "early"] == 0
    assert faults.writes() == []


async def _any(seen: Counter[tuple[str | None, str]], name: str) -> bool:
    return any(found == name for _, found in seen)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
async def test_kubectl_applies_and_reads(control_plane: ControlPlane, kube: Kube, widget: Widget) -> None:
    async def kubectl(*arguments: str, stdin: Object | None = None) -> Object:
        command = ["kubectl", "--kubeconfig", str(control_plane.kubeconfig), "-n", kube.namespace, *arguments]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
        out, err = await process.communicate(json.dumps(stdin).encode() if stdin else None)
        assert process.returncode == 0, err.decode()
        answer: Object = json.loads(out)
        return answer

    applied = await kubectl("apply", "--server-side", "--validate=false", "-ojson", "-f-", stdin=widget(mode="Fast"))
    assert applied["spec"] == {"size": 3, "replicas": 1, "mode": "Fast"}
    listed = await kubectl("get", f"widgets.{GROUP}", "-ojson")
    assert [held["metadata"]["uid"] for held in listed["items"]] == [applied["metadata"]["uid"]]


@pytest.fixture
async def node(kube: Kube) -> AsyncIterator[str]:
    made = await add_node(kube, f"node-{kube.namespace}")
    yield made["metadata"]["name"]
    await kube.delete(made)


async def test_a_deployment_is_run(control_plane: ControlPlane, kube: Kube, node: str) -> None:
    labels = {"app": "d"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec = {"replicas": 3, "selector": {"matchLabels": labels}, "template": template}
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec}
    made = await kube.apply(body)
    for target in (1, 3):
        run = await run_deployment(kube, control_plane, "d", ready=target)
        assert run["status"]["readyReplicas"] == target and run["status"]["replicas"] == 3
    pods = await kube.list("v1", "Pod", labels="app=d")
    assert len(pods) == 3 and all(pod["metadata"]["ownerReferences"] for pod in pods)
    if control_plane.has_scheduler and control_plane.kind != "kubeconfig":
        # Of pods that have a node the scheduler has no more to say.
        assert {pod["spec"]["nodeName"] for pod in pods} == {node}
    await kube.apply({**body, "spec": {**spec, "replicas": 1}})
    assert (await run_deployment(kube, control_plane, "d"))["status"]["readyReplicas"] == 1
    assert len(await kube.list("v1", "Pod", labels="app=d")) == 1
    assert (await kube.get("apps/v1", "Deployment", "d"))["metadata"]["uid"] == made["metadata"]["uid"]


async def test_a_pod_can_be_ready_and_not(kube: Kube) -> None:
    spec = {"containers": [{"name": "c", "image": "i"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
    made = await kube.create(pod)
    for ready in (True, False):
        status = (await set_pod_ready(kube, made, ready=ready))["status"]
        conditions = {each["type"]: each["status"] for each in status["conditions"]}
        assert conditions["Ready"] == str(ready) and status["containerStatuses"][0]["ready"] is ready
