"""Accounts that may do no more than some rules say, to try what that is enough for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kube_fixture import ControlPlane, Kube

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
