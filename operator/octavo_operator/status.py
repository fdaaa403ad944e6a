"""From what was observed to `LLMDeployment.status`. Pure: the time is passed in, and only a change of state uses it.

Every condition says why in one word for programs, and in a sentence that a person can act on. Where Kubernetes has its
own words (the scheduler, the kubelet, a quota), they are quoted.
"""

from collections.abc import Sequence
from typing import Any, Final

from octavo_common.names import DEPLOYMENT_LABEL
from octavo_operator import drift
from octavo_operator.api import LLMDeployment
from octavo_operator.api.status import MAX_MESSAGE
from octavo_operator.downloads import restarts
from octavo_operator.endings import Endings, endings
from octavo_operator.model_status import disagreement, kept, known, model_cached
from octavo_operator.observation import (
    COMPLETE,
    CONTESTED,
    PASSING,
    TERMINATING,
    Counts,
    Manifest,
    Observation,
    Verdict,
)
from octavo_operator.pods import Trouble, describe_start, describe_trouble, living, unscheduled

Status = dict[str, Any]

_LAZY: Final = frozenset({"accounting"})
"""What changes all the time: it is written along with what else has changed."""


def build_status(live: Manifest, deployment: LLMDeployment | None, observed: Observation, now: str) -> Status:
    """The status that `live`, an LLMDeployment as the API server holds it, should have.

    `deployment` is the same object validated, None if it is invalid (`observed.problem` says why): what cannot be known
    then stays as it was. `now` is an RFC 3339 time, for conditions that change.
    """
    previous: Manifest = live.get("status") or {}
    counts = _count(deployment, observed.deployment)
    told = known(deployment, observed, previous) if deployment is not None else kept(previous)
    conditions = _conditions(counts, observed, deployment, endings(observed.pods, now))
    generation = live["metadata"].get("generation", 0)
    return {
        "conditions": [_dated(kind, verdict, previous, generation, now) for kind, verdict in conditions.items()],
        "observedGeneration": generation,
        "replicas": counts.total,
        "readyReplicas": counts.ready,
        "updatedReplicas": counts.updated,
        "desiredReplicas": counts.desired,
        "restarts": restarts(observed.pods),
        "selector": f"{DEPLOYMENT_LABEL}={live['metadata']['name']}",
        **told,
        **(
            {"autoscaling": dict(observed.scaling.told)}
            if observed.scaling is not None and observed.scaling.told
            else {}
        ),
        **({"accounting": dict(observed.accounting)} if observed.accounting is not None else {}),
    }


def status_patch(previous: Manifest, wanted: Manifest) -> Status | None:
    """The merge patch that leads from one status to the other; None where they are equal but for what can wait."""
    changed = {key: _patched(previous.get(key), value) for key, value in wanted.items() if previous.get(key) != value}
    gone = {key: None for key in previous if key not in wanted}
    return (changed | gone) if (changed.keys() | gone.keys()) - _LAZY else None


def stamped_status(live: Manifest, status: Status) -> Status:
    """What a status says but for times and what changes all the time, with a digest, as of an object of its own."""
    said = {key: value for key, value in status.items() if key not in {"conditions", *_LAZY}}
    said["conditions"] = [{**each, "lastTransitionTime": ""} for each in status["conditions"]]
    metadata = {key: live["metadata"][key] for key in ("name", "namespace", "uid")}
    return drift.stamped({"kind": f"{live['kind']}/status", "metadata": metadata, "status": said})


def _patched(before: Any, after: Any) -> Any:
    """A merge keeps what a patch does not name: fields of an object that are gone are named."""
    if isinstance(before, dict) and isinstance(after, dict):
        return {key: None for key in before if key not in after} | after
    return after


def condition(status: Manifest, kind: str) -> Manifest:
    """A condition of a status by its type; empty where there is none."""
    return next((each for each in status.get("conditions", ()) if each["type"] == kind), {})


