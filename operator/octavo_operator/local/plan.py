"""What a manifest means on this machine: a command line, environments for processes, and what cannot act.

The command line is the container's own, made by the same function, but for host, port and the key of our gateway.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from octavo_common.free_memory import free_host_bytes
from octavo_operator.api import FieldError, LLMDeployment, ManifestError
from octavo_operator.api.base import ApiModel
from octavo_operator.api.quantities import cores, quantity_bytes
from octavo_operator.api.server import EnvVar
from octavo_operator.local.replica import Launch
from octavo_operator.render import grace_seconds, server_arguments, startup_seconds

HOST: Final = "127.0.0.1"
OCTAVO: Final = (sys.executable, "-m", "octavo_cli.main")
DEVICES: Final = "CUDA_VISIBLE_DEVICES"
KEY_VARIABLES: Final = {"OCTAVO_API_KEY", "VLLM_API_KEY"}
THREADS: Final = "OMP_NUM_THREADS"  # of torch on the CPU: more of them than cores that are free slow each other down
WAITING: Final = "OMP_WAIT_POLICY"


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """In what environments replicas can run, one in each; `warnings` are sentences for people.

    model: the directory to which the model was downloaded, where the manifest's source is elsewhere.
    """

    deployment: LLMDeployment
    environments: tuple[Mapping[str, str], ...]
    warnings: tuple[str, ...]
    model: Path | None = None

    @property
    def places(self) -> int:
        """Replicas at the most: those that may be wanted, or fewer where memory or GPUs do not allow them."""
        return len(self.environments)

    def launches(self, gateway_key: Path, on_line: Callable[[str, str], None] | None = None) -> list[Launch]:
        """How the replica in each place is started, at any free port. `gateway_key`: a file with the gateway's."""
        common = Launch(
            command=lambda port: self._command(port, gateway_key),
            environment={},
            host=HOST,
            startup_seconds=startup_seconds(self.deployment),
            grace_seconds=grace_seconds(self.deployment),
            on_line=on_line,
        )
        return [replace(common, environment=environment) for environment in self.environments]

    def _command(self, port: int, gateway_key: Path) -> Sequence[str]:
        model = None if self.model is None else str(self.model)
        arguments = server_arguments(self.deployment, HOST, port, model)
        return [*OCTAVO, *arguments[:2], "--gateway-api-key-file", str(gateway_key), *arguments[2:]]


def plan_locally(deployment: LLMDeployment, environment: Mapping[str, str], gpus: Sequence[str]) -> LocalPlan:
    """Plan `deployment` for this machine with these GPUs, its replicas inheriting `environment`.

    Raises:
        ManifestError: a field asks for what only a cluster has, and there is no doing without it.
    """
    deployment = deployment.scaled(there=1)
    errors = [*_source_errors(deployment), *_environment_errors(deployment.spec.server.env, environment)]
    if deployment.spec.suspend or most_replicas(deployment) == 0:
        field = "spec.suspend" if deployment.spec.suspend else "spec.replicas"
        errors.append(FieldError(field, "asks for no replica at all; there is nothing to bring up"))
    wants_gpu, most = deployment.spec.resources.accelerator is not None, most_replicas(deployment)
    warnings = list[str]()
    if wants_gpu and 0 < len(gpus) < most:
        text = f"{most} replicas need a GPU each, and this machine has {len(gpus)}"
        if _is_scaled(deployment):
            most = len(gpus)
            warnings.append(f"spec.autoscaling.maxReplicas: {text}; there will be {most} at the most")
        else:
            errors.append(FieldError("spec.replicas", f"{text}; give {len(gpus)} or fewer"))
    if errors:
        raise ManifestError(errors)
    count, few = _affordable(deployment, most)
    warnings += few
    base = dict(environment) | {variable.name: variable.value or "" for variable in _plain(deployment.spec.server.env)}
    base["PYTHONSAFEPATH"] = "1"  # no module is taken from the directory that the user happens to be in
    if not (wants_gpu and gpus):
        base = _shared_cores(deployment, count) | base
    devices = list(gpus[:count]) if wants_gpu and gpus else [""] * count
    warnings += [*_secret_warnings(deployment, environment), *_idle_fields(deployment)]
    if wants_gpu and not gpus:
        warnings.append("spec.resources.accelerator: this machine has no GPU that can be used; it runs on the CPU")
    environments = tuple(base | {DEVICES: device} for device in devices)
    return LocalPlan(_within(deployment, count), environments, tuple(warnings))


def most_replicas(deployment: LLMDeployment) -> int:
    """Replicas that may be wanted at once."""
    autoscaling = deployment.spec.autoscaling
    if autoscaling is None or autoscaling.mode != "Internal":
        return deployment.desired_replicas
    return autoscaling.max_replicas or max(1, autoscaling.min_replicas)


def _is_scaled(deployment: LLMDeployment) -> bool:
    return deployment.spec.autoscaling is not None and deployment.spec.autoscaling.mode == "Internal"


def _within(deployment: LLMDeployment, places: int) -> LLMDeployment:
    """With no more replicas than there are places for where the load decides: what cannot be is not waited for."""
    autoscaling = deployment.spec.autoscaling
    if autoscaling is None or not _is_scaled(deployment):
        return deployment
    bounds = {"min_replicas": min(autoscaling.min_replicas, places), "max_replicas": places}
    spec = deployment.spec.model_copy(update={"autoscaling": autoscaling.model_copy(update=bounds)})
    return deployment.model_copy(update={"spec": spec})


