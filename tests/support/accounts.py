"""Accounts that may do no more than some rules say, to try what that is enough for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from kubernetes.aio.client import CoreV1Api

from kube_fixture import ControlPlane, Kube
from kube_fixture.faults import RequestRecord

Object = dict[str, Any]


async def service_account(kube: Kube, rules: list[Object]) -> str:
    """A token for an account that these rules, in this namespace, are all that it may do."""
    rbac = "rbac.authorization.k8s.io"
    await kube.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator"}})
    await kube.create({"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": "operator"}, "rules": rules})
    binding = {
        "apiVersion": f"{rbac}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "operator"},
        "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": kube.namespace}],
    }
    await kube.create(binding)
    path = f"/api/v1/namespaces/{kube.namespace}/serviceaccounts/operator/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = await kube._send("post", path, request)
    token: str = answer["status"]["token"]
    return token


def kubeconfig_for(plane: ControlPlane, token: str, path: Path) -> Path:
    document = yaml.safe_load(plane.direct_kubeconfig.read_text())
    document["users"][0]["user"] = {"token": token}
    path.write_text(yaml.safe_dump(document))
    return path


async def kubeconfig_of(kube: Kube, plane: ControlPlane, account: str, folder: Path, *, recorded: bool = False) -> Path:
    """A kubeconfig with a token of the ServiceAccount and nothing else; `recorded`: by the road that faults are on."""
    request: Any = {"spec": {"expirationSeconds": 3600}}
    answer: Any = await CoreV1Api(kube.api).create_namespaced_service_account_token(account, kube.namespace, request)
    document: Object = yaml.safe_load((plane.kubeconfig if recorded else plane.direct_kubeconfig).read_text())
    document["users"][0]["user"] = {"token": answer.status.token}
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(document))
    return file


def rbac_verbs(record: RequestRecord) -> list[tuple[str, str, str]]:
    """(group, resource, verb) of a request; none for discovery, which everybody may ask for."""
    parts = record.path.strip("/").split("/")
    if not record.plural:
        return []
    group = "" if parts[0] == "api" else parts[1]
    resource = f"{record.plural}/{record.subresource}" if record.subresource else record.plural
    if record.method == "GET":
        return [(group, resource, "watch" if record.watch else "get" if record.name else "list")]
    verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[record.method]
    # An apply that makes an object has to be allowed to create, too.
    return [(group, resource, each) for each in {verb, "create" if record.status == 201 else verb}]
