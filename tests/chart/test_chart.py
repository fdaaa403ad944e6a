"""The chart, rendered and linted by Helm's own engine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from least_role import LEASE_RULES, RULES
from octavo_chart import (
    CHART,
    COMBINATIONS,
    DIGEST,
    OLDER_VALUES,
    PROMETHEUS,
    Object,
    Values,
    identity,
    of_kind,
    part,
    render,
    the_one,
)
from octavo_cli.operator import operator
from octavo_common.names import ADMIN_PORT, DEPLOYMENT_LABEL, GATEWAY_SELECTOR, OPERATOR_PORT, SERVER_PORT
from octavo_common.version import __version__

CRDS = CHART.parents[1] / "crds"
MONITORED: Values = {"podMonitor": {"enabled": True}, "networkPolicy": {"metricsFrom": [PROMETHEUS]}}
EVERY = pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)


@pytest.fixture(scope="module")
def chart() -> Iterator[helm.Chart]:
    with helm.Chart.load(CHART) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def schema() -> Object:
    return dict(json.loads((CHART / "values.schema.json").read_text()))


def operators(values: Values) -> list[Object]:
    """The operator's objects alone."""
    return part(render(values), "operator")


def the_container(objects: list[Object]) -> Object:
    (container,) = the_one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(container)


@EVERY
def test_helm_finds_nothing_to_object_to(values: Values) -> None:
    report = helm.lint(CHART, values, strict=True, namespace="team", kube_version="v1.34.0")
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > 1] == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"scope": "Namespaced"}, "scope"),
        ({"image": {"repository": "x", "digest": "sha256:123"}}, "digest"),
        ({"image": {"repository": "x", "tagg": "1"}}, "tagg"),
        ({"replicaCount": 2}, "replicaCount"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": 1000}, "replicas"),
        ({"logLevel": "loud"}, "logLevel"),
        ({"namespaces": ["Team_A"]}, "namespaces"),
        ({"networkPolicy": {"apiserver": {}}}, "apiserver"),
        ({"networkPolicy": {"apiServer": {"ports": []}}}, "ports"),
        ({"networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1"]}}}, "cidrs"),
        ({"networkPolicy": {"metricsFrom": [{}]}}, "metricsFrom"),
        ({"podMonitor": {"interval": 30}}, "interval"),
        ({"resources": {"limits": {"memory": "lots"}}}, "memory"),
        ({"tolerations": [{"Key": "x"}]}, "Key"),
        ({"affinity": {"nodeAfinity": {}}}, "nodeAfinity"),
        ({"podLabels": {"app.kubernetes.io/name": "mine"}}, "podLabels"),
        ({"podAnnotations": {"a": 1}}, "podAnnotations"),
        ({"crds": {"keep": True}}, "keep"),
        ({"gateway": {"enable": True}}, "enable"),
        ({"gateway": {"replicas": 0}}, "replicas"),
        ({"gateway": {"apiKeys": {"secretName": "Keys"}}}, "secretName"),
        ({"gateway": {"service": {"type": "ExternalName"}}}, "type"),
        ({"gateway": {"service": {"port": 0}}}, "port"),
        ({"gateway": {"url": "llm.example.com"}}, "url"),
        ({"gateway": {"hold": {"seconds": 0}}}, "seconds"),
        ({"gateway": {"drain": {"seconds": "600s"}}}, "seconds"),
        ({"gateway": {"podLabels": {"app.kubernetes.io/component": "operator"}}}, "podLabels"),
    ],
)
def test_wrong_values_are_refused_by_name(chart: helm.Chart, values: Values, named: str) -> None:
    with pytest.raises(helm.HelmValuesError, match=named):
        chart.validate_schema(values)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"scope": "Cluster", "namespaces": ["a"]}, "namespaces: is for scope Namespace"),
        ({"podMonitor": {"enabled": True}}, "name its pods in networkPolicy.metricsFrom"),
    ],
)
def test_values_that_cannot_work_together_are_refused_with_what_to_change(
    chart: helm.Chart, values: Values, named: str
) -> None:
    with pytest.raises(helm.HelmRenderError, match=named):
        chart.render(values, name="release", namespace="team")


