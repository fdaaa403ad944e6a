"""Where a model comes from, as pods see it: who downloads it, onto what, with which secrets, for how long at most."""

from __future__ import annotations

from typing import Any

import pytest

from llm_deployments import IMAGE, PULL_IMAGE, SETTINGS, llm_deployment, rendered
from octavo_operator.advice import advice
from octavo_operator.api import ManifestError, parse
from octavo_operator.render import RenderSettings, cache_name, claim, model_argument, render, startup_seconds

Object = dict[str, Any]
SHA = "0123456789abcdef" * 4
HUB = {"huggingFace": {"repo": "org/model", "revision": "abc"}}
GATED = {"huggingFace": {"repo": "org/model", "tokenSecretRef": {"name": "hf", "key": "HF_TOKEN"}}}
BUCKET = {
    "s3": {"uri": "s3://models/a", "endpoint": "http://minio:9000", "credentialsSecretRef": {"name": "minio"}},
}
ARCHIVE = {"http": {"url": "https://web:8443/a.tar", "sha256": SHA}}
CACHE = {"storage": {"cache": {"size": "10Gi"}}}


def body(source: Object, **spec: Any) -> Object:
    return llm_deployment(**({"model": {"source": source}} | spec))


def objects(source: Object, **spec: Any) -> list[Object]:
    return render(parse(body(source, **spec)), SETTINGS)


def pod(source: Object, **spec: Any) -> Object:
    found: Object = rendered(objects(source, **spec), "Deployment")["spec"]["template"]["spec"]
    return found


def pull(source: Object, **spec: Any) -> Object:
    (container,) = pod(source, **spec)["initContainers"]
    found: Object = container
    return found


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        (HUB, ["hf://org/model@abc", "/octavo/model/files"]),
        (GATED, ["hf://org/model@main", "/octavo/model/files", "--token-file", "/octavo/credentials/HF_TOKEN"]),
        (BUCKET, ["s3://models/a", "/octavo/model/files", "--endpoint", "http://minio:9000"]),
        (ARCHIVE, ["https://web:8443/a.tar", "/octavo/model/files", "--sha256", SHA]),
    ],
)
def test_what_is_downloaded_is_fetched_by_the_operators_image_before_the_server_starts(
    source: Object, arguments: list[str]
) -> None:
    made = pull(source)
    assert made["image"] == PULL_IMAGE and made["command"] == ["octavo"]
    assert made["args"] == ["pull", *arguments, "--result-file", "/dev/termination-log"]
    spec = pod(source)
    server = spec["containers"][0]
    assert {"name": "model", "emptyDir": {}} in spec["volumes"]
    assert {"name": "model", "mountPath": "/octavo/model"} in made["volumeMounts"]
    assert {"name": "model", "mountPath": "/octavo/model", "readOnly": True} in server["volumeMounts"]
    assert server["args"][:2] == ["serve", "/octavo/model/files"]


def test_secrets_are_mounted_or_referred_to_and_stand_nowhere() -> None:
    spec = pod(GATED)
    items = [{"key": "HF_TOKEN", "path": "HF_TOKEN"}]
    secret = {"secretName": "hf", "items": items, "defaultMode": 0o440}
    assert {"name": "credentials", "secret": secret} in spec["volumes"]
    mount = {"name": "credentials", "mountPath": "/octavo/credentials", "readOnly": True}
    assert mount in spec["initContainers"][0]["volumeMounts"] and mount not in spec["containers"][0]["volumeMounts"]
    env = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in pull(BUCKET)["env"]}
    assert env["AWS_ACCESS_KEY_ID"] == {"name": "minio", "key": "AWS_ACCESS_KEY_ID"}
    assert env["AWS_SECRET_ACCESS_KEY"] == {"name": "minio", "key": "AWS_SECRET_ACCESS_KEY"}
    assert env["AWS_SESSION_TOKEN"]["optional"] and env["AWS_REGION"]["optional"]


def test_the_disk_of_the_node_is_accounted_for_once() -> None:
    spec = pod(HUB, resources={"ephemeralStorage": "40Gi"})
    assert {"name": "model", "emptyDir": {"sizeLimit": "40Gi"}} in spec["volumes"]
    for container in (*spec["initContainers"], *spec["containers"]):
        for amounts in container["resources"].values():
            assert amounts["ephemeral-storage"] == "40Gi"
    cached = pull(HUB, **{"storage": {"cache": {"size": "10Gi", "prefetch": False}}})
    assert "ephemeral-storage" not in str(cached["resources"])


