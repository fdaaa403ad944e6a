"""The gateway in the chart, rendered by Helm's own engine."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import helm_python as helm
import pytest

from least_role import GATEWAY_RULES
from llm_deployments import SETTINGS, llm_deployment, rendered
from octavo_chart import CHART, COMBINATIONS, DIGEST, PROMETHEUS, Object, Values, of_kind, part, render, the_one
from octavo_cli.gateway import gateway
from octavo_cli.operator import operator
from octavo_cli.options import validated
from octavo_common.access.key_files import read_keys
from octavo_common.names import ADMIN_PORT, DEPLOYMENT_LABEL, GATEWAY_PORT, GATEWAY_SELECTOR, SERVER_PORT
from octavo_gateway.config import GatewayConfig
from octavo_gateway.handler import OPEN
from octavo_operator.api import parse
from octavo_operator.autoscale.pods import gateway_urls
from octavo_operator.render import render as render_servers

GATEWAYS = {name: values for name, values in COMBINATIONS.items() if "gateway" in values}
EACH = pytest.mark.parametrize("values", GATEWAYS.values(), ids=GATEWAYS)
PLAIN, WHOLE = GATEWAYS["gateway"], GATEWAYS["whole gateway"]


def gateways(values: Values) -> list[Object]:
    """The gateway's objects alone."""
    return part(render(values), "gateway")


def pod_of(objects: list[Object]) -> Object:
    found: Object = the_one(objects, "Deployment")["spec"]["template"]
    return found


def container_of(objects: list[Object]) -> Object:
    (container,) = pod_of(objects)["spec"]["containers"]
    return dict(container)


def config_of(objects: list[Object]) -> GatewayConfig:
    """What its command makes of its arguments."""
    container = container_of(objects)
    assert container["command"] == ["octavo", "gateway"]
    with gateway.make_context("gateway", list(container["args"])) as context:
        return validated(GatewayConfig, context.params)


def told_operator(values: Values) -> dict[str, Any]:
    (container,) = pod_of(part(render(values), "operator"))["spec"]["containers"]
    with operator.make_context("operator", list(container["args"])) as context:
        return dict(context.params)


def test_there_is_none_unless_it_is_asked_for() -> None:
    assert gateways({}) == []
    assert told_operator({})["gateway_url"] is None


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"gateway": {"enabled": True}}, "gateway.apiKeys.secretName: name the Secret"),
        (
            {"gateway": {"enabled": True, "apiKeys": {"required": False}, "limits": {"concurrentRequests": 1}}},
            "gateway.limits: limits are those of keys",
        ),
        (
            {"gateway": {"enabled": True, "apiKeys": {"secretName": "k"}, "service": {"type": "LoadBalancer"}}},
            "say who may in gateway.networkPolicy.from",
        ),
        ({"fullnameOverride": "0", "gateway": {"enabled": True, "apiKeys": {"secretName": "k"}}}, "fullnameOverride"),
    ],
)
def test_values_that_cannot_work_together_are_refused_with_what_to_change(values: Values, named: str) -> None:
    with pytest.raises(helm.HelmRenderError, match=named):
        render(values)


