"""Where pods may run: what the user asks for, narrowed to what the deployment needs."""

from octavo_operator.api.pod_template import TopologySpreadConstraint
from octavo_operator.api.spec import Accelerator
from octavo_operator.render.common import Manifest, plain


def spread(constraint: TopologySpreadConstraint, labels: dict[str, str]) -> Manifest:
    """The constraint, counted over the pods with these labels unless it says otherwise."""
    given = plain(constraint)
    return given if "labelSelector" in given else given | {"labelSelector": {"matchLabels": labels}}


def affinity(given: Manifest, accelerator: Accelerator | None) -> Manifest:
    """What the user asked for, and in each of its alternatives one of the accelerator's products."""
    if accelerator is None or not accelerator.products:
        return given
    product = {"key": accelerator.product_label, "operator": "In", "values": list(accelerator.products)}
    node = given.get("nodeAffinity") or {}
    required = node.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = [
        term | {"matchExpressions": [*term.get("matchExpressions", []), product]}
        for term in required.get("nodeSelectorTerms") or [{}]
    ]
    return given | {
        "nodeAffinity": node | {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    }
