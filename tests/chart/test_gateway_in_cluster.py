"""The gateway of the chart against a real API server: its command line, its account, and what it asks for."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from accounts import kubeconfig_of, rbac_verbs
from kube_fixture import ControlPlane, Faults, Kube
from least_role import GATEWAY_RULES
from llm_deployments import llm_deployment
from octavo_chart import COMBINATIONS, Object, Values, of_kind, part, render, the_one
from octavo_common.names import DEPLOYMENT_LABEL
from octavo_operator.api.crd import custom_resource_definition

pytestmark = pytest.mark.real

KEY = "sk-of-a-client"
GRANTS = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")


@pytest.mark.parametrize("scope", ["Namespace", "Cluster"])
async def test_it_finds_models_and_pods_by_the_rights_that_the_chart_grants_and_uses_each(
    scope: str, control_plane: ControlPlane, kube: Kube, faults: Faults, tmp_path: Path
) -> None:
    await kube.install_crd(custom_resource_definition())
    values: Values = {"scope": scope, "gateway": COMBINATIONS["gateway"]["gateway"]}
    objects = part(render(values, kube.namespace, "octavo"), "gateway")
    granted = [each for each in objects if each["kind"] in GRANTS]
    for each in granted:
        await kube.apply(each)
    account = the_one(granted, "ServiceAccount")["metadata"]["name"]
    config = await kubeconfig_of(kube, control_plane, account, tmp_path, recorded=True)
    try:
        async with running(objects, config, tmp_path) as (url, admin), aiohttp.ClientSession() as client:
            await until_ready(client, admin)
            await kube.create(llm_deployment())
            await until_listed(client, url, "demo")
            await kube.create(slice_of(kube.namespace))
            await until_told(client, admin, 'octavo:gateway_replicas{model="demo",state="taken"} 1.0')
            async with client.get(f"{url}/v1/models") as answer:
                assert answer.status == 401, "nobody is served without a key"
    finally:
        for each in granted:
            if each["kind"].startswith("Cluster"):
                await kube.delete(each)
    ours = [record for record in faults.requests if record.user_agent == "octavo-gateway"]
    assert {record.status for record in ours} <= {200, None}, "None: a watch that was open at the end"
    used = {verb for record in ours for verb in rbac_verbs(record)}
    rules = [(rule["apiGroups"][0], rule["resources"][0], verb) for rule in GATEWAY_RULES for verb in rule["verbs"]]
    assert used == set(rules)


@pytest.mark.parametrize(
    ("group", "resource", "verb", "allowed"),
    [
        ("discovery.k8s.io", "endpointslices", "watch", True),
        ("octavo.dev", "llmdeployments", "list", True),
        ("discovery.k8s.io", "endpointslices", "create", False),
        ("octavo.dev", "llmdeployments", "patch", False),
        ("", "secrets", "get", False),
        ("", "pods", "list", False),
        ("", "services", "list", False),
        ("coordination.k8s.io", "leases", "update", False),
    ],
)
async def test_its_account_may_do_nothing_else(
    kube: Kube, group: str, resource: str, verb: str, *, allowed: bool
) -> None:
    objects = part(render(COMBINATIONS["gateway"], kube.namespace, "octavo"), "gateway")
    for each in of_kind(objects, "Role") + of_kind(objects, "RoleBinding") + of_kind(objects, "ServiceAccount"):
        await kube.apply(each)
    user = f"system:serviceaccount:{kube.namespace}:{the_one(objects, 'ServiceAccount')['metadata']['name']}"
    attributes = {"namespace": kube.namespace, "group": group, "resource": resource, "verb": verb}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {"name": ""}}

    async def answered() -> bool:
        told = await kube.create(review | {"spec": {"user": user, "resourceAttributes": attributes}})
        return bool(told["status"]["allowed"])

    if allowed:  # the API server learns of a Role a moment later
        await kube.until(answered, 30, "the Role to count")
    else:
        assert not await answered()
        elsewhere = attributes | {"namespace": "kube-system", "resource": "endpointslices", "verb": "list"}
        told = await kube.create(review | {"spec": {"user": user, "resourceAttributes": elsewhere}})
        assert not told["status"]["allowed"]


def slice_of(namespace: str) -> Object:
    """A pod, as the cluster's own controller would tell of it."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "demo-1", "namespace": namespace, "labels": {DEPLOYMENT_LABEL: "demo"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8000, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": True}}],
    }


@contextlib.asynccontextmanager
async def running(objects: list[Object], kubeconfig: Path, folder: Path) -> AsyncIterator[tuple[str, str]]:
    """The chart's own command line as a process: its Secrets are directories here, its ports any that are free.

    Yields the URLs of its two ports.
    """
    (container,) = the_one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    secrets = folder / "octavo"
    (secrets / "api-keys").mkdir(parents=True)
    (secrets / "api-keys" / "client").write_text(KEY)
    (secrets / "replica-key").mkdir()
    for name, text in the_one(objects, "Secret")["data"].items():
        (secrets / "replica-key" / name).write_bytes(base64.b64decode(text))
    changed = {"--host": "127.0.0.1", "--port": "0", "--admin-port": "0", "--log-level": "info"}
    flags = [argument.partition("=") for argument in container["args"]]
    arguments = [f"{flag}{equals}{changed.get(flag, value)}" for flag, equals, value in flags]
    arguments = [argument.replace("/octavo/", f"{secrets}/") for argument in arguments]
    command = [sys.executable, "-m", "octavo_cli", *container["command"][1:], *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, "--kubeconfig", str(kubeconfig), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        admin = ""
        while not admin:
            line = (await process.stderr.readline()).decode()
            assert line, "it ended"
            admin = line.partition("the admin port is ")[2].strip()
        listening = (await process.stdout.readline()).decode()
        yield listening.split()[-1], admin
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def until_ready(client: aiohttp.ClientSession, admin: str) -> None:
    while True:
        async with client.get(f"{admin}/ready") as answer:
            if answer.status == 200:
                return
        await asyncio.sleep(0.05)


async def until_listed(client: aiohttp.ClientSession, url: str, model: str) -> None:
    while True:
        async with client.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {KEY}"}) as answer:
            assert answer.status == 200
            if model in [each["id"] for each in (await answer.json())["data"]]:
                return
        await asyncio.sleep(0.05)


async def until_told(client: aiohttp.ClientSession, admin: str, sample: str) -> None:
    """In the metrics, which need no key there."""
    while True:
        async with client.get(f"{admin}/metrics") as answer:
            if sample in (await answer.text()).splitlines():
                return
        await asyncio.sleep(0.05)
