"""The rights that the operator needs, and not a verb more: what the chart must grant, and what a test works with."""

from typing import Any

Rule = dict[str, Any]

RULES: list[Rule] = [
    {"apiGroups": ["octavo.dev"], "resources": ["llmdeployments"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["octavo.dev"], "resources": ["llmdeployments/status"], "verbs": ["patch"]},
    {"apiGroups": ["octavo.dev"], "resources": ["llmdeployments/finalizers"], "verbs": ["update"]},
    # delete: what a spec asks for no more; and OwnerReferencesPermissionEnforcement asks it of who gives an object that
    # exists an owner.
    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list", "watch", "create", "patch", "delete"]},
    {"apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch", "create", "patch", "delete"]},
    {
        "apiGroups": [""],
        "resources": ["persistentvolumeclaims"],
        "verbs": ["list", "watch", "create", "patch", "delete"],
    },
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "watch", "create", "patch", "delete"]},
    {
        "apiGroups": ["policy"],
        "resources": ["poddisruptionbudgets"],
        "verbs": ["list", "watch", "create", "patch", "delete"],
    },
    {
        "apiGroups": ["networking.k8s.io"],
        "resources": ["networkpolicies"],
        "verbs": ["list", "watch", "create", "patch", "delete"],
    },
    {
        "apiGroups": ["monitoring.coreos.com"],
        "resources": ["podmonitors"],
        "verbs": ["list", "watch", "create", "patch", "delete"],
    },
    {
        "apiGroups": ["inference.networking.k8s.io"],
        "resources": ["inferencepools"],
        "verbs": ["list", "watch", "create", "patch", "delete"],
    },
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "patch"]},
    # patch: one that is told again is counted.
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
]
# In the operator's own namespace alone.
LEASE_RULES: list[Rule] = [
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": ["octavo-operator"],
        "verbs": ["get", "update"],
    },
    # Gateways run beside the operator, which asks them for the load.
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
]
# The gateway's, where models are.
GATEWAY_RULES: list[Rule] = [
    {"apiGroups": ["octavo.dev"], "resources": ["llmdeployments"], "verbs": ["list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
]
