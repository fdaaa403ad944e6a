"""Pods as replicas of a fleet, and which of them are told to go first."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.accounting import epoch
from octavo_operator.autoscale.pods import (
    COST,
    OUR_COST,
    costs_to_write,
    gateway_urls,
    is_settled,
    members,
    stale_costs,
)

Object = dict[str, Any]
NOW = epoch("2026-01-01T01:00:00Z")


def pod(name: str = "a", ready: str | None = "True", since: str = "2026-01-01T00:01:00Z", **more: Any) -> Object:
    conditions: list[Object] = [{"type": "PodScheduled", "status": "True"}]
    if ready is not None:
        conditions.append({"type": "Ready", "status": ready, "lastTransitionTime": since})
    ports = more.pop("ports", [{"name": "http", "containerPort": 8000}])
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": more.pop("annotations", {}),
            **({"deletionTimestamp": "2026-01-01T01:00:30Z"} if more.pop("deleted", False) else {}),
        },
        "spec": {"nodeName": "n", "containers": [{"name": "server", "ports": ports}]},
        "status": {"podIP": more.pop("address", "10.0.0.1"), "conditions": conditions} | more,
    }


def test_a_ready_pod_tells_where_its_metrics_are_and_how_long_it_took_to_start() -> None:
    (found,) = members([pod()], NOW)
    assert (found.key, found.name, found.phase) == ("uid-a", "a", "ready")
    assert (found.age, found.startup, found.url) == (3600.0, 60.0, "http://10.0.0.1:8000/metrics")


@pytest.mark.parametrize(
    ("address", "ports", "url"),
    [
        ("10.0.0.1", [("http", 8000), ("admin", 8001)], "http://10.0.0.1:8001/metrics"),
        ("fd00::1", [("http", 8000)], "http://[fd00::1]:8000/metrics"),
        ("", [("http", 8000)], None),
        ("10.0.0.1", [("web", 80)], None),
    ],
)
def test_with_an_admin_port_metrics_are_there(address: str, ports: list[tuple[str, int]], url: str | None) -> None:
    given = [{"name": name, "containerPort": number} for name, number in ports]
    (found,) = members([pod(address=address, ports=given)], NOW)
    assert found.url == url


def test_one_that_was_ready_and_is_no_more_counts_from_then() -> None:
    """Its node is lost, say: it is no replica that has been starting for an hour."""
    (found,) = members([pod(ready="False", since="2026-01-01T00:59:00Z")], NOW)
    assert (found.phase, found.age, found.startup) == ("pending", 60.0, None)


def test_one_that_never_was_ready_counts_from_its_making() -> None:
    (found,) = members([pod(ready=None)], NOW)
    assert (found.phase, found.age, found.unschedulable) == ("pending", 3600.0, False)


def test_one_without_a_node_says_so() -> None:
    body = pod(ready=None)
    body["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
    del body["spec"]["nodeName"]
    assert members([body], NOW)[0].unschedulable


def test_those_that_end_are_neither_and_those_that_have_ended_are_not_there() -> None:
    found = members([pod("a", deleted=True), pod("b", phase="Failed"), pod("c", phase="Succeeded")], NOW)
    assert [(each.name, each.phase) for each in found] == [("a", "terminating")]


def test_of_gateways_those_count_that_are_ready_and_stay() -> None:
    ports = [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}]
    pods = [pod("a", ports=ports), pod("b", ready="False", ports=ports), pod("c", deleted=True, ports=ports)]
    assert gateway_urls(pods) == {"uid-a": "http://10.0.0.1:9090/metrics"}
    behind_tls = pod("a", ports=ports, annotations={"prometheus.io/scheme": "https"})
    assert gateway_urls([behind_tls]) == {"uid-a": "https://10.0.0.1:9090/metrics"}


def test_victims_go_in_their_order_and_before_all_others() -> None:
    changes = costs_to_write([pod("a"), pod("b"), pod("c")], ["c", "a"])
    assert {each["metadata"]["name"]: annotations for each, annotations in changes} == {
        "a": {COST: "-1", OUR_COST: "-1"},
        "c": {COST: "-2", OUR_COST: "-2"},
    }


def test_what_is_written_already_is_not_written_again() -> None:
    written = {COST: "-1", OUR_COST: "-1"}
    assert costs_to_write([pod("a", annotations=written), pod("b")], ["a"]) == []


def test_stale_costs_go_and_those_of_other_people_stay() -> None:
    pods = [
        pod("ours", annotations={COST: "-1", OUR_COST: "-1"}),
        pod("theirs", annotations={COST: "100"}),
        pod("changed-by-them", annotations={COST: "100", OUR_COST: "-1"}),
        pod("ending", annotations={COST: "-1", OUR_COST: "-1"}, deleted=True),
        pod("none"),
    ]
    changes = {each["metadata"]["name"]: annotations for each, annotations in stale_costs(pods)}
    assert changes == {"ours": {COST: None, OUR_COST: None}, "changed-by-them": {OUR_COST: None}}
    chosen = {each["metadata"]["name"] for each, _ in costs_to_write(pods, ["theirs", "none"])}
    assert "theirs" not in chosen and "none" in chosen


def test_costs_are_needed_until_nobody_is_left_to_be_chosen() -> None:
    assert not is_settled([pod("a"), pod("b")], 1)
    assert is_settled([pod("a"), pod("b", deleted=True)], 1)