@EACH
def test_rbac_is_the_golden_list_where_models_are_and_no_more(values: Values) -> None:
    objects = gateways(values)
    wide = values.get("scope") == "Cluster"
    roles = of_kind(objects, "ClusterRole" if wide else "Role")
    assert [each["rules"] for each in roles] == [GATEWAY_RULES] * len(roles)
    bindings = of_kind(objects, "ClusterRoleBinding" if wide else "RoleBinding")
    places = [None] if wide else values.get("namespaces", ["team"])
    assert [each["metadata"].get("namespace") for each in roles] == places
    assert [each["metadata"].get("namespace") for each in bindings] == places
    other = ("Role", "RoleBinding") if wide else ("ClusterRole", "ClusterRoleBinding")
    assert [each for kind in other for each in of_kind(objects, kind)] == []
    account = pod_of(objects)["spec"]["serviceAccountName"]
    for binding, role in zip(bindings, roles, strict=True):
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == (role["kind"], role["metadata"]["name"])
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "team"}]
    made = [each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")]
    assert made == ([account] if values["gateway"].get("serviceAccount", {}).get("create", True) else [])


@EACH
def test_what_the_values_say_is_what_the_gateway_is_told(values: Values) -> None:
    objects = gateways(values)
    config, container = config_of(objects), container_of(objects)
    assert config.all_namespaces is (values.get("scope") == "Cluster")
    assert config.namespace == (() if config.all_namespaces else tuple(values.get("namespaces", ["team"])))
    assert (config.host, config.port, config.admin_port) == ("0.0.0.0", GATEWAY_PORT, ADMIN_PORT)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": GATEWAY_PORT, "admin": ADMIN_PORT}
    given = values["gateway"]
    assert bool(config.api_key_file) is ("secretName" in given["apiKeys"])
    assert (config.ssl_certfile is not None) is ("tls" in given)


def test_bounds_and_targets_are_in_the_gateways_own_units() -> None:
    config = config_of(gateways(WHOLE))
    assert (config.hold_requests, config.hold_mib, config.hold_seconds) == (100_000, 2048, 86_400.0)
    assert (config.ttft_target, config.ttft_target_per_1000_tokens, config.tpot_target) == (1.5, 0.25, 0.001)
    limits = config.max_requests_per_minute, config.max_tokens_per_minute, config.max_concurrent_requests
    assert limits == (60, 2_000_000, 8)
    assert (config.log_format, config.log_requests) == ("json", "errors")


def test_what_the_values_leave_out_is_as_the_command_has_it() -> None:
    told, ours = config_of(gateways(PLAIN)), GatewayConfig()
    given = {"host", "admin_port", "namespace", "api_key_file", "replica_api_key_file"}
    names = set(GatewayConfig.model_fields) - given
    assert {name: getattr(told, name) for name in names} == {name: getattr(ours, name) for name in names}


@EACH
def test_its_files_are_in_secrets_that_are_mounted_whole(values: Values) -> None:
    objects = gateways(values)
    config, spec = config_of(objects), pod_of(objects)["spec"]
    secrets = {each["name"]: each["secret"] for each in spec["volumes"] if "secret" in each}
    mounts = {each["mountPath"]: each for each in container_of(objects)["volumeMounts"] if each["name"] != "tmp"}
    assert {each["name"] for each in mounts.values()} == set(secrets)
    assert all(each["readOnly"] and "subPath" not in each for each in mounts.values())
    assert all(each["defaultMode"] == 0o440 and not each.get("optional") for each in secrets.values())

    def secret_of(path: Any) -> str:
        found = [each["name"] for at, each in mounts.items() if str(path) == at or str(path).startswith(f"{at}/")]
        return str(secrets[found[0]]["secretName"])

    assert secret_of(config.replica_api_key_file) == told_operator(values)["gateway_key_secret"]
    assert [secret_of(each) for each in config.api_key_file] == [
        name for name in [values["gateway"]["apiKeys"].get("secretName")] if name
    ]
    if config.ssl_certfile is not None and config.ssl_keyfile is not None:
        assert secret_of(config.ssl_certfile) == secret_of(config.ssl_keyfile) == "certificate"
        assert (config.ssl_certfile.name, config.ssl_keyfile.name) == ("tls.crt", "tls.key")  # kubernetes.io/tls


@pytest.mark.parametrize(
    ("values", "namespaces"),
    [
        (PLAIN, ["team"]),
        (GATEWAYS["open gateway"], ["team", "team-a", "team-b"]),
        (WHOLE, ["team", "models"]),
        (PLAIN | {"namespaces": ["team", "other"]}, ["team", "other"]),
    ],
)
def test_its_own_key_is_the_same_where_it_is_and_where_models_are(values: Values, namespaces: list[str]) -> None:
    secrets = of_kind(gateways(values), "Secret")
    assert [each["metadata"]["namespace"] for each in secrets] == namespaces
    assert {each["metadata"]["name"] for each in secrets} == {told_operator(values)["gateway_key_secret"]}
    (data,) = {str(each["data"]) for each in secrets}
    assert data != str(of_kind(gateways(values), "Secret")[0]["data"]), "a key that is known beforehand is none"


def test_its_own_key_is_one_that_gateway_and_servers_read(tmp_path: Any) -> None:
    (secret,) = of_kind(gateways(PLAIN), "Secret")
    for name, text in secret["data"].items():
        (tmp_path / name).write_bytes(base64.b64decode(text))
    (entry,) = read_keys(tmp_path)  # as servers mount it
    assert len(entry.key) == 48
    file = config_of(gateways(PLAIN)).replica_api_key_file
    assert file is not None and read_keys(tmp_path / file.name) == [entry]


def test_a_secret_of_ones_own_is_made_by_nobody_and_used_by_both() -> None:
    values = {"gateway": PLAIN["gateway"] | {"replicaKey": {"secretName": "mine"}}}
    assert of_kind(gateways(values), "Secret") == []
    assert told_operator(values)["gateway_key_secret"] == "mine"
    volumes = pod_of(gateways(values))["spec"]["volumes"]
    assert [each["secret"]["secretName"] for each in volumes if each["name"] == "replica-key"] == ["mine"]


def test_a_gateway_that_comes_later_replaces_no_pod_of_a_model() -> None:
    before, after = told_operator({}), told_operator(PLAIN)
    assert before["gateway_key_secret"] == after["gateway_key_secret"] == "release-octavo-gateway-key"


@pytest.mark.parametrize(
    ("values", "url"),
    [
        (PLAIN, "http://release-octavo-gateway.team.svc:8080/v1"),
        ({"gateway": PLAIN["gateway"] | {"service": {"port": 80}}}, "http://release-octavo-gateway.team.svc:80/v1"),
        (
            {"gateway": PLAIN["gateway"] | {"tls": {"secretName": "t"}}},
            "https://release-octavo-gateway.team.svc:8080/v1",
        ),
        (WHOLE, "https://llm.example.com/v1"),
    ],
)
def test_models_tell_the_gateways_url(values: Values, url: str) -> None:
    assert told_operator(values)["gateway_url"] == url
    service = the_one(gateways(values), "Service")
    if "example.com" not in url:
        assert f"//{service['metadata']['name']}.team.svc:{service['spec']['ports'][0]['port']}/" in url


@EACH
def test_what_selects_the_pods_finds_the_gateways_and_not_the_operator(values: Values) -> None:
    objects = render(values)
    ours, operators = (pod_of(part(objects, name))["metadata"]["labels"] for name in ("gateway", "operator"))
    mine = part(objects, "gateway")
    spec = the_one(mine, "Deployment")["spec"]
    selectors = [spec["selector"]["matchLabels"], the_one(mine, "Service")["spec"]["selector"]]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in of_kind(mine, "PodDisruptionBudget")]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in of_kind(mine, "NetworkPolicy")]
    constraints = spec["template"]["spec"]["topologySpreadConstraints"]
    selectors += [each["labelSelector"]["matchLabels"] for each in constraints]
    for selector in selectors:
        assert selector.items() <= ours.items() and not selector.items() <= operators.items()
    key, _, value = GATEWAY_SELECTOR.partition("=")
    assert ours[key] == value
    asked = dict(pair.split("=") for pair in str(told_operator(values)["gateway_selector"]).split(","))
    assert asked.items() <= ours.items()


