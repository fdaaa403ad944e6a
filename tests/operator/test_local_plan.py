"""What a manifest means on one machine: the container's own arguments, and clear words for what cannot act."""

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_deployments import SETTINGS, rendered
from octavo_operator.api import LLMDeployment, ManifestError, parse
from octavo_operator.api.quantities import cores, quantity_bytes
from octavo_operator.local.gateway import Door, GatewayFiles, gateway_launch
from octavo_operator.local.observe import endpoints, local_status, members
from octavo_operator.local.plan import plan_locally
from octavo_operator.local.replica import ReplicaState
from octavo_operator.render import render

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"


def deployment(change: Callable[[dict[str, Any]], None] = lambda _: None, file: str = "llmdeployment") -> LLMDeployment:
    document = yaml.safe_load((EXAMPLES / f"{file}.yaml").read_text())
    change(document["spec"])
    return parse(document)


KEY = Path("/run/gateway.key")


def test_the_command_line_is_the_containers_but_for_host_port_and_the_gateways_key() -> None:
    wanted = deployment(lambda spec: spec.update(server={"maxModelLength": 512, "args": ["--max-num-seqs", "4"]}))
    (launch,) = plan_locally(wanted, {}, []).launches(KEY)
    (container,) = rendered(render(wanted, SETTINGS), "Deployment")["spec"]["template"]["spec"]["containers"]
    local = list(launch.command(1234))
    assert local[1:3] == ["-m", "octavo_cli.main"]
    remote = [*container["args"]]
    remote[remote.index("--host") + 1] = "127.0.0.1"
    remote[remote.index("--port") + 1] = "1234"
    at = local.index("--gateway-api-key-file")
    assert local[3:at] + local[at + 2 :] == remote
    assert local[at + 1] == str(KEY)


def test_replicas_take_any_port_because_the_services_is_the_gateways(tmp_path: Path) -> None:
    wanted = deployment(lambda spec: spec.update(replicas=3, resources={}))
    assert [launch.port for launch in plan_locally(wanted, {}, []).launches(KEY)] == [0, 0, 0]
    assert gateway_launch(wanted, Door(port=8000), GatewayFiles(tmp_path)).port == 8000


def test_the_environment_is_this_ones_with_the_manifests_on_top() -> None:
    variables = [{"name": "A", "value": "manifest"}, {"name": "B"}]
    plan = plan_locally(deployment(lambda spec: spec.update(server={"env": variables})), {"A": "here", "C": "c"}, [])
    (environment,) = plan.environments
    assert (environment["A"], environment["B"], environment["C"]) == ("manifest", "", "c")


def test_without_an_accelerator_no_gpu_is_seen_and_threads_follow_the_cpu() -> None:
    (environment,) = plan_locally(
        deployment(lambda spec: spec["resources"].update(cpu="2500m")), {}, ["0"]
    ).environments
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["OMP_NUM_THREADS"] == str(min(2, len(os.sched_getaffinity(0))))