def _count(deployment: LLMDeployment | None, live: Manifest | None) -> Counts:
    if live is None:
        return Counts(desired=deployment.desired_replicas if deployment is not None else 0)
    status = live.get("status") or {}
    return Counts(
        desired=deployment.desired_replicas if deployment is not None else live["spec"].get("replicas", 1),
        total=status.get("replicas", 0),
        updated=status.get("updatedReplicas", 0),
        ready=status.get("readyReplicas", 0),
        current=status.get("observedGeneration", 0) >= live["metadata"].get("generation", 0),
        conditions={each["type"]: each for each in status.get("conditions", ())},
    )


def _conditions(
    counts: Counts, observed: Observation, deployment: LLMDeployment | None, ends: Endings
) -> dict[str, Verdict]:
    degraded = _degraded(counts, observed)
    scheduled = _scheduled(living(observed.pods), counts)
    progressing = _progressing(counts, observed, deployment, ends)
    available = _available(counts, observed, deployment)
    ready = _ready(counts, degraded, scheduled, progressing, available)
    if observed.problem is not None and observed.problem.reason == TERMINATING:
        ready = available = Verdict("False", TERMINATING, observed.problem.message)
    return {
        "Ready": ready,
        "Available": available,
        "Progressing": progressing,
        "ModelCached": observed.cached or model_cached(deployment, observed),
        "Scheduled": scheduled,
        "ScalingActive": observed.scaling.active if observed.scaling is not None else _scaling(deployment),
        "Degraded": degraded,
    }


def _ready(counts: Counts, degraded: Verdict, scheduled: Verdict, progressing: Verdict, available: Verdict) -> Verdict:
    """What is wanted is there: nothing, while nothing is wanted."""
    share = f"{counts.ready} of {counts.desired} replicas ready"
    if degraded.status == "True":
        return Verdict("False", degraded.reason, f"{share}: {degraded.message}")
    if progressing.reason == COMPLETE:
        return Verdict("True", available.reason, available.message)
    why = scheduled if scheduled.status == "False" else progressing
    return Verdict("False", why.reason, f"{share}: {why.message}")


def _available(counts: Counts, observed: Observation, deployment: LLMDeployment | None) -> Verdict:
    if counts.ready and observed.service is not None:
        return Verdict("True", "ReplicasReady", f"{counts.ready} of {counts.desired} replicas take requests")
    if counts.ready:
        return Verdict("False", "NoService", f"{counts.ready} replicas are ready, but no Service leads to them")
    if deployment is not None and deployment.spec.suspend:
        return Verdict("False", "Suspended", "spec.suspend is true: no replica is wanted; set it to false to go on")
    if counts.desired == 0:
        scaled = deployment is not None and deployment.spec.autoscaling is not None
        why = "no request needs a replica; the next one at the gateway starts it" if scaled else "spec.replicas is 0"
        return Verdict("False", "ScaledToZero", f"{why}: no replica is wanted")
    return Verdict("False", "NoReplicaReady", f"none of {counts.desired} replicas takes requests yet")


def _progressing(counts: Counts, observed: Observation, deployment: LLMDeployment | None, ends: Endings) -> Verdict:
    # What is fought over holds nothing else up.
    if observed.problem is not None and observed.problem.reason != CONTESTED:
        if observed.problem.reason in PASSING:
            return Verdict("True", observed.problem.reason, observed.problem.message)
        return Verdict("False", "Blocked", f"nothing is changed while there is a problem: {observed.problem.message}")
    if counts.desired and observed.cached is not None and observed.cached.status != "True":
        return Verdict("True", observed.cached.reason, observed.cached.message)
    deadline = counts.conditions.get("Progressing", {})
    if counts.current and deadline.get("reason") == "ProgressDeadlineExceeded":
        return Verdict("False", "ProgressDeadlineExceeded", deadline.get("message", ""))
    if counts.complete:
        if counts.desired == 0 and ends.draining:
            return Verdict("True", "Draining", f"no replica is wanted; {ends}")
        text = f"{_all(counts.desired, 'replica')} of the newest spec and ready"
        text = text if counts.desired else "no replica is wanted, and none is there"
        return Verdict("False", COMPLETE, f"{text}; {ends}" if ends.overdue else text)
    if observed.deployment is None or not counts.current:
        return Verdict("True", "Applying", "the Deployment was just applied, its controller has not seen it yet")
    if counts.updated < counts.desired or (counts.total > counts.updated and counts.updated):
        what = f"{counts.updated} of {counts.desired} replicas are of the newest spec, {counts.total} in all"
        return Verdict("True", "RollingOut", what + _pause(deployment, counts))
    if counts.total > counts.desired:
        return Verdict("True", "ScalingDown", f"{counts.total - counts.desired} replicas are ending their requests")
    lacking = counts.desired - counts.ready
    doing = describe_start(observed.pods) or "waiting for their pods"
    late = f"; {ends}" if ends.overdue else ""
    return Verdict("True", "Starting", f"{lacking} of {counts.desired} replicas not ready yet: {doing}{late}")


