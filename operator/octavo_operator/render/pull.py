"""How a model is downloaded: the command line of `octavo pull`, the container that runs it, where it connects to."""

import re
from typing import Final
from urllib.parse import urlsplit

from octavo_operator.api import FieldError, LLMDeployment, ManifestError
from octavo_operator.api.model_source import ModelSource
from octavo_operator.api.server import EnvVar
from octavo_operator.render.arguments import MODEL_DIRECTORY, PULLED_DIRECTORY
from octavo_operator.render.common import RESTRICTED, Manifest, RenderSettings, plain, without_empty

CREDENTIALS_DIRECTORY: Final = "/octavo/credentials"
FINAL_EXIT_CODES: Final = (2,)
"""Of `octavo pull`: trying again is useless."""

COMMIT: Final = re.compile(r"[0-9a-f]{40}")

_TERMINATION_LOG: Final = "/dev/termination-log"
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
_VARIABLES: Final = frozenset({*_PROXIES, "HF_ENDPOINT", "NO_PROXY", "no_proxy", "SSL_CERT_FILE"})
_AWS_NEEDED: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_AWS_OPTIONAL: Final = ("AWS_SESSION_TOKEN", "AWS_REGION")
_PORTS: Final = {"http": 80, "https": 443}
_RESOURCES: Final[Manifest] = {
    "requests": {"cpu": "250m", "memory": "256Mi"},
    "limits": {"memory": "512Mi"},
}


def pull_source(source: ModelSource) -> str:
    """What `octavo pull` calls the source.

    Raises:
        ValueError: it is none that is downloaded.
    """
    if source.hugging_face is not None:
        return f"hf://{source.hugging_face.repo}@{source.hugging_face.revision}"
    if source.s3 is not None:
        return source.s3.uri
    if source.http is not None:
        return source.http.url
    raise ValueError("this source is not downloaded")


def pull_arguments(source: ModelSource, directory: str, token_file: str | None = None) -> list[str]:
    """The command line, after `octavo`, that fetches `source` into `directory`."""
    arguments = ["pull", pull_source(source), directory]
    if token_file is not None:
        arguments += ["--token-file", token_file]
    if source.s3 is not None and source.s3.endpoint is not None:
        arguments += ["--endpoint", source.s3.endpoint]
    if source.http is not None:
        arguments += ["--sha256", source.http.sha256]
    return arguments


def wants_prefetch(deployment: LLMDeployment) -> bool:
    """Whether a Job downloads the model before any pod is started."""
    return deployment.spec.storage.cache is not None and deployment.spec.storage.cache.prefetch


def pulls_itself(deployment: LLMDeployment) -> bool:
    """Whether each pod downloads the model, or waits for another pod that does."""
    return deployment.spec.model.source.is_downloaded and not wants_prefetch(deployment)


def lacks_commit(deployment: LLMDeployment) -> bool:
    """Whether pods that resolved the revision themselves, each when it starts, could get different models."""
    hub = deployment.spec.model.source.hugging_face
    return hub is not None and deployment.spec.storage.cache is None and not COMMIT.fullmatch(hub.revision)


def pull_container(deployment: LLMDeployment, settings: RenderSettings, *, on_disk: bool) -> Manifest:
    """The container that downloads the model of `deployment` onto the volume `model`; `on_disk`: of the pod's node.

    Raises:
        ManifestError: the operator does not know its own image.
    """
    source = deployment.spec.model.source
    arguments = pull_arguments(source, PULLED_DIRECTORY, _token_file(source))
    mounts: list[Manifest] = [{"name": "model", "mountPath": MODEL_DIRECTORY}]
    container = _container(deployment, settings, arguments, mounts)
    return container | {"resources": _resources(deployment, on_disk=on_disk)}


