"""The volume that keeps a downloaded model, the Job that fills it, and the policy that lets the Job out.

They are named after what is downloaded, so that replicas and deployments of the same model share them: the volume is
owned by each LLMDeployment that uses it and goes with the last, unless one of them retains it; Job and policy are the
volume's. What they look like depends on all who share them, in an order that is always the same, so that it does not
matter whose turn it is.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from octavo_common.names import CACHE_LABEL, FIELD_MANAGER, LABEL_PREFIX
from octavo_operator.api import LLMDeployment
from octavo_operator.api.quantities import quantity
from octavo_operator.api.storage import Cache
from octavo_operator.render.common import (
    Manifest,
    RenderSettings,
    owner_reference,
    plain,
    pod_security_context,
    without_empty,
)
from octavo_operator.render.network import DNS, outward
from octavo_operator.render.placement import affinity
from octavo_operator.render.pull import (
    FINAL_EXIT_CODES,
    download_ports,
    pull_container,
    pull_source,
    pull_volumes,
    wants_prefetch,
)

SOURCE_ANNOTATION: Final = f"{LABEL_PREFIX}source"
REVISION_ANNOTATION: Final = f"{LABEL_PREFIX}revision"
"""Of a volume that is filled: what its model is."""
_ATTEMPTS: Final = 20
"""Of the Job, with pauses of up to ten minutes: hours in which a network or a hub may come back."""


def cache_name(deployment: LLMDeployment) -> str | None:
    """The name of the volume, by what is downloaded and the kind of volume; None where there is none."""
    cache, source = deployment.spec.storage.cache, deployment.spec.model.source
    if cache is None:
        return None
    identity: list[Any] = [pull_source(source), cache.storage_class_name, sorted(cache.access_modes)]
    identity += [source.s3.endpoint if source.s3 is not None else None]
    identity += [source.http.sha256 if source.http is not None else None]
    identity += [
        each.value for each in deployment.spec.server.env if each.name == "HF_ENDPOINT" and source.hugging_face
    ]
    return f"octavo-model-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}"


def claim(sharers: Sequence[LLMDeployment], live: Manifest | None = None) -> Manifest:
    """The PersistentVolumeClaim of all who share it, at least one; `live` is what is there of it.

    It is never made smaller than it is: a volume cannot shrink.
    """
    sharers = _in_order(sharers)
    first = _cache(sharers[0])
    sizes = [str(_cache(each).size) for each in sharers]
    if live is not None:
        sizes.append(live["spec"]["resources"]["requests"]["storage"])
    metadata = _metadata(sharers[0])
    filled = ((live or {}).get("metadata") or {}).get("annotations", {}).get(REVISION_ANNOTATION)
    metadata["annotations"] |= {REVISION_ANNOTATION: filled} if filled is not None else {}
    if not any(_cache(each).retain for each in sharers):
        metadata["ownerReferences"] = [owner_reference(each) for each in sharers if each.metadata.uid is not None]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": without_empty(metadata),
        "spec": without_empty(
            {
                "accessModes": sorted(first.access_modes),
                "resources": {"requests": {"storage": max(sizes, key=quantity)}},
                "storageClassName": first.storage_class_name,
            }
        ),
    }


def prefetch_job(sharers: Sequence[LLMDeployment], settings: RenderSettings, volume: Manifest) -> Manifest | None:
    """The Job that fills `volume`, the claim above; None where nobody wants it now.

    Its pods carry no label of a deployment: they are nobody's replicas.

    Raises:
        ManifestError: the operator does not know its own image.
    """
    wanting = [each for each in _in_order(sharers) if wants_prefetch(each) and not each.spec.suspend]
    if not wanting:
        return None
    first = wanting[0]
    template = first.spec.pod_template
    metadata = _metadata(first)
    name = metadata["name"]
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security_context(),
        "containers": [pull_container(first, settings, on_disk=False)],
        "volumes": [{"name": "model", "persistentVolumeClaim": {"claimName": name}}, *pull_volumes(first)],
        # A volume of one zone must be where the replicas can run.
        "nodeSelector": dict(template.node_selector),
        "tolerations": [plain(each) for each in template.tolerations],
        "affinity": affinity(template.affinity or {}, None if _anywhere(first) else first.spec.resources.accelerator),
        "serviceAccountName": template.service_account_name,
        "imagePullSecrets": [plain(each) for each in template.image_pull_secrets],
    }
    exit_codes = {"containerName": "pull", "operator": "In", "values": list(FINAL_EXIT_CODES)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata | _owned_by(volume),
        "spec": {
            "backoffLimit": _ATTEMPTS,
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": exit_codes},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": dict(metadata["labels"])}, "spec": without_empty(pod)},
        },
    }


def prefetch_policy(sharers: Sequence[LLMDeployment], volume: Manifest) -> Manifest | None:
    """Who the Job's pods may talk to: nobody comes in. None where one who shares them wants no policies."""
    restricted = [each.spec.networking.network_policy == "Restricted" for each in sharers]
    if not all(restricted) or not any(wants_prefetch(each) for each in sharers):
        return None
    first = _in_order(sharers)[0]
    metadata = _metadata(first)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata | _owned_by(volume),
        "spec": {
            "podSelector": {"matchLabels": {CACHE_LABEL: metadata["name"]}},
            "policyTypes": ["Ingress", "Egress"],
            "egress": [{"ports": DNS}, *outward(_ports(sharers))],
        },
    }


def _ports(sharers: Sequence[LLMDeployment]) -> list[int]:
    return sorted({port for each in sharers for port in download_ports(each)})


def _in_order(sharers: Sequence[LLMDeployment]) -> list[LLMDeployment]:
    """The oldest first; those of a file, which have no age, by name."""
    return sorted(sharers, key=lambda each: (each.metadata.creation_timestamp or "", each.name))


def _cache(deployment: LLMDeployment) -> Cache:
    cache = deployment.spec.storage.cache
    if cache is None:
        raise ValueError(f"{deployment.name} has no cache")
    return cache


def _anywhere(deployment: LLMDeployment) -> bool:
    """Whether pods on any node can read the volume, so that no node with an accelerator is needed to fill it."""
    return "ReadWriteMany" in _cache(deployment).access_modes


def _metadata(deployment: LLMDeployment) -> Manifest:
    name = cache_name(deployment)
    return {
        "name": name,
        "namespace": deployment.namespace,
        "labels": {
            CACHE_LABEL: name,
            "app.kubernetes.io/name": "octavo",
            "app.kubernetes.io/component": "model-cache",
            "app.kubernetes.io/managed-by": FIELD_MANAGER,
        },
        "annotations": {SOURCE_ANNOTATION: pull_source(deployment.spec.model.source)},
    }


def _owned_by(volume: Manifest) -> Manifest:
    metadata = volume["metadata"]
    if "uid" not in metadata:
        return {}
    owner = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": metadata["name"], "uid": metadata["uid"]}
    return {"ownerReferences": [owner | {"controller": True, "blockOwnerDeletion": False}]}
