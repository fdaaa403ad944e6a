"""The chart as Helm's own engine (the Go library, through helm-python-sdk) renders it, and values to try it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "octavo"
OLDER_VALUES = Path(__file__).resolve().parents[1] / "chart" / "values"
DIGEST = "sha256:" + "0123456789abcdef" * 4
PROMETHEUS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}

Object = dict[str, Any]
Values = dict[str, Any]

COMBINATIONS: dict[str, Values] = {
    "defaults": {},
    "cluster": {"scope": "Cluster"},
    "namespaces": {"namespaces": ["team-a", "team-b"]},
    "digests": {
        "image": {"repository": "a/b", "digest": DIGEST},
        "serverImage": {"repository": "c/d", "digest": DIGEST},
    },
    "own account": {"serviceAccount": {"create": False, "name": "given"}},
    "alone": {
        "crds": {"install": False},
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "replicas": 2,
    },
    "everything": {
        "scope": "Cluster",
        "userRoles": {"create": True},
        "replicas": 2,
        "imagePullSecrets": [{"name": "pull"}],
        "serviceAccount": {"annotations": {"a/b": "c"}},
        "podAnnotations": {"d/e": "f"},
        "podLabels": {"team": "search"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "x", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "priorityClassName": "system-cluster-critical",
        "logLevel": "debug",
        "fullnameOverride": "llm-operator",
        "resources": {
            "requests": {"cpu": 1, "memory": "1Gi", "ephemeral-storage": "1Gi"},
            "limits": {"cpu": "1.5", "memory": "1Gi"},
        },
        "networkPolicy": {
            "apiServer": {"ports": [6443], "cidrs": ["10.0.0.1/32", "fd00::/8"]},
            "metricsFrom": [PROMETHEUS, {"ipBlock": {"cidr": "10.1.0.0/16", "except": ["10.1.2.0/24"]}}],
        },
    },
}


def render(values: Values, namespace: str = "team", name: str = "release") -> list[Object]:
    """Every object of the chart, as `helm template` gives them: without a cluster."""
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values, name=name, namespace=namespace)
    texts = [text for path, text in files.items() if not path.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def the_one(objects: list[Object], kind: str) -> Object:
    (only,) = of_kind(objects, kind)
    return only


def identity(item: Object) -> tuple[str, str, str]:
    """(kind, namespace, name): what no two objects may share."""
    return item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]
