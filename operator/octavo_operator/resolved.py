"""What a spec leaves open, decided once: which image, which commit, how long a start may take. Pure.

It is kept in `status.resolved` and holds until the spec changes, so that neither a new operator, with another default
image or another formula, nor a branch that moves replaces pods or makes them differ. Scaling is no such change.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pydantic import ValidationError

from octavo_operator.api import LLMDeployment
from octavo_operator.api.status import Resolved
from octavo_operator.render import RenderSettings, lacks_commit, pulls_itself, server_image, startup_seconds

_SCALING: Final = {"replicas", "autoscaling", "suspend"}


def resolve(live: Mapping[str, Any], deployment: LLMDeployment, settings: RenderSettings) -> Resolved:
    """What holds for `deployment`: what its status says, if that is of this spec, else decided now.

    Raises:
        ManifestError: an image is left out, and `settings` has none for it.
    """
    digest = spec_digest(deployment)
    held = _held(live)
    if held is not None and held.for_spec == digest:
        return held
    return Resolved(
        forSpec=digest,
        image=server_image(deployment, settings),
        pullImage=settings.pull_image if pulls_itself(deployment) else None,
        revision=_given_commit(deployment),
        startupTimeoutSeconds=startup_seconds(deployment),
    )


def pinned(
    deployment: LLMDeployment, settings: RenderSettings, resolved: Resolved
) -> tuple[LLMDeployment, RenderSettings]:
    """`deployment` and `settings` with nothing left open, to be rendered."""
    spec = deployment.spec
    changed: dict[str, Any] = {
        "server": spec.server.model_copy(update={"image": resolved.image}),
        "startup": spec.startup.model_copy(update={"timeout_seconds": resolved.startup_timeout_seconds}),
    }
    hub = spec.model.source.hugging_face
    if hub is not None and resolved.revision is not None:
        source = spec.model.source.model_copy(
            update={"hugging_face": hub.model_copy(update={"revision": resolved.revision})}
        )
        changed["model"] = spec.model.model_copy(update={"source": source})
    return (
        deployment.model_copy(update={"spec": spec.model_copy(update=changed)}),
        replace(settings, pull_image=resolved.pull_image or settings.pull_image),
    )


def spec_digest(deployment: LLMDeployment) -> str:
    """Of what the spec says beyond defaults, so that a field that a later version adds changes nothing."""
    said = deployment.spec.model_dump(by_alias=True, exclude_defaults=True, exclude=_SCALING)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _given_commit(deployment: LLMDeployment) -> str | None:
    """A commit in the spec of pods that download by themselves: a volume's name goes by what the spec says."""
    hub = deployment.spec.model.source.hugging_face
    if hub is None or deployment.spec.storage.cache is not None or lacks_commit(deployment):
        return None
    return hub.revision


def _held(live: Mapping[str, Any]) -> Resolved | None:
    """What the status says; None where it says nothing, or what only another version understands."""
    try:
        return Resolved.model_validate((live.get("status") or {}).get("resolved"))
    except ValidationError:
        return None
