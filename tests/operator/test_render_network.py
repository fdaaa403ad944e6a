"""Who reaches the pods, by which ports, and what else may look at them or take them away."""

from __future__ import annotations

from typing import Any

import pytest

from llm_deployments import SETTINGS, llm_deployment, rendered
from octavo_operator.api import parse
from octavo_operator.render import render

Object = dict[str, Any]
PODS = {"octavo.dev/deployment": "demo"}
DNS = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
HTTP = [{"port": 8000, "protocol": "TCP"}]
KEYS = {"apiKeySecretRef": {"name": "keys"}}


def objects(**spec: Any) -> list[Object]:
    return render(parse(llm_deployment(**spec)), SETTINGS)


def policy(**spec: Any) -> Object:
    found: Object = rendered(objects(**spec), "NetworkPolicy")["spec"]
    return found


def server(**spec: Any) -> Object:
    (only,) = rendered(objects(**spec), "Deployment")["spec"]["template"]["spec"]["containers"]
    found: Object = only
    return found


def test_pods_take_requests_of_their_namespace_and_the_control_plane_and_ask_for_names_alone() -> None:
    made = policy()
    assert made["podSelector"] == {"matchLabels": PODS} and made["policyTypes"] == ["Ingress", "Egress"]
    (rule,) = made["ingress"]
    control_plane, *others = rule["from"]
    assert control_plane["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "octavo-system"}}
    (component,) = control_plane["podSelector"]["matchExpressions"]
    assert component["key"] == "app.kubernetes.io/component" and set(component["values"]) == {"gateway", "operator"}
    assert others == [{"podSelector": {}}] and rule["ports"] == HTTP
    assert made["egress"] == [{"ports": DNS}]


def test_who_else_may_connect_is_the_spec_s() -> None:
    web = {"namespaceSelector": {"matchLabels": {"team": "web"}}}
    chat = {"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["chat"]}]}}
    there = {"podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}, "namespaceSelector": {}}
    for peers in ([], [web], [web, chat, there]):
        assert policy(networking={"allowFrom": peers})["ingress"][0]["from"][1:] == peers


def test_there_is_no_policy_where_it_is_disabled() -> None:
    kinds = [each["kind"] for each in objects(networking={"networkPolicy": "Disabled"})]
    assert kinds == ["PodDisruptionBudget", "Service", "Deployment"]


@pytest.mark.parametrize("spec", [{"server": KEYS}, {"observability": {"podMonitor": "Enabled"}}])
def test_metrics_that_need_no_key_are_on_the_admin_port_which_everybody_reaches(spec: Object) -> None:
    made = server(**spec)
    arguments = made["args"]
    assert arguments[arguments.index("--admin-port") + 1] == "8001"
    assert {"name": "admin", "containerPort": 8001, "protocol": "TCP"} in made["ports"]
    assert policy(**spec)["ingress"][1] == {"ports": [{"port": 8001, "protocol": "TCP"}]}
    assert "--admin-port" not in server()["args"] and len(policy()["ingress"]) == 1


def test_keys_are_mounted_as_a_directory_that_follows_the_secret() -> None:
    deployment = rendered(objects(server=KEYS), "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    assert {"name": "api-keys", "secret": {"secretName": "keys", "defaultMode": 0o440}} in spec["volumes"]
    mount = {"name": "api-keys", "mountPath": "/octavo/api-keys", "readOnly": True}
    (container,) = spec["containers"]
    assert mount in container["volumeMounts"] and "subPath" not in str(container["volumeMounts"])
    assert container["args"][container["args"].index("--api-key-file") + 1] == "/octavo/api-keys"
    one = rendered(objects(server={"apiKeySecretRef": {"name": "keys", "key": "a"}}), "Deployment")
    (volume,) = [each for each in one["spec"]["template"]["spec"]["volumes"] if each["name"] == "api-keys"]
    assert volume["secret"]["items"] == [{"key": "a", "path": "a"}]


def test_prometheus_is_led_to_the_admin_port_where_it_is_asked_for() -> None:
    made = rendered(objects(observability={"podMonitor": "Enabled"}), "PodMonitor")
    assert made["apiVersion"] == "monitoring.coreos.com/v1"
    assert made["spec"]["selector"] == {"matchLabels": PODS}
    assert made["spec"]["podMetricsEndpoints"] == [{"port": "admin", "path": "/metrics"}]
    assert "PodMonitor" not in {each["kind"] for each in objects()}


def test_a_pool_for_the_gateway_api_names_pods_port_and_picker() -> None:
    pool = {"inferencePool": {"endpointPickerRef": {"name": "epp", "failureMode": "FailOpen"}}}
    made = rendered(objects(networking=pool), "InferencePool")
    assert made["apiVersion"] == "inference.networking.k8s.io/v1"
    assert made["spec"] == {
        "selector": {"matchLabels": PODS},
        "targetPorts": [{"number": 8000}],
        "endpointPickerRef": {"kind": "Service", "name": "epp", "port": {"number": 9002}, "failureMode": "FailOpen"},
    }


@pytest.mark.parametrize(("spec", "most"), [({}, 1), ({"disruption": {"maxUnavailable": 0}}, 0)])
def test_drains_take_so_many_pods_and_every_one_that_serves_nobody(spec: Object, most: int) -> None:
    assert rendered(objects(**spec), "PodDisruptionBudget")["spec"] == {
        "maxUnavailable": most,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": PODS},
    }


@pytest.mark.parametrize(("given", "flag"), [("16Gi", "16"), ("512Mi", "0.5"), ("1.5Gi", "1.5"), ("100M", "0.093132")])
def test_host_memory_for_pages_becomes_the_swap_space_in_gib(given: str, flag: str) -> None:
    arguments = server(server={"hostMemoryForKVCache": given}, resources={"memory": "32Gi"})["args"]
    assert arguments[arguments.index("--swap-space") + 1] == flag
    assert "--swap-space" not in server()["args"]


def test_disk_is_requested_and_limited_alike() -> None:
    made = server(resources={"ephemeralStorage": "20Gi"})["resources"]
    assert made == {"requests": {"ephemeral-storage": "20Gi"}, "limits": {"ephemeral-storage": "20Gi"}}
