"""The /scale subresource: one number of an object, in a shape that is the same for all."""

from __future__ import annotations

from typing import Any

from kube_fixture.emulator.resources import Object, Resource

IDENTITY = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")


def scale_of(resource: Resource, held: Object) -> Object:
    """The Scale of an object."""
    paths = resource.scale or {}
    status = {"replicas": _at(held, paths["statusReplicasPath"]) or 0}
    if "labelSelectorPath" in paths:
        status["selector"] = _at(held, paths["labelSelectorPath"]) or ""
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: held["metadata"][name] for name in IDENTITY if name in held["metadata"]},
        "spec": {"replicas": _at(held, paths["specReplicasPath"]) or 0},
        "status": status,
    }


def scaled(resource: Resource, held: Object, scale: Object) -> Object:
    """The object with the number of replicas, and the version to be checked, of a Scale."""
    *parents, last = (resource.scale or {})["specReplicasPath"].strip(".").split(".")
    version = scale.get("metadata", {}).get("resourceVersion") or held["metadata"]["resourceVersion"]
    new = {**held, "metadata": {**held["metadata"], "resourceVersion": version}}
    inner = new
    for name in parents:
        inner[name] = dict(inner.get(name) or {})
        inner = inner[name]
    inner[last] = scale.get("spec", {}).get("replicas", 0)
    return new


def _at(held: Object, path: str) -> Any:
    found: Any = held
    for name in path.strip(".").split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found
