"""What an LLMDeployment becomes: every field of the spec seen in the objects, and what a kubelet needs to be kind."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import pytest

from llm_deployments import IMAGE, SETTINGS, llm_deployment, rendered
from octavo_operator.api import LLMDeployment, ManifestError, parse
from octavo_operator.api.server import Server
from octavo_operator.render import RenderSettings, model_argument, render, server_arguments
from octavo_server.config import DTypeName, ServerConfig

Object = dict[str, Any]


def parsed(**spec: Any) -> LLMDeployment:
    return parse(llm_deployment(**spec))


def deployment(**spec: Any) -> Object:
    return rendered(render(parsed(**spec), SETTINGS), "Deployment")


def pod(**spec: Any) -> Object:
    found: Object = deployment(**spec)["spec"]["template"]["spec"]
    return found


def container(**spec: Any) -> Object:
    (only,) = pod(**spec)["containers"]
    found: Object = only
    return found


def source(**given: Any) -> Object:
    return {"source": given}


def test_the_same_input_gives_the_same_objects() -> None:
    assert render(parsed(replicas=3), SETTINGS) == render(parsed(replicas=3), SETTINGS)


def test_a_file_has_no_owner_and_an_object_of_the_api_server_owns_its_children() -> None:
    assert "ownerReferences" not in deployment()["metadata"]
    body = llm_deployment()
    body["metadata"] |= {"uid": "u-1", "namespace": "team-a"}
    for child in render(parse(body), SETTINGS):
        assert child["metadata"]["namespace"] == "team-a"
        assert child["metadata"]["ownerReferences"] == [
            {
                "apiVersion": "octavo.dev/v1alpha1",
                "kind": "LLMDeployment",
                "name": "demo",
                "uid": "u-1",
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"builtin": {"name": "demo"}}, "demo"),
        ({"path": {"path": "/models/llama"}}, "/models/llama"),
        ({"persistentVolumeClaim": {"claimName": "models"}}, "/octavo/model"),
        ({"persistentVolumeClaim": {"claimName": "models", "path": "a/b"}}, "/octavo/model/a/b"),
    ],
)
def test_every_source_becomes_the_model_argument(given: Object, argument: str) -> None:
    assert model_argument(parsed(model=source(**given))) == argument


def test_a_claim_is_mounted_read_only() -> None:
    spec = pod(model=source(persistentVolumeClaim={"claimName": "models"}))
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}} in spec["volumes"]
    mount = {"name": "model", "mountPath": "/octavo/model", "readOnly": True}
    assert mount in spec["containers"][0]["volumeMounts"]


def test_the_command_line_carries_the_spec() -> None:
    given = parsed(
        model={"name": "chat"} | source(builtin={"name": "demo"}),
        server={"maxModelLength": 512, "dtype": "BFloat16", "args": ["--max-num-seqs", "4"]},
        termination={"drainSeconds": 7},
    )
    assert server_arguments(given, "127.0.0.1", 9000) == [
        *("serve", "demo", "--served-model-name", "chat", "--host", "127.0.0.1", "--port", "9000"),
        *("--dtype", "bfloat16", "--max-model-len", "512", "--drain-seconds", "7", "--max-num-seqs", "4"),
    ]
    assert server_arguments(given, "h", 1, model="/local")[1] == "/local"


def test_the_gateways_key_is_mounted_where_it_is_and_awaited_by_nobody() -> None:
    settings = dataclasses.replace(SETTINGS, gateway_key_secret="own")
    made = next(each for each in render(parsed(), settings) if each["kind"] == "Deployment")
    spec = made["spec"]["template"]["spec"]
    (volume,) = [each for each in spec["volumes"] if each["name"] == "gateway-key"]
    assert volume["secret"] == {"secretName": "own", "defaultMode": 0o440, "optional": True}
    (server,) = spec["containers"]
    (mount,) = [each for each in server["volumeMounts"] if each["name"] == "gateway-key"]
    assert mount["readOnly"] is True
    flag = server["args"].index("--gateway-api-key-file")
    assert server["args"][flag + 1] == mount["mountPath"]
    assert "gateway-key" not in str(pod()) and "--gateway-api-key-file" not in container()["args"]


def test_a_gateways_key_that_the_spec_names_itself_counts() -> None:
    settings = dataclasses.replace(SETTINGS, gateway_key_secret="own")
    for args in (["--gateway-api-key-file", "/keys/own"], ["--gateway-api-key-file=/keys/own"]):
        made = next(each for each in render(parsed(server={"args": args}), settings) if each["kind"] == "Deployment")
        spec = made["spec"]["template"]["spec"]
        assert "gateway-key" not in str(spec["volumes"])
        assert str(spec["containers"][0]["args"]).count("--gateway-api-key-file") == 1


def test_every_flag_is_one_of_octavo_serve() -> None:
    given = parsed(server={"maxModelLength": 512})
    flags = {each for each in server_arguments(given, "h", 1) if each.startswith("--")}
    assert {flag.removeprefix("--").replace("-", "_") for flag in flags} <= set(ServerConfig.model_fields)
    assert get_args(DTypeName) == tuple(name.lower() for name in get_args(Server.model_fields["dtype"].annotation))


def test_the_name_of_the_object_is_the_model_s_when_none_is_given() -> None:
    arguments = container()["args"]
    assert arguments[arguments.index("--served-model-name") + 1] == "demo"


def test_the_image_is_the_spec_s_or_the_operator_s_or_refused() -> None:
    assert container()["image"] == IMAGE
    assert container(server={"image": "mine:1"})["image"] == "mine:1"
    with pytest.raises(ManifestError, match=r"spec\.server\.image: is required"):
        render(parsed(), RenderSettings())


def test_the_start_up_probe_covers_the_timeout_and_the_progress_deadline_exceeds_it() -> None:
    for seconds in (10, 33, 1800, 86_400):
        made = deployment(startup={"timeoutSeconds": seconds})
        probe = made["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
        assert seconds <= probe["periodSeconds"] * probe["failureThreshold"] < seconds + probe["periodSeconds"]
        assert made["spec"]["progressDeadlineSeconds"] > seconds + 600
    default = container()["startupProbe"]
    assert default["failureThreshold"] == math.ceil(600 / default["periodSeconds"])


def test_probes_ask_what_the_server_answers() -> None:
    made = container()
    assert made["startupProbe"]["httpGet"]["path"] == made["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert made["livenessProbe"]["httpGet"]["path"] == "/health"
    assert {made[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} == {"http"}
    assert made["ports"] == [{"name": "http", "containerPort": 8000, "protocol": "TCP"}]


def test_a_pod_is_given_time_to_be_forgotten_and_to_drain() -> None:
    spec = pod(termination={"propagationSeconds": 5, "drainSeconds": 60})
    assert spec["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}
    assert spec["terminationGracePeriodSeconds"] == 5 + 60 + 30
    assert "lifecycle" not in container(termination={"propagationSeconds": 0})


def test_pods_meet_pod_security_restricted() -> None:
    spec = pod(podTemplate={"initContainers": [{"name": "a", "image": "b"}]})
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] == 65532
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for each in (*spec["containers"], *spec["initContainers"]):
        context = each["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
    assert {"name": "tmp", "mountPath": "/tmp"} in spec["containers"][0]["volumeMounts"]
    assert {"name": "HOME", "value": "/tmp"} in spec["containers"][0]["env"]


def test_an_init_container_keeps_a_security_context_of_its_own() -> None:
    own = {"name": "a", "image": "b", "securityContext": {"runAsUser": 7}}
    (made,) = pod(podTemplate={"initContainers": [own]})["initContainers"]
    assert made == own


def test_resources_are_requested_and_limited_but_the_cpu_only_requested() -> None:
    assert "resources" not in container()
    assert container(resources={"cpu": 2, "memory": "4Gi", "accelerator": {}})["resources"] == {
        "requests": {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "4Gi", "nvidia.com/gpu": "1"},
    }


def required_terms(spec: Object) -> list[Object]:
    node = spec["affinity"]["nodeAffinity"]
    terms: list[Object] = node["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return terms


def test_products_narrow_every_alternative_of_the_user_s_affinity() -> None:
    accelerator = {"accelerator": {"products": ["H100", "H200"], "productLabel": "example.com/gpu"}}
    product = {"key": "example.com/gpu", "operator": "In", "values": ["H100", "H200"]}
    assert required_terms(pod(resources=accelerator)) == [{"matchExpressions": [product]}]
    zone = {"key": "zone", "operator": "In", "values": ["a"]}
    alternatives = [{"matchExpressions": [zone]}, {"matchFields": []}]
    theirs = {
        "podAntiAffinity": {"x": 1},
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": alternatives}},
    }
    made = pod(resources=accelerator, podTemplate={"affinity": theirs})
    assert required_terms(made) == [
        {"matchExpressions": [zone, product]},
        {"matchFields": [], "matchExpressions": [product]},
    ]
    assert made["affinity"]["podAntiAffinity"] == {"x": 1}
    assert pod(podTemplate={"affinity": theirs})["affinity"] == theirs


def test_the_pod_template_is_passed_on() -> None:
    given: Object = {
        "labels": {"team": "search"},
        "annotations": {"note": "text"},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "minDomains": 2}
        ],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "serviceAccountName": "model",
        "imagePullSecrets": [{"name": "registry"}],
        "volumes": [{"name": "cache", "emptyDir": {"sizeLimit": "1Gi"}}],
        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
    }
    template = deployment(podTemplate=given)["spec"]["template"]
    assert template["metadata"]["labels"]["team"] == "search"
    assert template["metadata"]["labels"]["octavo.dev/deployment"] == "demo"
    assert template["metadata"]["annotations"] == {"note": "text"}
    for field in ("nodeSelector", "tolerations", "priorityClassName", "runtimeClassName", "serviceAccountName"):
        assert template["spec"][field] == given[field]
    assert template["spec"]["imagePullSecrets"] == given["imagePullSecrets"]
    assert given["volumes"][0] in template["spec"]["volumes"]
    assert given["volumeMounts"][0] in template["spec"]["containers"][0]["volumeMounts"]
    (spread,) = template["spec"]["topologySpreadConstraints"]
    assert spread["minDomains"] == 2 and spread["labelSelector"] == {"matchLabels": {"octavo.dev/deployment": "demo"}}


def test_variables_are_passed_on_and_home_may_be_another() -> None:
    secret = {"secretKeyRef": {"name": "s", "key": "k"}}
    variables = [{"name": "HOME", "value": "/x"}, {"name": "T", "valueFrom": secret}]
    assert container(server={"env": variables})["env"] == variables


def test_compiled_kernels_are_kept_on_the_claim_that_is_named() -> None:
    assert all(variable["name"] != "TRITON_CACHE_DIR" for variable in container()["env"])
    spec = pod(server={"compileCache": {"claimName": "kernels"}})
    assert {"name": "compile-cache", "persistentVolumeClaim": {"claimName": "kernels"}} in spec["volumes"]
    (server,) = spec["containers"]
    assert {"name": "compile-cache", "mountPath": "/octavo/compile-cache"} in server["volumeMounts"]
    assert {"name": "TRITON_CACHE_DIR", "value": "/octavo/compile-cache"} in server["env"]
    assert server["securityContext"]["readOnlyRootFilesystem"] is True
    elsewhere = {"name": "TRITON_CACHE_DIR", "value": "/octavo/compile-cache/a"}
    assert elsewhere in container(server={"compileCache": {"claimName": "kernels"}, "env": [elsewhere]})["env"]


def test_roll_outs_follow_the_spec() -> None:
    made = deployment(rollout={"maxSurge": 2, "maxUnavailable": 0})["spec"]
    assert made["strategy"]["rollingUpdate"] == {"maxSurge": 2, "maxUnavailable": 0}
    assert made["selector"]["matchLabels"].items() <= made["template"]["metadata"]["labels"].items()


def test_replicas_are_always_applied() -> None:
    assert [deployment(**spec)["spec"]["replicas"] for spec in ({}, {"replicas": 0}, {"suspend": True})] == [1, 0, 0]


def test_the_service_leads_to_the_pods() -> None:
    service = rendered(render(parsed(networking={"service": {"port": 80}}), SETTINGS), "Service")
    assert service["spec"]["selector"] == {"octavo.dev/deployment": "demo"}
    (port,) = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (80, "http")
