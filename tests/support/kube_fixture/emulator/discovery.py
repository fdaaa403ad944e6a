"""Which resources there are: what clients read before anything else."""

from __future__ import annotations

from collections.abc import Collection

from kube_fixture.emulator.errors import ApiError
from kube_fixture.emulator.resources import Object, Resource

VERSION = {"major": "1", "minor": "36", "gitVersion": "v1.36.0-emulator", "platform": "linux/amd64"}
VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


def discovery(path: str, known: Collection[Resource]) -> Object:
    """The answer to a path that names no resource. Raises ApiError 404."""
    parts = path.strip("/").split("/")
    if path in {"/readyz", "/livez", "/healthz"}:
        return {"status": "ok"}
    if parts == ["version"]:
        return VERSION
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    groups = [_group(name, known) for name in sorted({resource.group for resource in known} - {""})]
    if parts == ["apis"]:
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    for group in groups:
        if parts == ["apis", group["name"]]:
            return {"kind": "APIGroup", "apiVersion": "v1", **group}
    api_version = "/".join(parts[1:])
    served = [_described(resource) for resource in known if resource.api_version == api_version]
    if not served or parts[0] not in {"api", "apis"}:
        raise ApiError(404, "NotFound", "the server could not find the requested resource")
    entries = [entry for listed in served for entry in listed]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": entries}


def _group(name: str, known: Collection[Resource]) -> Object:
    versions = [{"groupVersion": f"{name}/{version}", "version": version} for version in _versions(name, known)]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def _versions(group: str, known: Collection[Resource]) -> list[str]:
    return list(dict.fromkeys(resource.version for resource in known if resource.group == group))


def _described(resource: Resource) -> list[Object]:
    entry = {
        "name": resource.plural,
        "singularName": resource.kind.lower(),
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": VERBS,
        "shortNames": list(resource.short_names),
    }
    subs: list[Object] = []
    for sub in resource.subresources:
        scale = {"group": "autoscaling", "version": "v1", "kind": "Scale"} if sub == "scale" else {}
        verbs = {"name": f"{resource.plural}/{sub}", "singularName": "", "verbs": ["get", "patch", "update"]}
        subs.append({"namespaced": resource.namespaced, "kind": resource.kind, **verbs, **scale})
    return [entry, *subs]