@pytest.mark.parametrize(
    ("here", "cpu", "replicas", "threads"),
    [(8, None, 1, None), (8, None, 3, "2"), (8, "2", 3, "2"), (2, "4", 1, "2"), (2, "1", 3, "1"), (2, None, 3, "1")],
)
def test_the_cores_are_shared_out_among_all_replicas_that_there_may_be(
    here: int, cpu: str | None, replicas: int, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_operator.local.plan._cores_here", lambda: here)
    resources = {"cpu": cpu} if cpu else {}
    environments = plan_locally(
        deployment(lambda spec: scaled(spec, maxReplicas=replicas, resources=resources)), {}, []
    ).environments
    assert [each.get("OMP_NUM_THREADS") for each in environments] == [threads] * replicas
    given = plan_locally(deployment(), {"OMP_NUM_THREADS": "7"}, []).environments
    assert given[0]["OMP_NUM_THREADS"] == "7", "who says it knows better"


def scaled(spec: dict[str, Any], resources: dict[str, Any] | None = None, **autoscaling: Any) -> None:
    del spec["replicas"]
    spec.update(autoscaling=autoscaling, resources=resources or {})


def test_there_is_a_place_for_each_replica_that_the_load_may_ask_for() -> None:
    plan = plan_locally(deployment(lambda spec: scaled(spec, minReplicas=0, maxReplicas=4, scaleToZero={})), {}, [])
    assert (plan.places, plan.warnings) == (4, ())


def test_what_others_would_scale_has_nobody_to_scale_it_here() -> None:
    plan = plan_locally(deployment(lambda spec: spec.update(autoscaling={"mode": "External"})), {}, [])
    assert (plan.places, plan.warnings) == (1, ("spec.autoscaling: no effect without a cluster",))


def test_no_more_replicas_are_asked_for_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_operator.local.plan.free_host_bytes", lambda: 5 * 2**30)
    plan = plan_locally(deployment(lambda spec: scaled(spec, {"memory": "2Gi"}, minReplicas=3, maxReplicas=4)), {}, [])
    autoscaling = plan.deployment.spec.autoscaling
    assert autoscaling is not None
    assert (plan.places, autoscaling.min_replicas, autoscaling.max_replicas) == (2, 2, 2)
    assert plan.warnings[0].endswith("5.0 GiB are free here; there will be 2 of 4 replicas at the most")
    gpus = plan_locally(deployment(lambda spec: scaled(spec, {"accelerator": {}}, maxReplicas=3)), {}, ["0", "1"])
    assert [each["CUDA_VISIBLE_DEVICES"] for each in gpus.environments] == ["0", "1"]
    assert gpus.warnings == (
        "spec.autoscaling.maxReplicas: 3 replicas need a GPU each, and this machine has 2; there will be 2 at the most",
    )


def test_the_gateway_has_the_manifests_targets_and_bound(tmp_path: Path) -> None:
    targets = {"timeToFirstTokenMilliseconds": 2500, "timePerOutputTokenMilliseconds": 80}
    zero = {"maxQueuedRequests": 7}
    wanted = deployment(lambda spec: scaled(spec, minReplicas=0, maxReplicas=2, targets=targets, scaleToZero=zero))
    command = list(gateway_launch(wanted, Door(), GatewayFiles(tmp_path)).command(0))
    told = dict(pairwise(command))
    assert (told["--ttft-target"], told["--tpot-target"], told["--hold-requests"]) == ("2.5", "0.08", "7")
    assert "--api-key-file" not in command, "nobody asked for keys"


def test_keys_are_in_files_that_nobody_else_can_read_and_in_no_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_API_KEY", "exported")
    files = GatewayFiles(tmp_path)
    door = Door(keys=("exported", "second"), key_files=(Path("/etc/keys"),), arguments=("--max-tokens-per-minute", "9"))
    launch = gateway_launch(deployment(), door, files)
    command = list(launch.command(0))
    given = [after for flag, after in pairwise(command) if flag == "--api-key-file"]
    assert given == [str(files.key_file), "/etc/keys", str(files.client_keys)]
    assert files.client_keys.read_text() == "exported\nsecond\n"
    assert files.key_file.read_text().strip() == files.key
    assert not {"exported", "second", files.key} & {*command, *launch.environment.values()}
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    assert command[-2:] == ["--max-tokens-per-minute", "9"]


def with_path(spec: dict[str, Any], path: Path) -> None:
    spec["model"]["source"] = {"path": {"path": str(path)}}
    spec["resources"].pop("memory")


def test_each_replica_gets_a_gpu_of_its_own(tmp_path: Path) -> None:
    plan = plan_locally(deployment(lambda spec: with_path(spec, tmp_path), "llama-8b"), {}, ["0", "3", "5"])
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in plan.environments] == ["0", "3"]


def test_an_accelerator_without_a_gpu_is_a_warning_and_fields_of_the_cluster_are_named(tmp_path: Path) -> None:
    plan = plan_locally(deployment(lambda spec: with_path(spec, tmp_path), "llama-8b"), {}, [])
    assert plan.warnings == (
        "spec.podTemplate.tolerations, spec.rollout: no effect without a cluster",
        "spec.resources.accelerator: this machine has no GPU that can be used; it runs on the CPU",
    )


def test_keys_of_a_secret_are_not_asked_for_here_unless_one_is_exported() -> None:
    wanted = deployment(lambda spec: spec.update(server={"apiKeySecretRef": {"name": "keys"}}))
    (warning,) = plan_locally(wanted, {}, []).warnings
    assert warning.startswith("spec.server.apiKeySecretRef: there are no Secrets on this machine")
    assert "export OCTAVO_API_KEY" in warning
    assert plan_locally(wanted, {"OCTAVO_API_KEY": "k"}, []).warnings == ()


