"""The resources that the emulator knows from the start, and those that a CustomResourceDefinition adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jsonschema

from kube_fixture.emulator.schema import validator

Object = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """What distinguishes one resource from another for discovery and for a write."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = False
    """has a /status subresource"""
    generation: bool = False
    unconditional_update: bool = True
    """a PUT without resourceVersion is taken"""
    short_names: tuple[str, ...] = ()
    custom: bool = False
    schema: Mapping[str, Any] | None = None
    scale: Mapping[str, str] | None = None

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def key(self) -> tuple[str, str]:
        return self.group, self.plural

    @property
    def qualified_name(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @cached_property
    def validator(self) -> jsonschema.Draft202012Validator:
        return validator(self.schema or {})

    @property
    def subresources(self) -> list[str]:
        return ["status"] * self.status + ["scale"] * (self.scale is not None)


CRD = Resource(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    namespaced=False,
    status=True,
    generation=True,
    unconditional_update=False,
    short_names=("crd",),
)

BUILT_IN = (
    Resource("", "v1", "namespaces", "Namespace", namespaced=False, status=True, short_names=("ns",)),
    Resource("", "v1", "nodes", "Node", namespaced=False, status=True, short_names=("no",)),
    Resource("", "v1", "pods", "Pod", status=True, generation=True, short_names=("po",)),
    Resource("", "v1", "services", "Service", status=True, short_names=("svc",)),
    Resource("", "v1", "configmaps", "ConfigMap", short_names=("cm",)),
    Resource("", "v1", "serviceaccounts", "ServiceAccount", short_names=("sa",)),
    Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", status=True, short_names=("pvc",)),
    Resource("", "v1", "events", "Event", short_names=("ev",)),
    Resource("events.k8s.io", "v1", "events", "Event", short_names=("ev",)),
    Resource("apps", "v1", "deployments", "Deployment", status=True, generation=True, short_names=("deploy",)),
    Resource("batch", "v1", "jobs", "Job", status=True, generation=True),
    Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", generation=True, short_names=("netpol",)),
    Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", status=True, generation=True),
    Resource("coordination.k8s.io", "v1", "leases", "Lease", unconditional_update=False),
    CRD,
)


def defined_by(crd: Object) -> Iterator[Resource]:
    """The resources that a CustomResourceDefinition serves, one for each served version."""
    spec = crd["spec"]
    for version in spec["versions"]:
        if version.get("served", True):
            subresources = version.get("subresources", {})
            yield Resource(
                spec["group"],
                version["name"],
                spec["names"]["plural"],
                spec["names"]["kind"],
                namespaced=spec["scope"] == "Namespaced",
                status="status" in subresources,
                generation=True,
                unconditional_update=False,
                short_names=tuple(spec["names"].get("shortNames", ())),
                custom=True,
                schema=version.get("schema", {}).get("openAPIV3Schema"),
                scale=subresources.get("scale"),
            )