def _pause(deployment: LLMDeployment | None, counts: Counts) -> str:
    """What replacing the only replica means for clients where there is no room for a second one."""
    if deployment is None or counts.desired != 1 or deployment.spec.rollout.max_surge:
        return ""
    return "; with one replica and spec.rollout.maxSurge 0 none serves until the new one is ready"


def _all(count: int, noun: str) -> str:
    """Subject and verb: "the only replica is", "all 3 replicas are"."""
    return f"the only {noun} is" if count == 1 else f"all {count} {noun}s are"


def _scaling(deployment: LLMDeployment | None) -> Verdict:
    """As an HPA says it: false where nothing scales, and why. Of what is not autoscaled."""
    if deployment is None:
        return Verdict("Unknown", "InvalidSpec", "what the spec means is not known")
    if deployment.spec.suspend:
        return Verdict("False", "Suspended", "spec.suspend is true: there are no replicas, whatever the load")
    text = "the number of replicas is spec.replicas, whatever the load; kubectl scale or an autoscaler can change it"
    return Verdict("False", "FixedReplicas", text)


def _scheduled(pods: Sequence[Manifest], counts: Counts) -> Verdict:
    waiting = unscheduled(pods)
    if waiting.messages:
        told = "; ".join(waiting.messages)
        return Verdict("False", waiting.reason, f"{waiting.count} of {len(pods)} pods have no node: {told}")
    if not pods and counts.desired:
        return Verdict("Unknown", "NoPods", "there are no pods yet")
    if waiting.undecided:
        return Verdict("Unknown", "Pending", f"{waiting.undecided} of {len(pods)} pods wait for the scheduler")
    if not pods:
        return Verdict("True", "AllScheduled", "no pod needs a node")
    return Verdict(
        "True", "AllScheduled", "the only pod has a node" if len(pods) == 1 else f"all {len(pods)} pods have a node"
    )


def _degraded(counts: Counts, observed: Observation) -> Verdict:
    problem = observed.problem
    if problem is not None and problem.reason not in PASSING:
        return Verdict("True", problem.reason, problem.message)
    failure = counts.conditions.get("ReplicaFailure", {})
    if failure.get("status") == "True":
        return Verdict("True", "PodsRefused", f"pods cannot be created: {failure.get('message', '')}")
    trouble: Trouble | None = describe_trouble(living(observed.pods))
    if trouble is not None:
        return Verdict("True", trouble.reason, trouble.message)
    different = disagreement(observed)
    if different is not None:
        return different
    if counts.current and counts.conditions.get("Progressing", {}).get("reason") == "ProgressDeadlineExceeded":
        doing = describe_start(observed.pods) or "there are none"
        return Verdict("True", "RolloutStuck", f"pods did not become ready in time: {doing}; see their events and logs")
    return Verdict("False", "AsExpected")


def _dated(kind: str, verdict: Verdict, previous: Manifest, generation: int, now: str) -> Status:
    before = condition(previous, kind)
    message = verdict.message
    return {
        "type": kind,
        "status": verdict.status,
        "reason": verdict.reason,
        "message": message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…",
        "lastTransitionTime": before["lastTransitionTime"] if before.get("status") == verdict.status else now,
        "observedGeneration": generation,
    }
