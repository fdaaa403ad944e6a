"""What is allowed in a manifest and may still not be what was meant: sentences for `octavo plan`. Pure."""

import re
from collections.abc import Iterator

from octavo_operator.api import LLMDeployment


def advice(deployment: LLMDeployment) -> list[str]:
    """One sentence for each finding, its field first."""
    return [*_disk(deployment), *_one_node(deployment), *_moving(deployment)]


def _disk(deployment: LLMDeployment) -> Iterator[str]:
    spec = deployment.spec
    if spec.model.source.is_downloaded and spec.storage.cache is None and spec.resources.ephemeral_storage is None:
        text = "each pod downloads the model to its node's disk, and is evicted where that runs full"
        yield f"spec.resources.ephemeralStorage: {text}: say how much the model needs, or give storage.cache"


def _one_node(deployment: LLMDeployment) -> Iterator[str]:
    cache, autoscaling = deployment.spec.storage.cache, deployment.spec.autoscaling
    replicas = (autoscaling and autoscaling.max_replicas) or deployment.spec.replicas
    if cache is not None and "ReadWriteMany" not in cache.access_modes and replicas > 1:
        text = f"a volume of ReadWriteOnce is mounted on one node, so all {replicas} replicas must fit there"
        yield f"spec.storage.cache.accessModes: {text}"


def _moving(deployment: LLMDeployment) -> Iterator[str]:
    hub = deployment.spec.model.source.hugging_face
    if hub is not None and re.fullmatch(r"[0-9a-f]{40}", hub.revision) is None:
        cached = deployment.spec.storage.cache is not None
        when = (
            "a volume made later gets" if cached else "with each change of the spec it is asked for again, and pods get"
        )
        text = f"{hub.revision} may move: {when} what it is by then: give a commit"
        yield f"spec.model.source.huggingFace.revision: {text}"
