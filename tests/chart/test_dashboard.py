"""The chart's Grafana dashboard: valid, found by the sidecar, and of figures that are told."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from octavo_chart import Object, of_kind, render, the_one

METRICS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def dashboard() -> Object:
    config = the_one(render({"dashboard": {"enabled": True}}), "ConfigMap")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    return dict(json.loads(config["data"]["octavo.json"]))


def test_there_is_none_unless_it_is_asked_for() -> None:
    assert of_kind(render({}), "ConfigMap") == []


def test_every_figure_is_one_that_the_page_on_metrics_has_with_its_labels(dashboard: Object) -> None:
    """Tests compare that page with what servers, gateway and operator tell."""
    rows = re.findall(r"^\| `([^`]+)` \| (\w+)[^|]*\| ([^|]*)\|", METRICS.read_text(encoding="utf-8"), re.MULTILINE)
    told = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    asked = [target for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(asked) > len(dashboard["panels"]) > 10
    for target in asked:
        names = re.findall(r"(?:vllm:|octavo:|octavo_operator_)\w+", target["expr"])
        assert names
        for name in names:
            kind, labels = told[name.removesuffix("_bucket")]
            assert name.endswith("_bucket") is (kind == "histogram")
            own = labels | ({"model_name"} if not name.startswith(("octavo:gateway", "octavo_operator")) else set())
            by = {label for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(", ")}
            assert by - {"le"} <= own, name
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert shown and shown <= by


def test_panels_have_a_place_and_a_number_of_their_own(dashboard: Object) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart = abs(one["x"] - other["x"]) >= one["w"] or abs(one["y"] - other["y"]) >= one["h"]
        assert apart and one["x"] + one["w"] <= 24
