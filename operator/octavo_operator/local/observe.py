"""Processes described as the API server would describe pods, for the operator's own `build_status` and decider."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any, Final

from octavo_operator.api import LLMDeployment
from octavo_operator.autoscale.members import Member
from octavo_operator.autoscale.observation import Phase
from octavo_operator.local.replica import ReplicaState
from octavo_operator.observation import Observation, Scaling, Verdict
from octavo_operator.status import build_status

Manifest = dict[str, Any]


def local_status(
    deployment: LLMDeployment,
    states: Sequence[ReplicaState],
    previous: Mapping[str, Any],
    now: str,
    url: str | None = None,
    scaling: Scaling | None = None,
) -> Manifest:
    """The status of `deployment` with these replicas; `previous` is the last one, `now` an RFC 3339 time.

    `url`: where the gateway listens, None until it does: there is no Service here.
    """
    live = {"metadata": {"name": deployment.name, "generation": 1}, "status": previous}
    status = build_status(live, deployment, observe(deployment, states, scaling), now)
    status.pop("url", None)
    return status | ({"url": f"{url}/v1"} if url else {})


def observe(deployment: LLMDeployment, states: Sequence[ReplicaState], scaling: Scaling | None = None) -> Observation:
    """What an API server would hold: only what `build_status` reads of it."""
    alive = [state for state in states if state.phase not in ("Draining", "Stopped")]
    ready = sum(state.ready for state in alive)
    pods = [_pod(state) for state in alive]
    # Replicas that were not started, for want of memory, are pods without a node.
    pods += [_unscheduled(f"{deployment.name}-{index}") for index in range(len(states), deployment.desired_replicas)]
    source = deployment.spec.model.source
    is_fetched = source.is_downloaded or source.oci is not None
    counts = {"replicas": len(pods), "updatedReplicas": len(pods), "readyReplicas": ready, "availableReplicas": ready}
    return Observation(
        deployment={
            "metadata": {"name": deployment.name, "generation": 1},
            "spec": {"replicas": deployment.desired_replicas},
            "status": {"observedGeneration": 1, **counts},
        },
        service={"metadata": {"name": deployment.name}},
        pods=pods,
        # Replicas are started when it is there.
        cached=Verdict("True", "Cached", "the model is on this machine") if is_fetched else None,
        scaling=scaling,
    )


PHASES: Final[Mapping[str, Phase]] = {"Ready": "ready", "Draining": "terminating"}


def members(states: Sequence[ReplicaState], now: float) -> list[Member]:
    """Replicas as the autoscaler takes them. `now`: seconds, by the monotonic clock."""
    return [
        Member(
            key=state.id,
            name=state.name,
            phase=PHASES.get(state.phase, "pending"),
            age=max(0.0, now - state.since),
            url=None if state.url is None else f"{state.url}/metrics",
            startup=state.startup,
        )
        for state in states
        if state.phase != "Stopped"
    ]


def endpoints(model: str, states: Sequence[ReplicaState]) -> Manifest:
    """What the gateway is told of them: those that listen, and whether they take new requests."""
    listening = [state for state in states if state.url is not None and state.pid is not None]
    return {
        "models": {
            model: [
                {"id": each.id, "url": each.url, "ready": each.ready, "draining": each.phase == "Draining"}
                for each in listening
            ]
        }
    }


def _pod(state: ReplicaState) -> Manifest:
    conditions = [
        {"type": "PodScheduled", "status": "True"},
        {"type": "Ready", "status": "True" if state.ready else "False"},
    ]
    return {
        "metadata": {"name": state.name},
        "spec": {"nodeName": platform.node()},
        "status": {"conditions": conditions, "containerStatuses": [_container(state)]},
    }


def _container(state: ReplicaState) -> Manifest:
    container: Manifest = {"name": "server", "ready": state.ready, "restartCount": state.restarts}
    if state.last_exit is not None:
        last_words = state.tail[-1] if state.tail else state.last_exit
        container["lastState"] = {"terminated": {"exitCode": state.exit_code, "message": last_words}}
    if state.phase == "Backoff":
        container["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": state.message}}
    elif state.phase == "Pending":
        container["state"] = {"waiting": {"reason": "ContainerCreating"}}
    else:
        container["state"] = {"running": {}}
    return container


def _unscheduled(name: str) -> Manifest:
    refused = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "this machine has too little free memory for spec.resources.memory",
    }
    return {"metadata": {"name": name}, "spec": {}, "status": {"conditions": [refused]}}