@pytest.mark.parametrize(
    ("source", "field", "variable"),
    [
        ({"huggingFace": {"repo": "a/b", "tokenSecretRef": {"name": "s"}}}, "huggingFace.tokenSecretRef", "HF_TOKEN"),
        (
            {"s3": {"uri": "s3://models", "credentialsSecretRef": {"name": "s"}}},
            "s3.credentialsSecretRef",
            "AWS_ACCESS_KEY_ID",
        ),
    ],
)
def test_secrets_of_a_download_are_told_to_be_exported(source: dict[str, Any], field: str, variable: str) -> None:
    wanted = deployment(lambda spec: spec["model"].update(source=source))
    (warning,) = plan_locally(wanted, {}, []).warnings
    assert warning.startswith(f"spec.model.source.{field}: ") and f"export {variable}" in warning
    assert plan_locally(wanted, {variable: "x"}, []).warnings == ()


def test_fields_that_act_on_pods_and_their_surroundings_are_named() -> None:
    given = {
        "networking": {"allowFrom": [], "service": {"port": 9000}},
        "observability": {"podMonitor": "Enabled"},
        "disruption": {},
        "model": {"source": {"huggingFace": {"repo": "a/b"}}},
        "storage": {"cache": {"size": "1Gi"}},
    }
    (warning,) = plan_locally(deployment(lambda spec: spec.update(given)), {}, []).warnings
    fields = "spec.storage.cache, spec.networking.allowFrom, spec.observability, spec.disruption"
    assert warning == f"{fields}: no effect without a cluster"


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        (
            lambda spec: spec["model"].update(source={"persistentVolumeClaim": {"claimName": "models"}}),
            "spec.model.source.persistentVolumeClaim",
            "no volume claims on this machine",
        ),
        (
            lambda spec: spec["model"].update(source={"path": {"path": "/nowhere"}}),
            "spec.model.source.path.path",
            "/nowhere is not a directory of this machine",
        ),
        (lambda spec: spec.update(replicas=0), "spec.replicas", "no replica at all"),
        (lambda spec: spec.update(suspend=True), "spec.suspend", "no replica at all"),
        (
            lambda spec: spec.update(
                server={"env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}
            ),
            "spec.server.env[0].valueFrom",
            "export KEY instead",
        ),
        (
            lambda spec: spec.update(replicas=2, resources={"accelerator": {}}),
            "spec.replicas",
            "this machine has 1; give 1 or fewer",
        ),
    ],
)
def test_what_cannot_act_here_is_refused_with_the_path_of_the_field(
    change: Callable[[dict[str, Any]], None], path: str, message: str
) -> None:
    with pytest.raises(ManifestError) as refused:
        plan_locally(deployment(change), {}, ["0"])
    (error,) = refused.value.errors
    assert error.path == path
    assert message in error.message


def test_an_exported_variable_stands_for_a_secret() -> None:
    variable = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    (environment,) = plan_locally(
        deployment(lambda spec: spec.update(server={"env": [variable]})), {"KEY": "secret"}, []
    ).environments
    assert environment["KEY"] == "secret"


def test_as_many_replicas_are_started_as_the_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_operator.local.plan.free_host_bytes", lambda: 5 * 2**30)
    wanted = deployment(lambda spec: spec.update(replicas=4))
    plan = plan_locally(wanted, {}, [])
    assert plan.places == 2
    assert plan.warnings == ("spec.resources.memory: 2Gi each, and 5.0 GiB are free here; 2 of 4 replicas are started",)
    states = [ReplicaState(f"demo-{index}", "Ready", url=f"http://127.0.0.1:{index}") for index in range(2)]
    status = local_status(wanted, states, {}, NOW)
    assert (status["readyReplicas"], status["desiredReplicas"]) == (2, 4)
    scheduled = conditions(status)["Scheduled"]
    assert (scheduled["status"], scheduled["reason"]) == ("False", "Unschedulable")
    assert "too little free memory" in scheduled["message"]


