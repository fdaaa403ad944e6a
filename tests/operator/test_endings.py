"""Pods that end, in time or not, and those whose node does not answer."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.endings import endings, is_silent

Object = dict[str, Any]
NOW = "2026-01-02T00:00:00Z"
SOON, PAST = "2026-01-02T00:02:40Z", "2026-01-01T23:00:00Z"


def pod(name: str = "p-1", until: str = "", node: str = "n-1", phase: str = "Running", **conditions: str) -> Object:
    metadata: Object = {"name": name} | ({"deletionTimestamp": until} if until else {})
    said = [{"type": kind, "status": status} for kind, status in conditions.items()]
    return {
        "metadata": metadata,
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase, "conditions": said},
    }


def test_what_drains_is_counted_and_what_should_be_gone_is_named_with_its_node() -> None:
    found = endings([pod(), pod("a", SOON), pod("b", SOON), pod("c", PAST), pod("d", PAST)], NOW)
    assert found.draining == 2 and [each["metadata"]["name"] for each in found.overdue] == ["c", "d"]
    assert str(found) == (
        f"2 pods end their requests; pod c (and 1 more) should have ended at {PAST}, and node n-1 does not say so: it "
        "holds its accelerator until the node is back, or is deleted"
    )
    assert str(endings([pod("a", SOON)], NOW)) == "1 pod ends its requests"


@pytest.mark.parametrize("held", [pod(until=SOON, node=""), pod(until=SOON, phase="Failed"), pod()])
def test_what_holds_nothing_is_not_told(held: Object) -> None:
    found = endings([held], NOW)
    assert not found.draining and not found.overdue and str(found) == ""


def test_a_node_is_silent_where_only_the_controller_of_nodes_has_written() -> None:
    assert is_silent(pod(Ready="False", ContainersReady="True"))
    assert not is_silent(pod(Ready="False", ContainersReady="False"))  # the kubelet said so itself
    assert not is_silent(pod(Ready="True", ContainersReady="True"))
    assert not is_silent(pod())
    gated = pod(Ready="False", ContainersReady="True")
    gated["spec"]["readinessGates"] = [{"conditionType": "example.com/ok"}]
    assert not is_silent(gated)
