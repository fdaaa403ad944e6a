"""CustomResourceDefinitions that clusters may have or lack, with no schema to speak of: what is sent is kept."""

from __future__ import annotations

from typing import Any, Final

from kube_fixture import Kube

OPTIONAL: Final = (("monitoring.coreos.com", "PodMonitor"), ("inference.networking.k8s.io", "InferencePool"))
"""(group, kind) of those that the operator can render."""


def definition(group: str, kind: str) -> dict[str, Any]:
    """The definition of `kind`, version v1, in `group`."""
    plural = f"{kind.lower()}s"
    spec = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
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


async def remove(kube: Kube, crd: dict[str, Any]) -> None:
    """Delete a definition, and wait until its group is listed no more: a client that looks it up would fail."""
    await kube.delete(crd)

    async def unlisted() -> bool:
        groups = (await kube._send("get", "/apis"))["groups"]
        return crd["spec"]["group"] not in {each["name"] for each in groups}

    await kube.until(unlisted, 30, f"{crd['spec']['group']} to be listed no more")