def test_proxies_and_another_hub_hold_for_the_download_and_other_variables_do_not() -> None:
    env = [{"name": "HF_ENDPOINT", "value": "http://hub:8000"}, {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]
    spec = pod(HUB, server={"env": [*env, {"name": "SECRET", "value": "x"}]})
    assert spec["initContainers"][0]["env"] == env
    assert {"name": "SECRET", "value": "x"} in spec["containers"][0]["env"]


@pytest.mark.parametrize(
    ("source", "spec", "ports"),
    [
        (HUB, {}, [443]),
        (HUB, {"server": {"env": [{"name": "HF_ENDPOINT", "value": "http://hub:8000"}]}}, [443, 8000]),
        (HUB, {"server": {"env": [{"name": "https_proxy", "value": "http://proxy:3128"}]}}, [443, 3128]),
        (BUCKET, {}, [9000]),
        ({"s3": {"uri": "s3://models"}}, {}, [443]),
        (ARCHIVE, {}, [8443]),
        (HUB, {"storage": {"cache": {"size": "1Gi", "prefetch": False}}}, [443]),
    ],
)
def test_pods_that_download_may_connect_to_the_port_that_it_takes(
    source: Object, spec: Object, ports: list[int]
) -> None:
    _, outward = rendered(objects(source, **spec), "NetworkPolicy")["spec"]["egress"]
    assert outward == {"ports": [{"port": port, "protocol": "TCP"} for port in ports]}


@pytest.mark.parametrize("source", [{"builtin": {"name": "demo"}}, {"oci": {"image": "a"}}])
def test_pods_that_do_not_may_not(source: Object) -> None:
    (dns,) = rendered(objects(source), "NetworkPolicy")["spec"]["egress"]
    assert {each["port"] for each in dns["ports"]} == {53}


def test_with_a_cache_the_job_goes_out_and_the_pods_do_not() -> None:
    of_job, of_pods = [each for each in objects(HUB, **CACHE) if each["kind"] == "NetworkPolicy"]
    assert len(of_pods["spec"]["egress"]) == 1
    assert of_job["spec"]["egress"][1] == {"ports": [{"port": 443, "protocol": "TCP"}]}
    assert of_job["spec"]["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in of_job["spec"]
    job = rendered(objects(HUB, **CACHE), "Job")
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert of_job["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert "octavo.dev/deployment" not in labels
    no_policies = objects(HUB, networking={"networkPolicy": "Disabled"}, **CACHE)
    assert "NetworkPolicy" not in {each["kind"] for each in no_policies}


def test_an_image_is_mounted_by_the_kubelet() -> None:
    oci = {"oci": {"image": "registry/models:1", "path": "llama"}}
    spec = pod(oci, podTemplate={"imagePullSecrets": [{"name": "r"}]})
    assert {"name": "model", "image": {"reference": "registry/models:1"}} in spec["volumes"]
    assert "initContainers" not in spec
    assert model_argument(parse(body(oci))) == "/octavo/model/llama"


def test_a_job_tries_again_what_may_succeed_and_nothing_else() -> None:
    spec = rendered(objects(GATED, **CACHE), "Job")["spec"]
    rule = spec["podFailurePolicy"]["rules"][0]
    assert (rule["action"], rule["onExitCodes"]["containerName"]) == ("FailJob", "pull")
    assert rule["onExitCodes"]["values"] == [2] and spec["backoffLimit"] > 5
    template = spec["template"]["spec"]
    assert template["restartPolicy"] == "Never" and template["securityContext"]["runAsNonRoot"] is True
    assert {each["name"] for each in template["volumes"]} == {"model", "credentials"}


def test_a_job_runs_where_its_volume_has_to_be() -> None:
    spec = {"resources": {"accelerator": {"products": ["H100"]}}, "podTemplate": {"nodeSelector": {"zone": "a"}}}
    anywhere = rendered(objects(HUB, **spec, **CACHE), "Job")["spec"]["template"]["spec"]
    assert anywhere["nodeSelector"] == {"zone": "a"} and "affinity" not in anywhere
    once = {"storage": {"cache": {"size": "10Gi", "accessModes": ["ReadWriteOnce"]}}}
    on_one = rendered(objects(HUB, **spec, **once), "Job")["spec"]["template"]["spec"]
    assert "H100" in str(on_one["affinity"]) and "nvidia.com/gpu" not in str(on_one["containers"])


def test_the_claim_is_as_large_as_the_largest_share_and_never_smaller_than_it_is() -> None:
    def sharer(name: str, size: str, **more: Any) -> Any:
        document = body(HUB, storage={"cache": {"size": size} | more})
        document["metadata"] |= {"name": name, "uid": f"u-{name}", "creationTimestamp": "2026-01-01T00:00:00Z"}
        return parse(document)

    first, second = sharer("a", "10Gi"), sharer("b", "10241Mi")
    made = claim([second, first])
    assert made == claim([first, second])
    assert made["spec"]["resources"]["requests"]["storage"] == "10241Mi"
    assert [each["uid"] for each in made["metadata"]["ownerReferences"]] == ["u-a", "u-b"]
    assert not any(each.get("controller") for each in made["metadata"]["ownerReferences"])
    grown = made | {"spec": made["spec"] | {"resources": {"requests": {"storage": "1Ti"}}}}
    assert claim([first], grown)["spec"]["resources"]["requests"]["storage"] == "1Ti"
    assert "ownerReferences" not in claim([first, sharer("c", "1Gi", retain=True)])["metadata"]


def test_a_spec_that_downloads_needs_to_know_with_what() -> None:
    for spec in ({}, CACHE):
        with pytest.raises(ManifestError, match=r"spec\.model\.source: .*--pull-image"):
            render(parse(body(HUB, **spec)), RenderSettings(IMAGE))
    assert render(parse(llm_deployment()), RenderSettings(IMAGE))


@pytest.mark.parametrize(
    ("source", "spec", "seconds"),
    [
        ({"builtin": {"name": "demo"}}, {}, 600),
        ({"path": {"path": "/m"}}, {}, 1800),
        (HUB, {}, 1800),
        (HUB, CACHE, 600 + 102),
        (HUB, {"resources": {"ephemeralStorage": "100Gi"}}, 600 + 1024),
        (HUB, {"startup": {"timeoutSeconds": 77}} | CACHE, 77),
        (HUB, {"storage": {"cache": {"size": "900Ti"}}}, 86_400),
    ],
)
def test_the_start_may_take_as_long_as_reading_all_that_fits_takes(source: Object, spec: Object, seconds: int) -> None:
    assert startup_seconds(parse(body(source, **spec))) == seconds


def test_a_roll_out_is_not_stuck_while_its_pods_download() -> None:
    def deadline(**spec: Any) -> int:
        return int(rendered(objects(HUB, **spec), "Deployment")["spec"]["progressDeadlineSeconds"])

    startup = {"startup": {"timeoutSeconds": 600}}
    assert deadline(**startup) - deadline(**startup, **CACHE) == 3600
    sized = deadline(resources={"ephemeralStorage": "100Gi"}, **startup)
    assert sized - deadline(**startup, **CACHE) == 4096


@pytest.mark.parametrize(
    ("source", "spec", "fields"),
    [
        ({"builtin": {"name": "demo"}}, {}, []),
        (ARCHIVE, {}, ["spec.resources.ephemeralStorage"]),
        (ARCHIVE, {"resources": {"ephemeralStorage": "1Gi"}}, []),
        ({"huggingFace": {"repo": "a/b", "revision": "0" * 40}}, CACHE, []),
        (HUB, CACHE, ["spec.model.source.huggingFace.revision"]),
        (
            ARCHIVE,
            {"replicas": 2, "storage": {"cache": {"size": "1Gi", "accessModes": ["ReadWriteOnce"]}}},
            ["spec.storage.cache.accessModes"],
        ),
    ],
)
def test_what_may_not_be_meant_is_told(source: Object, spec: Object, fields: list[str]) -> None:
    assert [each.partition(": ")[0] for each in advice(parse(body(source, **spec)))] == fields


def test_names_of_shared_objects_are_names_of_objects() -> None:
    name = cache_name(parse(body(HUB, **CACHE)))
    assert name is not None and len(name) <= 63 and name == name.lower()
