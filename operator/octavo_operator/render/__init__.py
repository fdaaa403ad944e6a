"""From a validated LLMDeployment to the objects that serve it. Pure: the same input gives the same dicts.

Fields that are empty are left out, so that a server-side apply owns exactly what stands here.
"""

from octavo_operator.api import FieldError, LLMDeployment, ManifestError
from octavo_operator.render.arguments import container_arguments, has_admin_port, model_argument, server_arguments
from octavo_operator.render.common import Manifest, RenderSettings, selector
from octavo_operator.render.network import inference_pool, network_policy, pod_monitor, service
from octavo_operator.render.pull import COMMIT, lacks_commit, pull_arguments, pull_source, pulls_itself, wants_prefetch
from octavo_operator.render.revision import revision_job, revision_name, revision_name_of, revision_policy
from octavo_operator.render.storage import REVISION_ANNOTATION, cache_name, claim, prefetch_job, prefetch_policy
from octavo_operator.render.timing import grace_seconds, start_seconds, startup_seconds
from octavo_operator.render.workload import deployment_of, disruption_budget

__all__ = [
    "COMMIT",
    "REVISION_ANNOTATION",
    "Manifest",
    "RenderSettings",
    "cache_name",
    "claim",
    "container_arguments",
    "grace_seconds",
    "has_admin_port",
    "lacks_commit",
    "model_argument",
    "prefetch_job",
    "prefetch_policy",
    "pull_arguments",
    "pull_source",
    "pulls_itself",
    "render",
    "render_own",
    "revision_job",
    "revision_name",
    "revision_name_of",
    "revision_policy",
    "selector",
    "server_arguments",
    "server_image",
    "start_seconds",
    "startup_seconds",
    "wants_prefetch",
]


def render(deployment: LLMDeployment, settings: RenderSettings) -> list[Manifest]:
    """All the objects that stand for `deployment`, were it alone in its namespace, in the order they are applied in.

    Raises:
        ManifestError: an image is left out, and `settings` has none for it.
    """
    shared: list[Manifest | None] = []
    if cache_name(deployment) is not None:
        volume = claim([deployment])
        shared = [volume, prefetch_policy([deployment], volume), prefetch_job([deployment], settings, volume)]
    if lacks_commit(deployment) and deployment.desired_replicas:
        shared = [revision_policy(deployment), revision_job(deployment, settings)]
    return [each for each in shared if each is not None] + render_own(deployment, settings)


def render_own(deployment: LLMDeployment, settings: RenderSettings) -> list[Manifest]:
    """Those that are its alone, of its name and in its namespace.

    The Deployment is last of what every cluster has: its pods find their policy, budget and Service in place. Where
    metadata.uid is known (it is not in a file), all carry an owner reference to it.

    Raises:
        ManifestError: an image is left out, and `settings` has none for it.
    """
    image = server_image(deployment, settings)
    found = [
        network_policy(deployment, settings),
        disruption_budget(deployment),
        service(deployment),
        deployment_of(deployment, image, settings),
        pod_monitor(deployment),
        inference_pool(deployment),
    ]
    return [each for each in found if each is not None]


def server_image(deployment: LLMDeployment, settings: RenderSettings) -> str:
    """The image of the server: the spec's, else the operator's.

    Raises:
        ManifestError: neither names one.
    """
    image = deployment.spec.server.image or settings.server_image
    if not image:
        raise ManifestError([FieldError("spec.server.image", "is required, as the operator has no default image")])
    return image