def test_names_that_yaml_would_take_for_something_else_stay_texts() -> None:
    values: Values = {
        **MONITORED,
        "namespaces": ["1e3", "on"],
        "nameOverride": "12",
        "fullnameOverride": "0x1",
        "priorityClassName": "5",
        "serviceAccount": {"name": "7"},
        "replicas": 2,
    }
    objects = render(values, namespace="123", name="456")
    named = {(each["metadata"]["name"], each["metadata"].get("namespace")) for each in objects}
    assert {("0x1", "123"), ("0x1", "1e3"), ("0x1", "on"), ("0x1-lease", "123"), ("7", "123")} <= named
    texts = [value for each in objects for value in (*each["metadata"]["labels"].values(), *each["metadata"].values())]
    assert [each for each in texts if not isinstance(each, str | dict)] == []
    pod = the_one(objects, "Deployment")["spec"]["template"]
    assert (pod["spec"]["serviceAccountName"], pod["spec"]["priorityClassName"]) == ("7", "5")
    assert pod["metadata"]["labels"]["app.kubernetes.io/instance"] == "456"
    subjects = [subject for each in of_kind(objects, "RoleBinding") for subject in each["subjects"]]
    assert {(each["name"], each["namespace"]) for each in subjects} == {("7", "123")}


def test_the_schema_describes_each_default_and_nothing_else(chart: helm.Chart, schema: Object) -> None:
    """A value that the schema does not know would be refused; one that only the schema knows would do nothing."""
    jsonschema.Draft7Validator.check_schema(schema)
    assert described(chart.values, schema) == []


def described(values: Values, schema: Object, path: str = "") -> list[str]:
    """Where defaults and schema part, from the top down to what has no named fields."""
    properties = schema["properties"]
    wrong = [f"{path}{name}" for name in set(values) ^ (set(properties) - {"global"})]
    for name, value in values.items():
        inner = properties.get(name, {})
        if isinstance(value, dict) and "properties" in inner and name not in {"affinity", "resources"}:
            wrong += described(value, inner, f"{path}{name}.")
    return wrong


def test_the_schema_says_of_every_key_what_it_is_and_bounds_it(schema: Object) -> None:
    assert list(unbounded(schema, "values")) == []


def unbounded(node: Object, path: str) -> Iterator[str]:
    for name, inner in node.get("definitions", {}).items():
        yield from unbounded(inner, f"#{name}")
    for name, inner in node.get("properties", {}).items():
        if "description" not in inner:
            yield f"{path}.{name} has no description"
        yield from unbounded(inner, f"{path}.{name}")
    kind = node.get("type")
    if kind == "object" and node.get("additionalProperties", True) is not False and "maxProperties" not in node:
        yield f"{path} takes any number of keys"
    if kind == "array":
        if "maxItems" not in node:
            yield f"{path} takes any number of items"
        yield from unbounded(node["items"], f"{path}[]")
    if kind == "string" and "maxLength" not in node and not node.get("pattern", "").endswith("{64})?$"):
        yield f"{path} takes a string of any length"
    if kind == "integer" and not {"minimum", "maximum"} <= set(node):
        yield f"{path} takes any number"


@EVERY
def test_no_two_objects_are_the_same_and_all_carry_the_releases_labels(values: Values) -> None:
    objects = render(values)
    assert len({identity(each) for each in objects}) == len(objects)
    for each in objects:
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "release"


@EVERY
def test_rbac_is_the_golden_list_and_no_more(values: Values) -> None:
    objects = operators(values)
    roles = {
        (each["metadata"]["namespace"], each["metadata"]["name"]): each["rules"] for each in of_kind(objects, "Role")
    }
    lease = [key for key in roles if key[1].endswith("-lease")]
    assert [roles.pop(key) for key in lease] == [LEASE_RULES]
    assert [namespace for namespace, _ in lease] == ["team"]
    if values.get("scope") == "Cluster":
        assert roles == {}
        assert [each["rules"] for each in of_kind(objects, "ClusterRole") if not for_users(each)] == [RULES]
    else:
        assert [namespace for namespace, _ in roles] == values.get("namespaces", ["team"])
        assert list(roles.values()) == [RULES] * len(roles)
        assert of_kind(objects, "ClusterRole") + of_kind(objects, "ClusterRoleBinding") == []


def for_users(role: Object) -> bool:
    return any("aggregate-to" in label for label in role["metadata"]["labels"])