@EACH
def test_the_operator_finds_the_load_where_the_gateway_tells_it(values: Values) -> None:
    template = pod_of(gateways(values))
    template["metadata"]["uid"] = "u"
    ready = {"podIP": "10.0.0.9", "conditions": [{"type": "Ready", "status": "True"}]}
    scheme = "https" if "tls" in values["gateway"] else "http"
    assert gateway_urls([template | {"status": ready}]) == {"u": f"{scheme}://10.0.0.9:{ADMIN_PORT}/metrics"}


@EACH
def test_probes_ask_what_is_open_at_the_admin_port(values: Values) -> None:
    container = container_of(gateways(values))
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert [probe["path"] for probe in probes.values()] == ["/health", "/health", "/ready"]
    assert {probe["path"] for probe in probes.values()} <= OPEN
    scheme = "HTTPS" if "tls" in values["gateway"] else "HTTP"
    assert {(probe["port"], probe["scheme"]) for probe in probes.values()} == {("admin", scheme)}


@EACH
def test_a_pod_ends_no_sooner_than_its_drain(values: Values) -> None:
    objects = gateways(values)
    config, grace = config_of(objects), pod_of(objects)["spec"]["terminationGracePeriodSeconds"]
    assert config.drain_delay_seconds + config.drain_seconds + 10 <= grace
    update = the_one(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert update == {"maxSurge": 1, "maxUnavailable": 0}


@EACH
def test_the_pod_meets_pod_security_restricted(values: Values) -> None:
    objects = gateways(values)
    context = pod_of(objects)["spec"]["securityContext"]
    assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    assert container_of(objects)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_only_what_is_one_of_several_has_a_disruption_budget() -> None:
    assert of_kind(gateways(GATEWAYS["open gateway"]), "PodDisruptionBudget") == []
    spec = the_one(gateways(PLAIN), "PodDisruptionBudget")["spec"]
    assert (spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def in_namespaces(*names: str) -> Object:
    return {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": list(names)}]}


@pytest.mark.parametrize(
    ("values", "served", "callers"),
    [
        (PLAIN, in_namespaces("team"), None),
        (GATEWAYS["open gateway"], in_namespaces("team-a", "team-b"), None),
        (WHOLE, {}, [{"ipBlock": {"cidr": "0.0.0.0/0"}}]),
    ],
)
def test_the_network_lets_in_who_may_ask_and_out_to_the_api_server_and_servers(
    values: Values, served: Object, callers: list[Object] | None
) -> None:
    objects = render(values)
    spec = the_one(part(objects, "gateway"), "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    clients, scrapers = spec["ingress"]
    assert clients["from"] == (callers or [{"namespaceSelector": served}, {"podSelector": {}}])
    assert [port["port"] for port in clients["ports"]] == ["http"]
    operators, *others = scrapers["from"]
    assert list(operators) == ["podSelector"]
    labels = pod_of(part(objects, "operator"))["metadata"]["labels"]
    assert operators["podSelector"]["matchLabels"].items() <= labels.items()
    assert others == values.get("networkPolicy", {}).get("metricsFrom", [])
    assert [port["port"] for port in scrapers["ports"]] == ["admin"]
    api_server, servers = spec["egress"]
    assert [port["port"] for port in api_server["ports"]] == [443, 6443, 8443, 16443]
    assert ("to" in api_server) is ("networkPolicy" in values)
    (pods,) = servers["to"]
    assert pods["namespaceSelector"] == served
    assert pods["podSelector"]["matchExpressions"] == [{"key": DEPLOYMENT_LABEL, "operator": "Exists"}]
    assert [port["port"] for port in servers["ports"]] == [SERVER_PORT, ADMIN_PORT]


def test_servers_let_the_gateway_in_and_know_it_by_its_key() -> None:
    """What the operator renders, by what the chart tells it, and what the chart renders meet."""
    settings = dataclasses.replace(
        SETTINGS, operator_namespace="team", gateway_key_secret=told_operator(PLAIN)["gateway_key_secret"]
    )
    objects = render_servers(parse(llm_deployment()), settings)
    rule = rendered(objects, "NetworkPolicy")["spec"]["ingress"][0]
    (peer,) = [each for each in rule["from"] if "team" in str(each.get("namespaceSelector"))]
    (condition,) = peer["podSelector"]["matchExpressions"]
    assert pod_of(gateways(PLAIN))["metadata"]["labels"][condition["key"]] in condition["values"]
    assert [port["port"] for port in rule["ports"]] == [SERVER_PORT]
    volumes = rendered(objects, "Deployment")["spec"]["template"]["spec"]["volumes"]
    (secret,) = of_kind(gateways(PLAIN), "Secret")
    assert secret["metadata"]["name"] in [each["secret"]["secretName"] for each in volumes if "secret" in each]


def test_a_pod_monitor_reads_the_admin_port_as_it_speaks() -> None:
    monitored: Values = {"podMonitor": {"enabled": True}, "networkPolicy": {"metricsFrom": [PROMETHEUS]}}
    (endpoint,) = the_one(gateways(PLAIN | monitored), "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"], endpoint["scheme"]) == ("admin", "/metrics", "http")
    (endpoint,) = the_one(gateways(WHOLE | monitored), "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert (endpoint["scheme"], endpoint["tlsConfig"]) == ("https", {"insecureSkipVerify": True})
    assert of_kind(gateways(PLAIN), "PodMonitor") == []


def test_it_runs_the_operators_image_by_digest_where_one_is_given() -> None:
    assert container_of(gateways(WHOLE))["image"] == f"a/b@{DIGEST}"
    (container,) = pod_of(part(render(PLAIN), "operator"))["spec"]["containers"]
    assert container_of(gateways(PLAIN))["image"] == container["image"]


@pytest.mark.parametrize(
    ("values", "told", "silent"),
    [
        (PLAIN, ["http://release-octavo-gateway.team.svc:8080/v1"], ["asks nobody for a key", "create secret"]),
        (GATEWAYS["open gateway"], ["It asks nobody for a key"], ["create secret"]),
        (WHOLE, ["https://llm.example.com/v1", "create secret generic release-octavo-gateway-key"], ["nobody"]),
        ({}, [], ["gateway"]),
    ],
    ids=["keys", "open", "cluster", "none"],
)
def test_the_notes_say_where_it_is_and_what_is_left_to_do(values: Values, told: list[str], silent: list[str]) -> None:
    with helm.Chart.load(CHART) as chart:
        notes = chart.render(values, name="release", namespace="team")["octavo/templates/NOTES.txt"]
    assert all(each in notes for each in told)
    assert not any(each in notes for each in silent)
