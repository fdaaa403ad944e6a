"""CustomResourceDefinitions that clusters may have or lack.

They keep what is sent, but for InferencePool, whose spec is checked by the rules of the published API, said anew.
"""

from __future__ import annotations

from typing import Any, Final

from kube_fixture import Kube

OPTIONAL: Final = (("monitoring.coreos.com", "PodMonitor"), ("inference.networking.k8s.io", "InferencePool"))
"""(group, kind) of those that the operator can render."""


def definition(group: str, kind: str) -> dict[str, Any]:
    """The definition of `kind`, version v1, in `group`."""
    plural = f"{kind.lower()}s"
    spec: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    if kind == "InferencePool":
        spec = _inference_pool()
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        # Groups below k8s.io are guarded: their definitions must say who approved them.
        "metadata": {"name": f"{plural}.{group}", "annotations": {"api-approved.kubernetes.io": "unapproved, a test"}},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }


def _inference_pool() -> dict[str, Any]:
    """Facts of inference.networking.k8s.io/v1 (Gateway API Inference Extension): names, bounds, defaults, its CEL."""

    def text(most: int, **more: Any) -> dict[str, Any]:
        return {"type": "string", "maxLength": most} | more

    def struct(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": list(required)} | more

    port = struct({"number": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535}}, "number")
    unique = "self.all(a, self.filter(b, b.number == a.number).size() == 1)"
    ports: dict[str, Any] = {"type": "array", "items": port, "minItems": 1, "maxItems": 8}
    ports |= {"x-kubernetes-list-type": "atomic", "x-kubernetes-validations": [{"rule": unique}]}
    picker = {
        "group": text(253, default=""),
        "kind": text(63, minLength=1, default="Service"),
        "name": text(253, minLength=1),
        "port": port,
        "failureMode": {"type": "string", "enum": ["FailOpen", "FailClose"], "default": "FailClose"},
    }
    needs_port = {"rule": "self.kind != 'Service' || has(self.port)", "message": "a Service needs a port"}
    labels = {"type": "object", "additionalProperties": text(63)}
    return struct(
        {
            "selector": struct({"matchLabels": labels}, "matchLabels"),
            "targetPorts": ports,
            "appProtocol": {"type": "string", "enum": ["http", "kubernetes.io/h2c"]},
            "endpointPickerRef": struct(picker, "name", **{"x-kubernetes-validations": [needs_port]}),
        },
        *("selector", "targetPorts", "endpointPickerRef"),
    )


async def remove(kube: Kube, crd: dict[str, Any]) -> None:
    """Delete a definition, and wait until its group is listed no more: a client that looks it up would fail."""
    await kube.delete(crd)

    async def unlisted() -> bool:
        groups = (await kube._send("get", "/apis"))["groups"]
        return crd["spec"]["group"] not in {each["name"] for each in groups}

    await kube.until(unlisted, 30, f"{crd['spec']['group']} to be listed no more")