def test_roles_for_users_are_made_by_choice_and_no_part_of_the_operators() -> None:
    assert [each for each in render({"scope": "Cluster"}) if each["kind"] == "ClusterRole" and for_users(each)] == []
    objects = render({"userRoles": {"create": True}})
    assert [for_users(each) for each in of_kind(objects, "ClusterRole")] == [True, True]
    assert of_kind(objects, "ClusterRoleBinding") == []


def test_the_golden_list_reads_no_secret_runs_nothing_in_pods_and_has_no_wildcard() -> None:
    for rule in RULES + LEASE_RULES:
        assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
        assert not {"secrets", "configmaps", "pods/exec", "pods/attach", "pods/portforward"} & set(rule["resources"])
        assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"])


@EVERY
def test_every_binding_leads_to_the_account_that_the_pod_runs_as(values: Values) -> None:
    objects = operators(values)
    account = the_one(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    made = [each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")]
    assert made == ([account] if values.get("serviceAccount", {}).get("create", True) else [])
    bindings = of_kind(objects, "RoleBinding") + of_kind(objects, "ClusterRoleBinding")
    assert bindings
    there = {identity(each) for each in objects}
    for binding in bindings:
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "team"}]
        role = binding["roleRef"]
        assert (role["kind"], binding["metadata"].get("namespace", ""), role["name"]) in there


@EVERY
def test_the_pod_meets_pod_security_restricted(values: Values) -> None:
    objects = operators(values)
    pod = the_one(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not any("hostPath" in volume for volume in pod["volumes"])
    assert the_container(objects)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@EVERY
def test_what_selects_the_pods_finds_them_and_survives_an_upgrade(values: Values) -> None:
    objects = operators(values)
    spec = the_one(objects, "Deployment")["spec"]
    selector = spec["selector"]["matchLabels"]
    assert selector.items() <= spec["template"]["metadata"]["labels"].items()
    assert not any("version" in key or "chart" in key for key in selector)
    others = [each["spec"]["selector"] for each in of_kind(objects, "PodDisruptionBudget")]
    others += [each["spec"]["podSelector"] for each in of_kind(objects, "NetworkPolicy")]
    others += [each["labelSelector"] for each in spec["template"]["spec"].get("topologySpreadConstraints", [])]
    assert all(other == {"matchLabels": selector} for other in others)


@EVERY
def test_the_operators_arguments_are_those_of_its_command(values: Values) -> None:
    container = the_container(operators(values))
    assert container["command"] == ["octavo", "operator"]
    with operator.make_context("operator", list(container["args"])) as context:
        given = context.params
    assert given["all_namespaces"] is (values.get("scope") == "Cluster")
    assert given["namespaces"] == (() if given["all_namespaces"] else tuple(values.get("namespaces", ["team"])))
    assert given["probe_port"] == OPERATOR_PORT
    assert [port["containerPort"] for port in container["ports"]] == [OPERATOR_PORT]


def test_probes_ask_the_routes_that_the_operator_has() -> None:
    container = the_container(render({}))
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["port"] for probe in probes.values()} == {container["ports"][0]["name"]}
    assert probes["livenessProbe"]["path"] == "/healthz"
    assert probes["readinessProbe"]["path"] == "/readyz"


def test_images_are_by_digest_where_one_is_given_else_by_the_version() -> None:
    container = the_container(render(COMBINATIONS["digests"]))
    assert container["image"] == f"a/b@{DIGEST}"
    assert f"--server-image=c/d@{DIGEST}" in container["args"]
    container = the_container(render({}))
    assert container["image"] == f"octavo-operator:{__version__}"
    assert f"--server-image=octavo-server:{__version__}" in container["args"]


