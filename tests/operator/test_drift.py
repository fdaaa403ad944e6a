"""Drift is what differs from what was applied, not what others have added or the API server has rewritten."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from octavo_operator.drift import DIGEST_ANNOTATION, controller_uid, in_sync, is_orphan, stamped

Object = dict[str, Any]

RENDERED: Object = {
    "kind": "Deployment",
    "metadata": {"name": "demo", "labels": {"app.kubernetes.io/managed-by": "octavo-operator"}},
    "spec": {
        "replicas": 0,
        "containers": [
            {
                "name": "server",
                "args": ["a", "b"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": ""}],
                "resources": {"requests": {"cpu": "0.5", "memory": "1024Mi"}},
                "probe": {"periodSeconds": 2},
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "tolerations": [{"key": "a"}],
    },
}


def live() -> Object:
    """As an API server would give it back."""
    held = copy.deepcopy(stamped(RENDERED))
    held["metadata"] |= {"uid": "u-2", "resourceVersion": "7"}
    held["metadata"]["annotations"]["foreign"] = "x"
    held["spec"] |= {"paused": False}
    container = held["spec"]["containers"][0]
    container["env"] = [{"name": "FOREIGN", "value": "y"}, {"name": "B"}, {"name": "A", "value": "1"}]
    container["resources"]["requests"] = {"cpu": "500m", "memory": "1Gi"}
    container["probe"]["timeoutSeconds"] = 1
    held["spec"]["containers"].insert(0, {"name": "sidecar"})
    return held


def test_defaults_additions_and_canonical_quantities_are_no_drift() -> None:
    assert in_sync(stamped(RENDERED), live())


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held["spec"].update(replicas=1),
        lambda held: held["spec"]["containers"][1].update(args=["a"]),
        lambda held: held["spec"]["containers"][1].update(args=["b", "a"]),
        lambda held: held["spec"]["containers"][1]["env"].pop(),
        lambda held: held["spec"]["containers"][1]["env"][1].update(value="set"),
        lambda held: held["spec"]["containers"][1]["resources"]["requests"].update(cpu="501m"),
        lambda held: held["spec"]["containers"].pop(),
        lambda held: held["spec"]["tolerations"].append({"key": "b"}),
        lambda held: held["metadata"]["labels"].clear(),
        lambda held: held["metadata"]["annotations"].pop(DIGEST_ANNOTATION),
    ],
)
def test_every_other_difference_is_drift(change: Any) -> None:
    held = live()
    change(held)
    assert not in_sync(stamped(RENDERED), held)


def test_what_is_rendered_no_more_is_drift() -> None:
    less = copy.deepcopy(RENDERED)
    del less["spec"]["containers"][0]["env"]
    assert not in_sync(stamped(less), live())


def test_a_selector_is_ours_whole() -> None:
    for key in ("selector", "podSelector", "namespaceSelector"):
        assert not in_sync({key: {"app": "a"}}, {key: {"app": "a", "more": "b"}})
        assert not in_sync({"from": [{key: {}}]}, {"from": [{key: {"matchLabels": {"app": "a"}}}]})


def test_true_is_not_one() -> None:
    assert not in_sync({"a": {"b": 1}}, {"a": {"b": True}})


def test_who_controls_an_object() -> None:
    held = live()
    assert controller_uid(held) is None
    held["metadata"]["ownerReferences"] = [{"uid": "x"}, {"uid": "y", "controller": True}]
    assert controller_uid(held) == "y"


def test_an_orphan_of_ours_is_told_from_a_strangers() -> None:
    mine = {"octavo.dev/deployment": "demo"}
    held = live()
    assert not is_orphan(held, mine)
    held["metadata"]["labels"] |= mine
    assert is_orphan(held, mine)
    assert not is_orphan(held | {"metadata": held["metadata"] | {"ownerReferences": [{"uid": "x"}]}}, mine)
