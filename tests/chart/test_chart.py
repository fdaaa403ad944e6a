"""The chart, rendered and linted by Helm's own engine (the Go library, through helm-python-sdk)."""

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
from octavo_cli.operator import operator
from octavo_common.names import OPERATOR_PORT
from octavo_common.version import __version__

CHART = Path(__file__).resolve().parents[2] / "charts" / "octavo"
CRDS = CHART.parents[1] / "crds"
DIGEST = "sha256:" + "0123456789abcdef" * 4

Manifest = dict[str, Any]
Values = dict[str, Any]

COMBINATIONS: dict[str, Values] = {
    "defaults": {},
    "cluster": {"scope": "Cluster"},
    "digests": {
        "image": {"repository": "a/b", "digest": DIGEST},
        "serverImage": {"repository": "c/d", "digest": DIGEST},
    },
    "own account": {"serviceAccount": {"create": False, "name": "given"}},
    "everything": {
        "scope": "Cluster",
        "replicas": 2,
        "imagePullSecrets": [{"name": "pull"}],
        "serviceAccount": {"annotations": {"a/b": "c"}},
        "podAnnotations": {"d/e": "f"},
        "podLabels": {"team": "search"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "x", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "system-cluster-critical",
        "logLevel": "debug",
        "fullnameOverride": "llm-operator",
    },
}


@pytest.fixture(scope="module")
def chart() -> Iterator[helm.Chart]:
    with helm.Chart.load(CHART) as loaded:
        yield loaded


def render(chart: helm.Chart, values: Values) -> dict[tuple[str, str], Manifest]:
    """The rendered objects by (kind, name); no two may be the same."""
    files = chart.render(values, name="release", namespace="team")
    objects = [
        document
        for path, text in files.items()
        if not path.endswith("NOTES.txt")
        for document in yaml.safe_load_all(text)
        if document
    ]
    by_name = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    assert len(by_name) == len(objects)
    return by_name


def of_kind(objects: dict[tuple[str, str], Manifest], kind: str) -> list[Manifest]:
    return [each for (found, _), each in objects.items() if found == kind]


def the_container(objects: dict[tuple[str, str], Manifest]) -> Manifest:
    (deployment,) = of_kind(objects, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(container)


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)
def test_helm_finds_nothing_to_object_to(values: Values) -> None:
    report = helm.lint(CHART, values, strict=True, namespace="team", kube_version="v1.34.0")
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > 1] == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"scope": "Namespaced"}, "scope"),
        ({"image": {"repository": "x", "digest": "sha256:123"}}, "digest"),
        ({"replicaCount": 2}, "replicaCount"),
        ({"replicas": 0}, "replicas"),
        ({"logLevel": "loud"}, "logLevel"),
    ],
)
def test_wrong_values_are_refused_by_name(chart: helm.Chart, values: Values, named: str) -> None:
    with pytest.raises(helm.HelmValuesError, match=named):
        chart.validate_schema(values)


def test_the_default_values_are_described_by_the_schema_one_by_one(chart: helm.Chart) -> None:
    """A value that the schema does not know would be refused; one that only the schema knows would do nothing."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    assert set(chart.values) == set(schema["properties"]) - {"global"}


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)
def test_rbac_is_what_the_architecture_grants_and_no_more(chart: helm.Chart, values: Values) -> None:
    objects = render(chart, values)
    (role,) = of_kind(objects, "Role")
    cluster_roles = of_kind(objects, "ClusterRole")
    if values.get("scope") == "Cluster":
        assert role["rules"] == LEASE_RULES
        assert [each["rules"] for each in cluster_roles] == [RULES]
    else:
        assert role["rules"] == LEASE_RULES + RULES
        assert cluster_roles == []
        assert of_kind(objects, "ClusterRoleBinding") == []


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)
def test_every_binding_leads_to_the_account_that_the_pod_runs_as(chart: helm.Chart, values: Values) -> None:
    objects = render(chart, values)
    (deployment,) = of_kind(objects, "Deployment")
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    made = [each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")]
    assert made == ([account] if values.get("serviceAccount", {}).get("create", True) else [])
    bindings = of_kind(objects, "RoleBinding") + of_kind(objects, "ClusterRoleBinding")
    assert bindings
    for binding in bindings:
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "team"}]
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in objects


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)
def test_the_pod_meets_pod_security_restricted(chart: helm.Chart, values: Values) -> None:
    objects = render(chart, values)
    (deployment,) = of_kind(objects, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not any("hostPath" in volume for volume in pod["volumes"])
    assert the_container(objects)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)
def test_the_selector_finds_the_pods_and_survives_an_upgrade(chart: helm.Chart, values: Values) -> None:
    (deployment,) = of_kind(render(chart, values), "Deployment")
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert not any("version" in key or "chart" in key for key in selector)


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)
def test_the_operators_arguments_are_those_of_its_command(chart: helm.Chart, values: Values) -> None:
    container = the_container(render(chart, values))
    assert container["command"] == ["octavo", "operator"]
    with operator.make_context("operator", list(container["args"])) as context:
        given = context.params
    assert given["all_namespaces"] is (values.get("scope") == "Cluster")
    assert given["namespaces"] == (() if given["all_namespaces"] else ("team",))
    assert given["probe_port"] == OPERATOR_PORT
    assert [port["containerPort"] for port in container["ports"]] == [OPERATOR_PORT]


def test_probes_ask_the_routes_that_the_operator_has(chart: helm.Chart) -> None:
    container = the_container(render(chart, {}))
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["port"] for probe in probes.values()} == {container["ports"][0]["name"]}
    assert probes["livenessProbe"]["path"] == "/healthz"
    assert probes["readinessProbe"]["path"] == "/readyz"


def test_images_are_by_digest_where_one_is_given_else_by_the_version(chart: helm.Chart) -> None:
    container = the_container(render(chart, COMBINATIONS["digests"]))
    assert container["image"] == f"a/b@{DIGEST}"
    assert f"--server-image=c/d@{DIGEST}" in container["args"]
    container = the_container(render(chart, {}))
    assert container["image"] == f"octavo-operator:{__version__}"
    assert f"--server-image=octavo-server:{__version__}" in container["args"]


def test_the_charts_version_is_that_of_the_distribution(chart: helm.Chart) -> None:
    assert (chart.version, chart.metadata["appVersion"]) == (__version__, __version__)


def test_the_chart_carries_the_crd_of_the_repository() -> None:
    carried = {file.name: file.read_text() for file in (CHART / "crds").iterdir()}
    assert carried == {file.name: file.read_text() for file in CRDS.iterdir()}


def test_the_notes_name_what_was_installed(chart: helm.Chart) -> None:
    notes = chart.render({}, name="release", namespace="team")["octavo/templates/NOTES.txt"]
    assert "kubectl --namespace team rollout status deployment/release-octavo" in notes


def test_the_operator_refuses_to_guess_its_namespaces() -> None:
    result = CliRunner().invoke(operator, [])
    assert "either --namespace (repeatable) or --all-namespaces" in str(result.exception)