def test_only_what_is_one_of_several_has_a_disruption_budget() -> None:
    assert of_kind(render({}), "PodDisruptionBudget") == []
    spec = the_one(render({"replicas": 3}), "PodDisruptionBudget")["spec"]
    assert (spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def test_the_network_lets_out_to_the_api_server_and_in_to_the_metrics_alone() -> None:
    spec = the_one(render({}), "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == []
    assert sorted(spec["egress"][0]) == ["ports"]
    assert [port["port"] for port in spec["egress"][0]["ports"]] == [443, 6443, 8443, 16443]
    objects = render(COMBINATIONS["everything"])
    spec = the_one(objects, "NetworkPolicy")["spec"]
    (opened,) = spec["ingress"]
    assert opened["from"] == COMBINATIONS["everything"]["networkPolicy"]["metricsFrom"]
    assert [port["port"] for port in opened["ports"]] == [the_container(objects)["ports"][0]["name"]]
    assert spec["egress"][0]["to"] == [{"ipBlock": {"cidr": "10.0.0.1/32"}}, {"ipBlock": {"cidr": "fd00::/8"}}]


def test_the_network_lets_out_to_what_the_autoscaler_asks() -> None:
    objects = render({})
    _, replicas, gateways = the_one(objects, "NetworkPolicy")["spec"]["egress"]
    (pods,) = replicas["to"]
    assert pods["podSelector"]["matchExpressions"] == [{"key": DEPLOYMENT_LABEL, "operator": "Exists"}]
    assert pods["namespaceSelector"] == {}
    assert [port["port"] for port in replicas["ports"]] == [SERVER_PORT, ADMIN_PORT]
    (given,) = [arg for arg in the_container(objects)["args"] if arg.startswith("--gateway-selector=")]
    labels = dict(pair.split("=") for pair in given.partition("=")[2].split(","))
    assert gateways["to"] == [{"podSelector": {"matchLabels": labels}}]
    assert GATEWAY_SELECTOR.partition("=")[::2] in labels.items()


def test_a_pod_monitor_reads_the_port_that_the_policy_opens() -> None:
    objects = render(MONITORED | {"podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}})
    monitor = the_one(objects, "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    assert the_one(objects, "NetworkPolicy")["spec"]["ingress"][0]["from"] == [PROMETHEUS]
    assert of_kind(render({}), "PodMonitor") == []


def test_the_charts_version_is_that_of_the_distribution(chart: helm.Chart) -> None:
    assert (chart.version, chart.metadata["appVersion"]) == (__version__, __version__)


def test_the_chart_makes_the_crd_of_the_repository_and_keeps_it() -> None:
    """In templates: what lies in a chart's crds/ is never upgraded."""
    assert list((CHART / "crds").glob("*")) == []
    (file,) = CRDS.iterdir()
    assert (CHART / "files" / file.name).read_text() == file.read_text()
    made = the_one(render({}), "CustomResourceDefinition")
    assert made["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert made["spec"] == yaml.safe_load(file.read_text())["spec"]
    assert of_kind(render({"crds": {"install": False}}), "CustomResourceDefinition") == []


def test_a_packaged_chart_renders_the_same(chart: helm.Chart, tmp_path: Path) -> None:
    archive = Path(chart.save(tmp_path)).read_bytes()
    with helm.Chart.load_archive(archive) as packaged:
        rendered = [each.render({}, name="release", namespace="team") for each in (chart, packaged)]
    assert rendered[0] == rendered[1]


@pytest.mark.parametrize("file", sorted(OLDER_VALUES.iterdir()), ids=lambda file: file.stem)
def test_values_of_an_older_release_are_still_taken(chart: helm.Chart, file: Any) -> None:
    values = yaml.safe_load(file.read_text())
    chart.validate_schema(values)
    assert {each[0] for each in map(identity, render(values))} >= {"Deployment", "Role"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, ["of team.", "--namespace team rollout status deployment/release-octavo", "image.digest"]),
        ({"namespaces": ["a", "b"]}, ["of a, b.", "kubectl --namespace a apply"]),
        ({"scope": "Cluster"}, ["of all namespaces.", "kubectl --namespace default apply"]),
        ({"crds": {"install": False}}, ["octavo crd | kubectl apply --server-side"]),
    ],
    ids=["defaults", "namespaces", "cluster", "no crd"],
)
def test_the_notes_say_what_was_installed_and_what_to_do(chart: helm.Chart, values: Values, told: list[str]) -> None:
    notes = chart.render(values, name="release", namespace="team")["octavo/templates/NOTES.txt"]
    assert all(each in notes for each in told)


def test_the_operator_refuses_to_guess_its_namespaces() -> None:
    result = CliRunner().invoke(operator, [])
    assert "either --namespace (repeatable) or --all-namespaces" in str(result.exception)
