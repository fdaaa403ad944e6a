"""GitOps and the operator do not fight: what Git says stays as it is, for either way of applying it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from argo_health import health
from kube_fixture import ControlPlane, Kube, add_node, run_deployment
from llm_deployments import API, KIND, operating, until_condition
from octavo_operator.api.crd import custom_resource_definition

KUBECTL = shutil.which("kubectl")
MANAGER = "argocd-controller"
WAYS = {
    "server-side": ["--server-side", f"--field-manager={MANAGER}"],
    "client-side": [f"--field-manager={MANAGER}"],
}
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BASE = EXAMPLES / "gitops" / "kustomize" / "base" / "llmdeployment.yaml"
DEMO = EXAMPLES / "llmdeployment.yaml"
FILES = [BASE, *sorted(EXAMPLES.glob("*.yaml"))]

pytestmark = [pytest.mark.real, pytest.mark.skipif(KUBECTL is None, reason="needs kubectl")]


class Git:
    """What a GitOps tool does with a manifest, by kubectl: apply it, and tell whether the cluster differs from it."""

    def __init__(self, plane: ControlPlane, namespace: str, file: Path, way: str) -> None:
        self._base = [str(KUBECTL), f"--kubeconfig={plane.direct_kubeconfig}", f"--namespace={namespace}"]
        self._arguments = [*WAYS[way], f"--filename={file}"]

    async def apply(self) -> None:
        code, said = await self._run("apply", *self._arguments)
        assert code == 0, said

    async def differs(self) -> str:
        """The difference as a diff, empty where there is none.

        Asked again where there is one: kubectl reads twice, and a status may change in between.
        """
        said = ""
        for _ in range(4):
            code, said = await self._run("diff", *self._arguments)
            assert code in {0, 1}, said
            if not code:
                return ""
        return said

    async def scale(self, name: str, replicas: int) -> None:
        code, said = await self._run("scale", f"llmd/{name}", f"--replicas={replicas}")
        assert code == 0, said

    async def _run(self, *arguments: str) -> tuple[int, str]:
        streams = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
        process = await asyncio.create_subprocess_exec(*self._base, *arguments, **streams)
        said, _ = await process.communicate()
        return process.returncode or 0, said.decode()


@pytest.fixture
async def octavo(kube: Kube) -> AsyncIterator[Kube]:
    """With our CRD, and a node that has what the examples ask for."""
    await kube.install_crd(custom_resource_definition())
    labels = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    node = await add_node(kube, f"node-{kube.namespace}", labels=labels)
    yield kube
    await kube.delete(node)


async def seen(kube: Kube, name: str) -> bool:
    live = await kube.get(API, KIND, name)
    return live.get("status", {}).get("observedGeneration", 0) == live["metadata"]["generation"]


@pytest.mark.parametrize("way", WAYS)
async def test_nothing_that_the_operator_does_differs_from_git(
    way: str, control_plane: ControlPlane, octavo: Kube, tmp_path: Path
) -> None:
    merged = tmp_path / "manifests.yaml"
    manifests = [yaml.safe_load(file.read_text()) for file in FILES]
    for number, manifest in enumerate(manifests):
        manifest["metadata"]["name"] += f"-{number}"
    merged.write_text(yaml.safe_dump_all(manifests))
    names = [manifest["metadata"]["name"] for manifest in manifests]
    demo = names[FILES.index(DEMO)]
    git = Git(control_plane, octavo.namespace, merged, way)
    await git.apply()
    assert health(await octavo.get(API, KIND, demo))["status"] == "Progressing"
    async with operating(control_plane, octavo.namespace):
        for name in names:
            await octavo.until(lambda name=name: seen(octavo, name), 30, f"a status of {name}")
        assert await git.differs() == ""
        await run_deployment(octavo, control_plane, demo, on_nodes=False)
        await until_condition(octavo, "Ready", "True", demo)
        assert await git.differs() == ""
        before = await octavo.get(API, KIND, demo)
        assert health(before)["status"] == "Healthy"
        await git.apply()
        after = await octavo.get(API, KIND, demo)
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    of_the_operator = [each for each in after["metadata"]["managedFields"] if each["manager"] == "octavo-operator"]
    assert [(each.get("subresource"), list(each["fieldsV1"])) for each in of_the_operator] == [("status", ["f:status"])]


@pytest.mark.parametrize("way", WAYS)
async def test_replicas_that_git_leaves_out_belong_to_whoever_scales(
    way: str, control_plane: ControlPlane, octavo: Kube
) -> None:
    git = Git(control_plane, octavo.namespace, BASE, way)
    await git.apply()
    async with operating(control_plane, octavo.namespace):
        await until_condition(octavo, "Progressing", "True", "llama-8b")
        await git.scale("llama-8b", 3)

        async def scaled() -> bool:
            return bool((await octavo.get("apps/v1", "Deployment", "llama-8b"))["spec"]["replicas"] == 3)

        await octavo.until(scaled, 30, "three replicas")
        assert await git.differs() == ""
        await git.apply()
        assert (await octavo.get(API, KIND, "llama-8b"))["spec"]["replicas"] == 3
