"""What a deployment has used: pods by the second, also across restarts of the operator."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import generate_latest

from octavo_operator.accounting import Account, Ledger, accelerators, epoch
from octavo_operator.probes import Metrics

Object = dict[str, Any]
MADE = "2026-01-01T00:00:00Z"
START = epoch(MADE)


def live(**accounting: Any) -> Object:
    metadata = {"namespace": "team", "name": "demo", "uid": "u", "creationTimestamp": MADE}
    return {"metadata": metadata, "status": {"accounting": accounting} if accounting else {}}


def pod(uid: str, since: int | None, gpus: str = "1", ended: int | None = None) -> Object:
    """Bound to its node `since` seconds after the start."""
    limits = {"nvidia.com/gpu": gpus, "memory": "1Gi"}
    status: Object = {"phase": "Running"}
    if since is not None:
        status["conditions"] = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": at(since)}]
    if ended is not None:
        status |= {"phase": "Failed"}
        status["containerStatuses"] = [{"name": "server", "state": {"terminated": {"finishedAt": at(ended)}}}]
    containers = [{"name": "server", "resources": {"limits": limits}}]
    return {"metadata": {"uid": uid, "name": uid}, "spec": {"containers": containers}, "status": status}


def at(seconds: int) -> str:
    return f"2026-01-01T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}Z"


def used(account: Account) -> tuple[int, int]:
    document = account.document()
    return document["replicaSeconds"], document["acceleratorSeconds"]


def test_a_pod_counts_from_its_node_to_its_end_and_by_its_accelerators() -> None:
    account = Account.opened(live(), START)
    account.look([pod("a", None)], START + 50)
    assert used(account) == (0, 0)
    account.look([pod("a", 60), pod("b", 90, gpus="2")], START + 100)
    assert used(account) == (50, 40 + 20)
    account.look([pod("b", 90, gpus="2")], START + 110)  # a was there until it was seen to be gone
    assert used(account) == (70, 50 + 40)
    account.look([pod("b", 90, gpus="2", ended=115)], START + 200)
    assert used(account) == (75, 50 + 50)
    account.look([], START + 300)
    assert used(account) == (75, 100)


def test_after_a_restart_pods_that_are_still_there_lost_nothing() -> None:
    first = Account.opened(live(), START)
    first.look([pod("a", 0)], START + 100)
    written = first.document()
    assert written == {"replicaSeconds": 100, "acceleratorSeconds": 100, "asOf": at(100)}
    second = Account.opened(live(**written), START + 500)
    second.look([pod("a", 0), pod("b", 400)], START + 500)
    assert used(second) == (600, 600)


@pytest.mark.parametrize("step", [1, 7, 300])
def test_however_often_one_looks_the_sum_is_the_same(step: int) -> None:
    account = Account.opened(live(), START)
    for now in range(0, 301, step):
        account.look([pod("a", 10), pod("b", 20, gpus="4")], START + now)
    account.look([pod("a", 10), pod("b", 20, gpus="4")], START + 300)
    assert used(account) == (290 + 280, 290 + 4 * 280)


def test_a_clock_that_goes_back_takes_nothing_away() -> None:
    account = Account.opened(live(), START)
    account.look([pod("a", 0)], START + 100)
    account.look([pod("a", 0)], START + 50)
    account.look([pod("a", 0)], START + 100)
    assert used(account) == (100, 100)


def test_only_extended_resources_are_accelerators() -> None:
    limits = {"cpu": "4", "memory": "1Gi", "ephemeral-storage": "1Gi", "example.com/npu": "1k"}
    assert accelerators({"spec": {"containers": [{"resources": {"limits": limits}}, {}]}}) == 1000


def test_metrics_count_on_between_two_looks_and_forget_what_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(lambda: 0)
    metrics.ledger.look(live(), [pod("a", 0, gpus="2")], at(0))
    monkeypatch.setattr("octavo_operator.probes.time.time", lambda: START + 30)
    told = generate_latest(metrics.registry).decode()
    assert 'octavo_operator_replica_seconds_total{name="demo",namespace="team"} 30.0' in told
    assert 'octavo_operator_accelerator_seconds_total{name="demo",namespace="team"} 60.0' in told
    metrics.ledger.close("team", "demo")
    assert "accelerator_seconds_total{" not in generate_latest(metrics.registry).decode()


def test_one_of_the_same_name_made_later_has_an_account_of_its_own() -> None:
    ledger = Ledger()
    ledger.look(live(), [pod("a", 0)], at(0))
    assert ledger.look(live(), [pod("a", 0)], at(100))["replicaSeconds"] == 100
    later = live()
    later["metadata"] |= {"uid": "u2", "creationTimestamp": at(100)}
    assert ledger.look(later, [pod("b", 110)], at(120))["replicaSeconds"] == 10
