"""Conditions that tell the truth, in words that a person can act on."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import replace
from typing import Any, get_args

import pytest

from llm_deployments import llm_deployment
from octavo_operator.api import LLMDeploymentStatus, parse
from octavo_operator.api.status import ConditionType, Resolved
from octavo_operator.events import events_of
from octavo_operator.observation import Observation, Problem, Verdict
from octavo_operator.status import build_status, condition, status_patch

Object = dict[str, Any]
THEN, NOW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def live(generation: int = 4, status: Object | None = None, **spec: Any) -> Object:
    body = llm_deployment(**spec)
    body["metadata"] |= {"namespace": "team-a", "uid": "u-1", "generation": generation}
    return body | ({"status": status} if status else {})


def deployment(
    total: int, updated: int, ready: int, conditions: list[Object] | None = None, behind: bool = False
) -> Object:
    status = {"replicas": total, "updatedReplicas": updated, "readyReplicas": ready, "conditions": conditions or []}
    generation = {"observedGeneration": 6 if behind else 7}
    return {"metadata": {"generation": 7}, "spec": {"replicas": total}, "status": status | generation}


def pod(name: str = "p-1", scheduled: str = "", waiting: Object | None = None, last: Object | None = None) -> Object:
    verdict = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": scheduled}
    bound: Object = {"type": "PodScheduled", "status": "True"}
    container: Object = {"name": "server", "state": {"waiting": waiting} if waiting else {"running": {}}}
    if last:
        container["lastState"] = {"terminated": last}
    return {
        "metadata": {"name": name},
        "spec": {} if scheduled else {"nodeName": "n-1"},
        "status": {"conditions": [verdict if scheduled else bound], "containerStatuses": [container]},
    }


def built(observed: Observation, status: Object | None = None, **spec: Any) -> Object:
    body = live(status=status, **spec)
    made = build_status(body, parse(body), observed, NOW)
    LLMDeploymentStatus.model_validate(made)  # the CRD's schema would take it
    return made


def told(status: Object, kind: str) -> tuple[str, str, str]:
    found = condition(status, kind)
    return found["status"], found["reason"], found["message"]


def observed(found: Object | None, *pods: Object, service: bool = True, problem: Problem | None = None) -> Observation:
    return Observation(found, {"kind": "Service"} if service else None, pods, problem)


def test_the_url_is_the_gateways_where_there_is_one() -> None:
    without = observed(deployment(2, 2, 2), pod("a"))
    status = built(dataclasses.replace(without, gateway_url="http://octavo-gateway.octavo-system.svc:8080/v1"))
    assert status["url"] == "http://octavo-gateway.octavo-system.svc:8080/v1"
    assert built(without)["url"] == "http://demo.team-a.svc:8000/v1"


def test_all_is_well() -> None:
    status = built(observed(deployment(2, 2, 2), pod("a"), pod("b")), replicas=2)
    assert told(status, "Ready") == ("True", "ReplicasReady", "2 of 2 replicas take requests")
    assert told(status, "Available")[0] == "True"
    assert told(status, "Progressing") == ("False", "Complete", "all 2 replicas are of the newest spec and ready")
    assert told(status, "Scheduled") == ("True", "AllScheduled", "all 2 pods have a node")
    assert told(status, "Degraded") == ("False", "AsExpected", "")
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"], status["desiredReplicas"]) == (
        2,
    ) * 4
    assert status["observedGeneration"] == 4 and status["url"] == "http://demo.team-a.svc:8000/v1"


def test_a_roll_out_of_the_only_replica_is_told_to_be_a_pause() -> None:
    rolling = observed(deployment(1, 0, 1), pod("a"))
    assert told(built(rolling), "Progressing")[2].endswith("maxSurge 0 none serves until the new one is ready")
    assert "maxSurge" not in told(built(rolling, rollout={"maxSurge": 1}), "Progressing")[2]
    assert "maxSurge" not in told(built(observed(deployment(2, 1, 2)), replicas=2), "Progressing")[2]


@pytest.mark.parametrize("pods", [deployment(1, 1, 1), None])
def test_a_model_that_is_not_there_is_waited_for_and_what_serves_goes_on(pods: Object | None) -> None:
    waiting = Verdict("False", "Downloading", "Job j downloads hf://a/b")
    status = built(replace(observed(pods), cached=waiting))
    assert told(status, "ModelCached") == ("False", "Downloading", "Job j downloads hf://a/b")
    assert told(status, "Progressing") == ("True", "Downloading", "Job j downloads hf://a/b")
    assert told(status, "Ready")[:2] == ("False", "Downloading")
    assert told(status, "Available")[0] == ("True" if pods else "False")
    suspended = built(replace(observed(deployment(0, 0, 0)), cached=waiting), suspend=True)
    assert told(suspended, "Ready")[:2] == ("True", "Suspended")
    there = built(replace(observed(deployment(1, 1, 1)), cached=Verdict("True", "Cached", "")))
    assert told(there, "Ready")[:2] == ("True", "ReplicasReady")


def test_one_replica_is_not_told_of_as_of_many() -> None:
    status = built(observed(deployment(1, 1, 1), pod("a")), replicas=1)
    assert told(status, "Progressing")[2] == "the only replica is of the newest spec and ready"
    assert told(status, "Scheduled")[2] == "the only pod has a node"


@pytest.mark.parametrize(
    ("found", "progress"),
    [
        (None, "Applying"),
        (deployment(2, 2, 2, behind=True), "Applying"),
        (deployment(2, 1, 2), "RollingOut"),
        (deployment(3, 2, 2), "RollingOut"),
        (deployment(2, 2, 1), "Starting"),
        (deployment(3, 3, 3), "ScalingDown"),
    ],
)
def test_ready_is_said_only_when_all_wanted_are_there_of_the_newest_spec(found: Object | None, progress: str) -> None:
    status = built(observed(found), replicas=2)
    assert told(status, "Ready")[0] == "False"
    assert told(status, "Progressing")[:2] == ("True", progress)


def test_a_deployment_of_an_older_generation_is_not_believed_complete() -> None:
    stale = built(observed(deployment(2, 2, 2, behind=True)), replicas=2)
    assert told(stale, "Ready")[1] == "Applying"


def test_the_scheduler_is_quoted() -> None:
    words = "0/5 nodes are available: 5 Insufficient nvidia.com/gpu."
    status = built(observed(deployment(3, 3, 1), pod("a"), pod("b", words), pod("c", words)), replicas=3)
    assert told(status, "Scheduled") == ("False", "Unschedulable", f"2 of 3 pods have no node: {words}")
    assert told(status, "Ready") == (
        "False",
        "Unschedulable",
        f"1 of 3 replicas ready: 2 of 3 pods have no node: {words}",
    )
    assert told(status, "Degraded")[0] == "False"  # a node may come


def test_the_kubelet_is_quoted_over_an_image() -> None:
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x:1": not found'}
    status = built(observed(deployment(1, 1, 0), pod("a", waiting=waiting)))
    assert told(status, "Degraded") == (
        *("True", "ImagePullBackOff"),
        'pod a: ImagePullBackOff: Back-off pulling image "x:1": not found',
    )
    assert told(status, "Ready")[1] == "ImagePullBackOff"


def test_a_crashing_server_is_told_by_its_last_words() -> None:
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}
    last = {"exitCode": 1, "reason": "Error", "message": "loading\nno such directory: /models/x\n\n"}
    first = built(observed(deployment(2, 2, 0), pod("a", waiting=waiting, last=last), pod("b", waiting=waiting)))
    assert told(first, "Degraded")[2] == (
        "pod a (and 1 more pod): CrashLoopBackOff: it ended with exit code 1: no such directory: /models/x"
    )
    signalled = {"exitCode": 139, "reason": "ContainerDied"}
    second = built(observed(deployment(1, 1, 0), pod("a", waiting=waiting, last=signalled)))
    assert "it ended with exit code 139 (ContainerDied); back-off 40s" in told(second, "Degraded")[2]


@pytest.mark.parametrize("waiting", [{"reason": "CrashLoopBackOff", "message": "back-off 40s"}, None])
def test_who_was_killed_for_memory_is_told_which_field_to_raise(waiting: Object | None) -> None:
    killed = pod("a", waiting=waiting, last={"exitCode": 137, "reason": "OOMKilled"})
    status = built(observed(deployment(1, 1, 0), killed))
    assert told(status, "Degraded") == (
        *("True", "OOMKilled"),
        "pod a: OOMKilled: it ended with exit code 137 (OOMKilled): it needs more memory than its limit: "
        "raise spec.resources.memory",
    )
    killed["status"]["containerStatuses"][0] |= {"ready": True, "state": {"running": {}}}
    assert told(built(observed(deployment(1, 1, 1), killed)), "Degraded")[0] == "False"


def test_a_crash_loop_is_one_while_the_server_runs_between_two_crashes_too() -> None:
    last = {"exitCode": 1, "reason": "Error", "message": "no such file"}
    running = pod("a", last=last)
    once, twice = copy.deepcopy(running), copy.deepcopy(running)
    once["status"]["containerStatuses"][0]["restartCount"] = 1
    twice["status"]["containerStatuses"][0]["restartCount"] = 2
    assert told(built(observed(deployment(1, 1, 0), once)), "Degraded")[0] == "False"
    assert told(built(observed(deployment(1, 1, 0), twice)), "Degraded") == (
        *("True", "CrashLoopBackOff"),
        "pod a: CrashLoopBackOff: it ended with exit code 1: no such file",
    )
    assert built(observed(deployment(1, 1, 0), twice))["restarts"] == 2


def test_pods_that_are_ending_are_not_asked() -> None:
    ending = pod("a", waiting={"reason": "CrashLoopBackOff"})
    ending["metadata"]["deletionTimestamp"] = THEN
    assert told(built(observed(deployment(1, 1, 1), pod("b"), ending)), "Degraded")[0] == "False"


def test_a_stuck_roll_out_is_degraded() -> None:
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "timed out"}
    status = built(observed(deployment(1, 1, 0, [late]), pod()))
    assert told(status, "Degraded")[:2] == ("True", "RolloutStuck")
    assert told(status, "Progressing") == ("False", "ProgressDeadlineExceeded", "timed out")


def test_a_quota_is_quoted() -> None:
    full = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota: gpus"}
    status = built(observed(deployment(0, 0, 0, [full])))
    assert told(status, "Degraded") == ("True", "PodsRefused", "pods cannot be created: exceeded quota: gpus")


def test_nothing_wanted_is_ready_and_not_available() -> None:
    suspended = built(observed(deployment(0, 0, 0)), replicas=3, suspend=True)
    assert told(suspended, "Ready")[:2] == ("True", "Suspended") and told(suspended, "Available")[0] == "False"
    assert suspended["desiredReplicas"] == 0 and told(suspended, "Scheduled")[0] == "True"
    assert told(built(observed(deployment(0, 0, 0)), replicas=0), "Available")[1] == "ScaledToZero"


def test_pods_without_their_service_are_not_available() -> None:
    status = built(observed(deployment(1, 1, 1), pod(), service=False))
    assert told(status, "Available")[:2] == ("False", "NoService") and "url" not in status


def test_a_problem_is_degraded_and_blocks() -> None:
    problem = Problem("NameConflict", "there is a Service demo")
    status = built(observed(None, service=False, problem=problem))
    assert told(status, "Degraded") == ("True", "NameConflict", "there is a Service demo")
    assert told(status, "Ready")[:2] == ("False", "NameConflict")
    assert told(status, "Progressing")[:2] == ("False", "Blocked")


def test_an_invalid_spec_keeps_what_was_known() -> None:
    before = built(observed(deployment(2, 2, 2)), replicas=2)
    body = live(generation=5, status=before, replicas="two")
    problem = Problem("InvalidSpec", "spec.replicas: must be an integer")
    status = build_status(body, None, observed(deployment(2, 2, 2), problem=problem), NOW)
    assert status["model"] == "demo" and status["url"] and status["desiredReplicas"] == 2
    assert status["observedGeneration"] == 5 and told(status, "Available")[0] == "True"


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    body = live(replicas=1)
    first = build_status(body, parse(body), observed(deployment(1, 1, 0), pod()), THEN)
    second = built(observed(deployment(1, 1, 1), pod()), status=first)
    times = {each["type"]: each["lastTransitionTime"] for each in second["conditions"]}
    assert times == dict.fromkeys(("Ready", "Available", "Progressing"), NOW) | dict.fromkeys(
        ("ModelCached", "Scheduled", "ScalingActive", "Degraded"), THEN
    )


def test_a_status_that_is_the_same_needs_no_patch() -> None:
    same = observed(deployment(1, 1, 1), pod())
    first = built(same)
    assert status_patch(first, built(same, status=first)) is None


def test_a_patch_holds_what_changed_and_removes_what_is_gone() -> None:
    assert status_patch({"a": 1, "b": 2, "url": "x"}, {"a": 1, "b": 3}) == {"b": 3, "url": None}


def test_a_message_too_long_for_the_schema_is_cut() -> None:
    status = built(observed(None, problem=Problem("ApplyRefused", "x" * 10_000)))
    assert len(told(status, "Degraded")[2]) == 4096


def test_a_start_is_told_step_by_step_and_who_was_ended_by_its_node() -> None:
    loading, fetching, pulling = pod("a"), pod("b"), pod("c", waiting={"reason": "ContainerCreating"})
    fetching["status"]["initContainerStatuses"] = [{"name": "pull", "state": {"running": {}}}]
    fetching["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "PodInitializing"}}
    evicted = pod("z")
    evicted["status"] = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on disk."}
    status = built(observed(deployment(4, 4, 1), loading, fetching, pulling, evicted), replicas=4)
    assert told(status, "Progressing") == (
        *("True", "Starting"),
        "3 of 4 replicas not ready yet: 1 downloading the model, 1 loading the model, 1 waiting for images and "
        "volumes; pod z was ended: Evicted: The node was low on disk.",
    )
    assert told(status, "Scheduled")[2] == "all 3 pods have a node"


def test_nothing_scales_a_fixed_number_of_replicas() -> None:
    status = built(observed(deployment(2, 2, 2)), replicas=2)
    assert told(status, "ScalingActive")[:2] == ("False", "FixedReplicas")
    assert "spec.replicas" in told(status, "ScalingActive")[2]
    assert told(built(observed(deployment(0, 0, 0)), suspend=True), "ScalingActive")[:2] == ("False", "Suspended")


def test_every_condition_is_there_with_a_reason_and_the_generation_it_was_seen_for() -> None:
    for found in (observed(None), observed(deployment(1, 1, 1), pod()), observed(None, problem=Problem("X", "y"))):
        status = built(found)
        assert [each["type"] for each in status["conditions"]] == list(get_args(ConditionType))
        assert all(each["reason"] and each["observedGeneration"] == 4 for each in status["conditions"])
    invalid = build_status(live(), None, observed(None, problem=Problem("InvalidSpec", "y")), NOW)
    assert told(invalid, "ModelCached")[0] == "Unknown"


PULLED = {"source": {"huggingFace": {"repo": "org/model"}}}


def downloaded(revision: str, name: str = "a") -> Object:
    found = pod(name)
    end = {"exitCode": 0, "message": json.dumps({"source": "hf://org/model@main", "revision": revision})}
    found["status"]["initContainerStatuses"] = [{"name": "pull", "state": {"terminated": end}}]
    found["status"]["containerStatuses"][0]["imageID"] = f"docker-pullable://r.example/s@sha256:{name * 64}"
    found["spec"] |= template("s:1")["spec"]
    return found


def template(image: str) -> Object:
    return {"spec": {"initContainers": [{"name": "pull"}], "containers": [{"name": "server", "image": image}]}}


def of_template(total: int, image: str = "s:1") -> Object:
    return deployment(total, total, total) | {
        "metadata": {"generation": 7},
        "spec": {"replicas": total, "template": template(image)},
    }


RESOLVED = Resolved(forSpec="ab", image="s:1", startupTimeoutSeconds=600)


def test_what_pods_downloaded_and_run_is_told_and_pinned() -> None:
    first = built(replace(observed(of_template(1), downloaded("c1")), resolved=RESOLVED), model=PULLED)
    assert first["modelRevision"] == "c1"
    assert first["resolved"] == {
        **{"forSpec": "ab", "image": "s:1", "startupTimeoutSeconds": 600},
        "imageID": f"r.example/s@sha256:{'a' * 64}",
    }
    later = replace(observed(of_template(1), downloaded("c2", "b")), resolved=RESOLVED)
    second = built(later, status=first, model=PULLED)
    assert (second["modelRevision"], second["resolved"]) == ("c1", first["resolved"])
    third = built(replace(later, resolved=RESOLVED.model_copy(update={"for_spec": "cd"})), status=first, model=PULLED)
    assert (third["modelRevision"], third["resolved"]["imageID"]) == ("c2", f"r.example/s@sha256:{'b' * 64}")


def test_pods_of_an_earlier_spec_tell_nothing_of_this_one() -> None:
    status = built(replace(observed(of_template(1, "s:2"), downloaded("c1")), resolved=RESOLVED), model=PULLED)
    assert "modelRevision" not in status and "imageID" not in status["resolved"]


def test_pods_that_run_different_images_under_one_tag_are_degraded() -> None:
    both = observed(of_template(2), downloaded("c1"), downloaded("c1", "b"))
    status, reason, message = told(built(both, model=PULLED), "Degraded")
    assert (status, reason) == ("True", "ImagesDiffer")
    assert f"r.example/s@sha256:{'a' * 64}, r.example/s@sha256:{'b' * 64}; give a digest" in message
    same = observed(of_template(2), downloaded("c1"), downloaded("c1"))
    assert told(built(same, model=PULLED), "Degraded")[0] == "False"


def test_what_nodes_call_an_image_that_is_given_by_digest_is_no_difference() -> None:
    both = [downloaded("c1"), downloaded("c1", "b")]
    for each in both:
        each["spec"] |= template("s@sha256:0")["spec"]
    assert told(built(observed(of_template(2, "s@sha256:0"), *both), model=PULLED), "Degraded")[0] == "False"
    local = [downloaded("c1"), downloaded("c1", "b")]
    local[1]["status"]["containerStatuses"][0]["imageID"] = f"docker://sha256:{'b' * 64}"
    assert told(built(observed(of_template(2), *local), model=PULLED), "Degraded")[0] == "False"


def test_pods_that_serve_different_models_are_degraded() -> None:
    both = observed(of_template(2), downloaded("c1"), downloaded("c2", "b"))
    assert told(built(both, model=PULLED), "Degraded")[:2] == ("True", "RevisionsDiffer")
    assert "c1, c2" in told(built(both, model=PULLED), "Degraded")[2]


def test_accounting_alone_is_no_reason_to_write() -> None:
    used = observed(deployment(1, 1, 1), pod())
    first = built(replace(used, accounting=ACCOUNTING))
    later = ACCOUNTING | {"replicaSeconds": 99, "asOf": NOW}
    second = built(replace(used, accounting=later), status=first)
    assert second["accounting"] == later and status_patch(first, second) is None
    third = built(replace(used, accounting=later, pods=()), status=first)
    patch = status_patch(first, third)
    assert patch is not None and patch["accounting"] == later


ACCOUNTING = {"replicaSeconds": 10, "acceleratorSeconds": 20, "asOf": THEN}


def test_a_patch_takes_away_what_is_gone_inside_an_object() -> None:
    assert status_patch({"resolved": {"image": "a", "imageID": "b"}}, {"resolved": {"image": "c"}}) == {
        "resolved": {"image": "c", "imageID": None}
    }


def test_events_tell_changes_only() -> None:
    well = built(observed(deployment(1, 1, 1), pod()))
    ill = built(observed(deployment(1, 1, 0), pod(waiting={"reason": "ErrImagePull", "message": "no"})))
    assert [event.reason for event in events_of({}, well)] == ["Ready"]
    assert events_of(well, well) == []
    assert [(event.type, event.reason) for event in events_of(well, ill)] == [
        ("Warning", "ErrImagePull"),
        ("Normal", "NotReady"),
    ]
    assert events_of(ill, ill) == []


@pytest.mark.parametrize("reason", ["Terminating", "ChildTerminating", "PredecessorTerminating"])
def test_what_is_going_away_is_not_ready_however_many_replicas_still_are(reason: str) -> None:
    status = built(observed(deployment(1, 1, 1), pod(), problem=Problem(reason, "why")))
    assert told(status, "Ready")[:2] == ("False", reason)
    assert told(status, "Progressing") == ("True", reason, "why") and told(status, "Degraded")[0] == "False"
    assert told(status, "Available")[0] == ("False" if reason == "Terminating" else "True")


def ending(name: str, until: str) -> Object:
    found = pod(name)
    found["metadata"]["deletionTimestamp"] = until
    return found


def test_suspended_is_ready_when_the_pods_are_gone_or_will_never_say_so() -> None:
    draining = built(observed(deployment(0, 0, 0), ending("a", "2026-01-02T00:02:40Z")), suspend=True)
    assert told(draining, "Progressing") == ("True", "Draining", "no replica is wanted; 1 pod ends its requests")
    assert told(draining, "Ready")[:2] == ("False", "Draining")
    late = built(observed(deployment(0, 0, 0), ending("a", "2026-01-01T12:00:00Z")), suspend=True)
    assert told(late, "Ready")[:2] == ("True", "Suspended")
    assert (
        "pod a should have ended at 2026-01-01T12:00:00Z, and node n-1 does not say so" in told(late, "Progressing")[2]
    )


def test_a_replica_whose_node_does_not_answer_is_told_of_and_what_it_holds() -> None:
    silent = pod("a")
    silent["status"]["conditions"] += [
        {"type": "Ready", "status": "False"},
        {"type": "ContainersReady", "status": "True"},
    ]
    status = built(observed(deployment(2, 2, 1), silent, ending("old", "2026-01-01T12:00:00Z")), replicas=2)
    kind, reason, text = told(status, "Progressing")
    assert (kind, reason) == ("True", "Starting") and "1 on node n-1, which does not answer" in text
    assert "pod old should have ended at" in text and status["readyReplicas"] == 1
