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
    "gateway": {"gateway": {"enabled": True, "apiKeys": {"secretName": "keys"}}},
    "open gateway": {
        "namespaces": ["team-a", "team-b"],
        "gateway": {
            "enabled": True,
            "replicas": 1,
            "apiKeys": {"required": False},
            "serviceAccount": {"create": False, "name": "given"},
            "drain": {"delaySeconds": 0, "seconds": 30},
        },
    },
    "whole gateway": {
        "scope": "Cluster",
        "image": {"repository": "a/b", "digest": DIGEST},
        "imagePullSecrets": [{"name": "pull"}],
        "networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1/32"]}, "metricsFrom": [PROMETHEUS]},
        "gateway": {
            "enabled": True,
            "replicas": 3,
            "apiKeys": {"secretName": "keys"},
            "limits": {"requestsPerMinute": 60, "tokensPerMinute": 2000000, "concurrentRequests": 8},
            "replicaKey": {"namespaces": ["models"]},
            "tls": {"secretName": "certificate"},
            "service": {"type": "LoadBalancer", "port": 443, "annotations": {"a/b": "c"}},
            "url": "https://llm.example.com/v1",
            "hold": {"requests": 100000, "mebibytes": 2048, "seconds": 86400},
            "targets": {"timeToFirstTokenMilliseconds": 1500, "timePerOutputTokenMilliseconds": 1},
            "logFormat": "json",
            "logRequests": "errors",
            "networkPolicy": {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]},
            "serviceAccount": {"annotations": {"d/e": "f"}},
            "podAnnotations": {"d/e": "f"},
            "podLabels": {"team": "search"},
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "x", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "topologySpreadConstraints": [
                {"maxSkew": 2, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
            ],
            "priorityClassName": "system-cluster-critical",
            "resources": {"requests": {"cpu": 2}, "limits": {"memory": "4Gi"}},
        },
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


def part(objects: list[Object], component: str) -> list[Object]:
    """The objects of the operator, or of the gateway."""
    return [each for each in objects if each["metadata"]["labels"]["app.kubernetes.io/component"] == component]


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def the_one(objects: list[Object], kind: str) -> Object:
    (only,) = of_kind(objects, kind)
    return only


def identity(item: Object) -> tuple[str, str, str]:
    """(kind, namespace, name): what no two objects may share."""
    return item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]
