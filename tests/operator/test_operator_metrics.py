"""The page on metrics lists what the operator tells, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from octavo_operator.accounting import Account
from octavo_operator.autoscale.decide import Decision
from octavo_operator.autoscale.state import State
from octavo_operator.probes import Metrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
NAME = ("team-a", "llama")


def all_told() -> Metrics:
    """With everything counted at least once, as labels are told only then."""
    metrics = Metrics(lambda: 0)
    metrics.reconciles.labels("done").inc()
    decision = Decision(2, "Work", "because", State())
    metrics.autoscaling.decided(NAME, decision)
    metrics.autoscaling.applied(NAME, decision, 1)
    metrics.autoscaling.scraped("ok")
    metrics.ledger._accounts[NAME] = ("uid", Account((0.0, 0.0), 0.0))
    return metrics


def test_the_page_and_the_operator_agree() -> None:
    _, _, page = PAGE.read_text().partition("## The operator's")
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in page.splitlines() if line.startswith("| `")]
    documented = {name.strip("`"): (kind, set(re.findall(r"`([^`]+)`", labels))) for name, kind, labels in rows}
    found = {}
    for family in all_told().registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, labels)
    assert documented == found
    assert len(found) > 10


def test_gauges_of_what_is_gone_are_gone() -> None:
    metrics = all_told()
    metrics.autoscaling.forget(NAME)
    metrics.autoscaling.forget(NAME)
    labels = {"namespace": "team-a", "name": "llama"}
    told = metrics.registry.get_sample_value
    assert told("octavo_operator_autoscaling_desired_replicas", labels) is None
    counted = labels | {"direction": "up", "reason": "Work"}
    assert told("octavo_operator_autoscaling_decisions_total", counted) == 1, "a counter goes on"