def conditions(status: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {each["type"]: each for each in status["conditions"]}


def test_the_status_follows_a_replica_from_its_start_to_its_death() -> None:
    wanted = deployment()
    starting = local_status(wanted, [ReplicaState("demo-0", "Starting", "load weights")], {}, NOW)
    assert conditions(starting)["Ready"]["status"] == "False"
    assert conditions(starting)["Progressing"]["reason"] == "Starting"
    assert "url" not in starting

    there = ReplicaState("demo-0", "Ready", url="http://127.0.0.1:1234")
    ready = local_status(wanted, [there], starting, LATER, "http://127.0.0.1:8000")
    assert conditions(ready)["Ready"] | {"message": ""} == {
        "type": "Ready",
        "status": "True",
        "reason": "ReplicasReady",
        "message": "",
        "lastTransitionTime": LATER,
        "observedGeneration": 1,
    }
    assert conditions(ready)["Scheduled"]["lastTransitionTime"] == NOW, "what has not changed keeps its time"
    assert ready["url"] == "http://127.0.0.1:8000/v1"

    died = ReplicaState(
        "demo-0", "Backoff", "starting again in 1 s", restarts=1, last_exit="x", exit_code=1, tail=("boom",)
    )
    degraded = conditions(local_status(wanted, [died], ready, LATER))["Degraded"]
    assert (degraded["status"], degraded["reason"]) == ("True", "CrashLoopBackOff")
    assert degraded["message"].endswith("boom")


def test_the_gateway_is_told_of_replicas_that_listen_each_life_under_an_id_of_its_own() -> None:
    states = [
        ReplicaState("a", "Ready", url="http://a", pid=1),
        ReplicaState("b", "Draining", url="http://b", pid=2),
        ReplicaState("c", "Backoff", url="http://c", restarts=1),
        ReplicaState("d", "Starting", url="http://d", pid=4, restarts=2),
        ReplicaState("e", "Starting", pid=5),
    ]
    assert endpoints("m", states) == {
        "models": {
            "m": [
                {"id": "a", "url": "http://a", "ready": True, "draining": False},
                {"id": "b", "url": "http://b", "ready": False, "draining": True},
                {"id": "d.2", "url": "http://d", "ready": False, "draining": False},
            ]
        }
    }
    assert endpoints("m", []) == {"models": {"m": []}}, "its requests wait for a replica"


def test_the_autoscaler_is_told_of_processes_as_of_pods() -> None:
    states = [
        ReplicaState("a", "Ready", url="http://a", since=90.0, startup=3.0),
        ReplicaState("b", "Draining", url="http://b", since=10.0),
        ReplicaState("c", "Backoff", restarts=1, since=98.0),
        ReplicaState("d", "NotReady", url="http://d", since=97.0, startup=3.0),
        ReplicaState("e", "Stopped"),
    ]
    told = [(each.key, each.name, each.phase, each.age, each.startup) for each in members(states, 100.0)]
    assert told == [
        ("a", "a", "ready", 10.0, 3.0),
        ("b", "b", "terminating", 90.0, None),
        ("c.1", "c", "pending", 2.0, None),
        ("d", "d", "pending", 3.0, 3.0),
    ]
    assert members(states, 100.0)[0].url == "http://a/metrics"


def test_what_drains_is_not_counted_and_not_missed() -> None:
    states = [ReplicaState("demo-0", "Ready"), ReplicaState("demo-1", "Draining")]
    status = local_status(deployment(), states, {}, NOW)
    assert (status["replicas"], status["readyReplicas"], status["desiredReplicas"]) == (1, 1, 1)
    assert conditions(status)["Progressing"]["status"] == "False"


def test_quantities_are_read_as_kubernetes_reads_them() -> None:
    assert [quantity_bytes(each) for each in (512, "512", "1k", "2Gi", "1.5G")] == [
        512,
        512,
        1000,
        2**31,
        1_500_000_000,
    ]
    assert [cores(each) for each in (2, "2", "500m", "0.5")] == [2, 2, 0.5, 0.5]
    # The API server keeps an exponent as it was given: of a volume that somebody made larger by hand, for one.
    assert [quantity_bytes(each) for each in ("1e3", "5E10", "1E", "25e-1")] == [1000, 5 * 10**10, 10**18, 2]
    for wrong in ("2 GB", "1e3Ki", "e3", "1e"):
        with pytest.raises(ValueError, match="no quantity of memory"):
            quantity_bytes(wrong)
