"""What only real binaries do, and that they leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException

from kube_fixture import GPU, ControlPlane, Kube, add_node, find_assets
from kube_fixture.real import DEFAULT_ASSETS
from kube_fixture.widget import GROUP, Widget

pytestmark = pytest.mark.real
Object = dict[str, Any]


def pod(name: str, gpus: int = 0, **metadata: Any) -> Object:
    limits = {"resources": {"limits": {GPU: str(gpus)}}} if gpus else {}
    spec = {"containers": [{"name": "c", "image": "i", **limits}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **metadata}, "spec": spec}


async def test_children_are_collected(control_plane: ControlPlane, kube: Kube, widget: Widget) -> None:
    if not control_plane.has_controller_manager:
        pytest.skip("there is no kube-controller-manager")
    owner = await kube.create(widget())
    reference = {"apiVersion": f"{GROUP}/v1", "kind": "Widget", "name": "w", "uid": owner["metadata"]["uid"]}
    child = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "ownerReferences": [reference]}}
    await kube.create(child)
    await kube.delete(owner)

    async def gone() -> bool:
        return await kube.find("v1", "ConfigMap", "c") is None

    await kube.until(gone, timeout=60, what="the child to be collected")


async def test_pods_are_bound_to_nodes_with_enough_accelerators(control_plane: ControlPlane, kube: Kube) -> None:
    if not control_plane.has_scheduler or control_plane.kind == "kubeconfig":
        pytest.skip("there is no kube-scheduler of the fixture's own")
    node = await add_node(kube, f"gpu-{secrets.token_hex(3)}", gpus=2)
    try:
        await kube.create(pod("fits", gpus=2))

        async def bound() -> bool:
            return bool((await kube.get("v1", "Pod", "fits"))["spec"].get("nodeName") == node["metadata"]["name"])

        await kube.until(bound, what="the pod to be bound")
        await kube.create(pod("waits", gpus=1))

        async def unschedulable() -> bool:
            conditions = (await kube.get("v1", "Pod", "waits"))["status"].get("conditions", [])
            return any(each.get("reason") == "Unschedulable" for each in conditions)

        await kube.until(unschedulable, what="the other pod to be refused")
    finally:
        await kube.delete(node)


async def test_pod_security_is_enforced(kube: Kube) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": kube.namespace}}
    restricted = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await kube.patch(namespace, restricted)
    with pytest.raises(ApiException) as error:
        await kube.create(pod("p"))
    assert error.value.status == 403 and "violates PodSecurity" in str(error.value.body)


async def test_a_killed_session_leaves_no_process(kube: Kube, tmp_path: Path) -> None:
    if find_assets() is None:
        pytest.skip("there are no binaries")
    program = (
        "import sys; from kube_fixture import start;"
        "print(start('real').direct_kubeconfig.parent, flush=True); sys.stdin.read()"
    )
    support = Path(__file__).parents[1] / "support"
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        env={**os.environ, "PYTHONPATH": str(support), "TMPDIR": str(tmp_path)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    folder = (await asyncio.wait_for(child.stdout.readline(), 120)).decode().strip()
    assert folder.startswith(str(tmp_path)) and len(_running_with(folder)) >= 2
    child.send_signal(signal.SIGKILL)
    await child.wait()

    async def nothing_left() -> bool:
        return not _running_with(folder)

    await kube.until(nothing_left, what="its processes to end")


def _running_with(folder: str) -> list[str]:
    """The processes that have `folder` in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if folder in command:
            found.append(command)
    return found


def test_the_binaries_are_looked_for_where_they_are_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert find_assets() is None
    monkeypatch.delenv("KUBEBUILDER_ASSETS")
    assert find_assets() in {None, DEFAULT_ASSETS}
