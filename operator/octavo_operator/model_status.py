"""What status tells of the model: where it is, which revision, by which image, under which URL. Pure."""

from typing import Any, Final

from octavo_operator.api import LLMDeployment
from octavo_operator.downloads import image_ids, revisions, server_image_of
from octavo_operator.observation import Manifest, Observation, Verdict
from octavo_operator.pods import living
from octavo_operator.render import COMMIT

Status = dict[str, Any]

_BUILTIN: Final = "the model comes with the server"
_NOT_DOWNLOADED: Final = {
    "builtin": _BUILTIN,
    "path": "the model is a directory that the pods have",
    "persistent_volume_claim": "the model is on a volume of yours",
    "oci": "the model is an image, which the kubelet pulls and mounts",
}


def service_url(deployment: LLMDeployment) -> str:
    """The base URL for OpenAI clients inside the cluster."""
    return f"http://{deployment.name}.{deployment.namespace}.svc:{deployment.spec.networking.service.port}/v1"


def known(deployment: LLMDeployment, observed: Observation, previous: Manifest) -> Status:
    """The fields `model`, `url`, `modelRevision` and `resolved`; `previous`: the status until now."""
    told: Status = {"model": deployment.model_name}
    if observed.service is not None:
        told["url"] = observed.gateway_url or service_url(deployment)
    if observed.resolved is None:
        return told | {key: previous[key] for key in ("modelRevision", "resolved") if key in previous}
    resolved = observed.resolved.model_dump(by_alias=True, exclude_none=True)
    before = previous.get("resolved") or {}
    is_same = before.get("forSpec") == resolved["forSpec"]
    template = _current_template(observed)
    ids = image_ids(living(observed.pods), template) if template is not None else []
    image_id = (before.get("imageID") if is_same else None) or next(iter(ids), None)
    if image_id is not None:
        resolved["imageID"] = image_id
    revision = observed.resolved.revision or observed.revision or _told_by_spec(deployment)
    revision = revision or (previous.get("modelRevision") if is_same else None)
    if revision is None and template is not None:
        revision = next(iter(revisions(observed.pods, template)), None)
    return told | ({"modelRevision": revision} if revision is not None else {}) | {"resolved": resolved}


def kept(previous: Manifest) -> Status:
    """The same fields as they were, where the spec cannot be read."""
    return {
        key: previous[key] for key in ("model", "url", "modelRevision", "resolved", "autoscaling") if key in previous
    }


def template_of(observed: Observation) -> Manifest | None:
    """What the Deployment makes pods from, None where there is none."""
    template: Manifest | None = (observed.deployment or {"spec": {}})["spec"].get("template")
    return template


def disagreement(observed: Observation) -> Verdict | None:
    """How pods of one spec differ, where what they were told to run is not the same everywhere and at all times."""
    template, pods = template_of(observed), living(observed.pods)
    if template is None:
        return None
    models = revisions(pods, template)
    if len(models) > 1:
        text = f"pods serve different models, as the source changed between their downloads: {', '.join(models)}"
        return Verdict("True", "RevisionsDiffer", f"{text}; storage.cache would give all of them the same")
    # A node that has no registry's digest tells that of its own copy, which says nothing about others.
    images = [each for each in image_ids(pods, template) if "@" in each]
    if len(images) > 1 and "@" not in server_image_of(template):
        text = f"pods run different images, as the tag of {server_image_of(template)} moved between their starts"
        return Verdict("True", "ImagesDiffer", f"{text}: {', '.join(images)}; give a digest as spec.server.image")
    return None


def model_cached(deployment: LLMDeployment | None, observed: Observation) -> Verdict:
    """Where no Job sees to it: the pods download the model themselves, or nobody has to."""
    if deployment is None:
        return Verdict("Unknown", "InvalidSpec", "what the spec means is not known")
    source = deployment.spec.model.source
    if not source.is_downloaded:
        told = (text for name, text in _NOT_DOWNLOADED.items() if getattr(source, name) is not None)
        return Verdict("True", "NotDownloaded", next(told, _BUILTIN))
    if deployment.spec.storage.cache is None:
        return Verdict(
            "False", "NoCache", "each pod downloads the model to its node's disk: storage.cache would keep it"
        )
    template = template_of(observed)
    if template is not None and revisions(observed.pods, template):
        return Verdict("True", "Cached", "a pod has downloaded the model to the volume")
    return Verdict("False", "Downloading", "the first pod downloads the model to the volume, the others wait for it")


def _current_template(observed: Observation) -> Manifest | None:
    """That of this spec: while a model is waited for, the Deployment still is of an earlier one."""
    awaited = observed.cached is not None and observed.cached.status != "True"
    return None if awaited else template_of(observed)


def _told_by_spec(deployment: LLMDeployment) -> str | None:
    """What is a commit or a digest in the spec can be nothing else in a pod."""
    source = deployment.spec.model.source
    if source.http is not None:
        return f"sha256:{source.http.sha256}"
    if source.hugging_face is not None and COMMIT.fullmatch(source.hugging_face.revision):
        return source.hugging_face.revision
    image = source.oci.image if source.oci is not None else ""
    return image.partition("@")[2] or None
