"""Processes described as the API server would describe pods, so that the operator's own `build_status` judges them."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

from octavo_operator.api import LLMDeployment
from octavo_operator.local.replica import ReplicaState
from octavo_operator.observation import Observation, Verdict
from octavo_operator.status import build_status

Manifest = dict[str, Any]


def local_status(
    deployment: LLMDeployment, states: Sequence[ReplicaState], previous: Mapping[str, Any], now: str
) -> Manifest:
    """The status of `deployment` with these replicas; `previous` is the last one, `now` an RFC 3339 time.

    Its URL is that of the first replica that takes requests: there is no Service here.
    """
    live = {"metadata": {"name": deployment.name, "generation": 1}, "status": previous}
    status = build_status(live, deployment, observe(deployment, states), now)
    status.pop("url", None)
    url = base_url(states)
    return status | ({"url": url} if url else {})


def base_url(states: Sequence[ReplicaState]) -> str | None:
    """The base URL for OpenAI clients, of the first replica that takes requests."""
    return next((f"{state.url}/v1" for state in states if state.ready), None)


def observe(deployment: LLMDeployment, states: Sequence[ReplicaState]) -> Observation:
    """What an API server would hold: only what `build_status` reads of it."""
    alive = [state for state in states if state.phase != "Stopped"]
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
    )


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