def resolve_container(deployment: LLMDeployment, settings: RenderSettings) -> Manifest:
    """The container that only asks which revision the source is now.

    Raises:
        ManifestError: the operator does not know its own image.
    """
    source = deployment.spec.model.source
    token_file = _token_file(source)
    arguments = ["pull", pull_source(source), "--resolve"]
    arguments += ["--token-file", token_file] if token_file is not None else []
    return _container(deployment, settings, arguments, [{"name": "tmp", "mountPath": "/tmp"}])


def _container(
    deployment: LLMDeployment, settings: RenderSettings, arguments: list[str], mounts: list[Manifest]
) -> Manifest:
    if not settings.pull_image:
        text = "is downloaded by the operator's own image, which it was not told: start it with --pull-image"
        raise ManifestError([FieldError("spec.model.source", text)])
    source = deployment.spec.model.source
    if _token_file(source) is not None:
        mounts = [*mounts, {"name": "credentials", "mountPath": CREDENTIALS_DIRECTORY, "readOnly": True}]
    return without_empty(
        {
            "name": "pull",
            "image": settings.pull_image,
            "command": ["octavo"],
            # Its last word, an error or the revision that was found, is what the pod says when it has ended.
            "args": [*arguments, "--result-file", _TERMINATION_LOG],
            "env": _credentials(source) + [plain(each) for each in _variables(deployment)],
            "resources": _RESOURCES,
            "volumeMounts": mounts,
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": dict(RESTRICTED),
        }
    )


def _token_file(source: ModelSource) -> str | None:
    token = source.hugging_face.token_secret_ref if source.hugging_face is not None else None
    return f"{CREDENTIALS_DIRECTORY}/{token.key}" if token is not None else None


def pull_volumes(deployment: LLMDeployment) -> list[Manifest]:
    """The volumes that the container needs besides the one for the model."""
    source = deployment.spec.model.source
    token = source.hugging_face.token_secret_ref if source.hugging_face is not None else None
    if token is None:
        return []
    secret = {"secretName": token.name, "items": [{"key": token.key, "path": token.key}], "defaultMode": 0o440}
    return [{"name": "credentials", "secret": secret}]


def download_ports(deployment: LLMDeployment) -> list[int]:
    """The ports that a download connects to, in order."""
    given = {each.name: each.value for each in _variables(deployment) if each.value}
    source = deployment.spec.model.source
    urls = [given[name] for name in _PROXIES if name in given]
    if source.hugging_face is not None:
        # The hub sends its large files from elsewhere, by HTTPS.
        urls += ["https://huggingface.co", given.get("HF_ENDPOINT", "")]
    if source.s3 is not None:
        urls += [source.s3.endpoint or "https://s3.amazonaws.com"]
    if source.http is not None:
        urls += [source.http.url]
    return sorted({port for url in urls if (port := _port(url)) is not None})


def _resources(deployment: LLMDeployment, *, on_disk: bool) -> Manifest:
    """Its own needs, and on the pod's disk those of the model: the same that the server's container then has."""
    disk = deployment.spec.resources.ephemeral_storage
    if disk is None or not on_disk:
        return _RESOURCES
    size = {"ephemeral-storage": str(disk)}
    return {name: amounts | size for name, amounts in _RESOURCES.items()}


def _credentials(source: ModelSource) -> list[Manifest]:
    reference = source.s3.credentials_secret_ref if source.s3 is not None else None
    if reference is None:
        return []
    keys: list[tuple[str, Manifest]] = [(name, {}) for name in _AWS_NEEDED]
    keys += [(name, {"optional": True}) for name in _AWS_OPTIONAL]
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": reference.name, "key": name} | optional}}
        for name, optional in keys
    ]


def _variables(deployment: LLMDeployment) -> list[EnvVar]:
    return [each for each in deployment.spec.server.env if each.name in _VARIABLES]


def _port(url: str) -> int | None:
    """The port that a URL stands for; None where it is no URL."""
    try:
        parts = urlsplit(url)
        return parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None
