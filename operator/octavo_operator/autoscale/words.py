"""The condition ScalingActive in each mode. Pure.

As an HPA's: true where replicas follow the load, false where they do not, and why. It holds no figures of the load: a
condition that changed with every look would be written with every look.
"""

from collections.abc import Mapping
from typing import Any, Final

from octavo_operator.api import LLMDeployment
from octavo_operator.api.autoscaling import Autoscaling
from octavo_operator.autoscale.decide import Decision
from octavo_operator.observation import Verdict

_OWN: Final = frozenset({"Deciding", "GatewayUnknown", "Recommending", "ScrapesLost", "PendingTooLong"})


def scaling_active(
    deployment: LLMDeployment,
    autoscaling: Autoscaling,
    decision: Decision | None,
    before: Mapping[str, Any],
    *,
    lacks_gateway: bool = False,
) -> Verdict:
    """`decision`: the last one, None where nothing was decided since the operator started: then what was said `before`
    stands, if that was of this mode. `lacks_gateway`: there is a way to zero, and nobody who would bring it back.
    """
    if deployment.spec.suspend:
        return Verdict("False", "Suspended", "spec.suspend is true: there are no replicas, whatever the load")
    if autoscaling.mode == "External":
        text = "replicas are whatever an HPA, KEDA or kubectl scale writes to /scale; the operator does not look"
        return Verdict("Unknown", "External", text)
    if decision is not None:
        return _decided(autoscaling, decision, lacks_gateway)
    others = {"Recommending"} if autoscaling.mode == "Internal" else {"Deciding", "GatewayUnknown"}
    if before.get("reason") in _OWN - others:
        return Verdict(str(before["status"]), str(before["reason"]), str(before.get("message", "")))
    return Verdict("Unknown", "NotDecidedYet", "the load has not been looked at yet")


def _decided(autoscaling: Autoscaling, decision: Decision, lacks_gateway: bool) -> Verdict:
    if not decision.active:
        text = "the load is not known, as replicas do not tell their metrics: their number is left as it is"
        return Verdict("False", "ScrapesLost", text)
    if not decision.scheduled:
        text = "replicas are pending for longer than a start may take: no more are asked for until those have started"
        return Verdict("False", "PendingTooLong", f"{text}; see Scheduled and the pods' events")
    bounds = f"between {autoscaling.min_replicas} and {autoscaling.max_replicas}"
    if autoscaling.mode == "Recommend":
        text = "status.autoscaling.recommendedReplicas follows the load; the number of replicas is spec.replicas"
        return Verdict("False", "Recommending", f"{text} ({bounds})")
    text = f"replicas follow the load, {bounds}"
    if lacks_gateway:
        return Verdict("True", "GatewayUnknown", f"{text}; one stays, as no gateway tells of requests that would wait")
    return Verdict("True", "Deciding", text)