def _shared_cores(deployment: LLMDeployment, count: int) -> dict[str, str]:
    """The cores of this machine, shared out: as many threads for each of `count` replicas, so that their answers agree
    in every bit, and no more than it has.
    """
    cpu, here = deployment.spec.resources.cpu, _cores_here()
    if cpu is None and count == 1:
        return {}
    wanted = here if cpu is None else max(1, int(cores(cpu)))
    # Threads that spin while they wait take the cores that the other replicas need.
    passive = {WAITING: "PASSIVE"} if count > 1 else {}
    return {THREADS: str(max(1, min(wanted, here // count))), **passive}


def _cores_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _source_errors(deployment: LLMDeployment) -> Iterator[FieldError]:
    source = deployment.spec.model.source
    if source.persistent_volume_claim is not None:
        text = "there are no volume claims on this machine; use path with a directory of this machine, or builtin"
        yield FieldError("spec.model.source.persistentVolumeClaim", text)
    if source.path is not None and not Path(source.path.path).is_dir():
        yield FieldError("spec.model.source.path.path", f"{source.path.path} is not a directory of this machine")


def _environment_errors(variables: Sequence[EnvVar], environment: Mapping[str, str]) -> Iterator[FieldError]:
    """Secrets and ConfigMaps are not here; a variable that is exported here stands for its reference."""
    for index, variable in enumerate(variables):
        reference = variable.value_from and (
            variable.value_from.secret_key_ref or variable.value_from.config_map_key_ref
        )
        if reference and not reference.optional and variable.name not in environment:
            text = f"there are no Secrets and ConfigMaps on this machine; export {variable.name} instead"
            yield FieldError(f"spec.server.env[{index}].valueFrom", text)


def _secret_warnings(deployment: LLMDeployment, environment: Mapping[str, str]) -> Iterator[str]:
    """What stands for Secrets here. Without theirs the replicas, on loopback alone, ask nobody for a key."""
    if deployment.spec.server.api_key_secret_ref is not None and not KEY_VARIABLES & set(environment):
        text = "there are no Secrets on this machine, so nobody is asked for a key; export OCTAVO_API_KEY for one"
        yield f"spec.server.apiKeySecretRef: {text}"
    source = deployment.spec.model.source
    hub, bucket = source.hugging_face, source.s3
    if hub is not None and hub.token_secret_ref is not None and "HF_TOKEN" not in environment:
        text = "there are no Secrets on this machine; export HF_TOKEN, unless you are logged in to the hub"
        yield f"spec.model.source.huggingFace.tokenSecretRef: {text}"
    if bucket is not None and bucket.credentials_secret_ref is not None and "AWS_ACCESS_KEY_ID" not in environment:
        text = "there are no Secrets on this machine; export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        yield f"spec.model.source.s3.credentialsSecretRef: {text}"


def _plain(variables: Sequence[EnvVar]) -> list[EnvVar]:
    return [variable for variable in variables if variable.value_from is None]


def _affordable(deployment: LLMDeployment, wanted: int) -> tuple[int, list[str]]:
    """How many of the replicas wanted fit into the free memory, at least one, and what to say if not all do."""
    memory = deployment.spec.resources.memory
    free = free_host_bytes()
    if memory is None or free is None:
        return wanted, []
    count = max(1, min(wanted, free // quantity_bytes(memory)))
    if count == wanted and quantity_bytes(memory) <= free:
        return count, []
    started = f"{count} of {wanted} replicas {'is' if count == 1 else 'are'} started"
    if _is_scaled(deployment):
        started = f"there will be {count} of {wanted} replicas at the most"
    return count, [f"spec.resources.memory: {memory} each, and {free / 2**30:.1f} GiB are free here; {started}"]


def _idle_fields(deployment: LLMDeployment) -> Iterator[str]:
    """One sentence on the fields that are given and act in a cluster alone."""
    spec = deployment.spec
    given = [
        f"spec.podTemplate.{_alias(spec.pod_template, name)}" for name in sorted(spec.pod_template.model_fields_set)
    ]
    fields = {
        "spec.server.image": spec.server.image,
        "spec.server.compileCache": spec.server.compile_cache,
        "spec.resources.ephemeralStorage": spec.resources.ephemeral_storage,
        "spec.storage.cache": spec.storage.cache,
        "spec.autoscaling": spec.autoscaling if spec.autoscaling and spec.autoscaling.mode == "External" else None,
        "spec.networking.inferencePool": spec.networking.inference_pool,
    }
    given += [name for name, value in fields.items() if value is not None]
    given += [f"spec.networking.{each}" for each in _set(spec.networking, "networkPolicy", "allowFrom")]
    given += [f"spec.{each}" for each in _set(spec, "rollout", "observability", "disruption")]
    if given:
        yield f"{', '.join(given)}: no effect without a cluster"


def _set(model: ApiModel, *names: str) -> list[str]:
    """Which of these fields, by their names in YAML, the manifest gives."""
    given = {_alias(model, name) for name in model.model_fields_set}
    return [name for name in names if name in given]


def _alias(model: ApiModel, name: str) -> str:
    return type(model).model_fields[name].alias or name
