"""What pods tell of the model that they downloaded and of the image that they run. Pure.

The container `pull` ends with what it found, as JSON, in its termination message: source, revision, files, bytes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Manifest = Mapping[str, Any]

LONGEST_REVISION = 512


def told_revision(pod: Manifest) -> str | None:
    """The revision that the pod's download ended with; None before that."""
    for status in _statuses(pod):
        if status["name"] != "pull":
            continue
        ends = (status.get(state, {}).get("terminated") for state in ("state", "lastState"))
        message = next((each.get("message") for each in ends if each and each.get("exitCode") == 0), None)
        if message is not None:
            return _revision(str(message))
    return None


def revisions(pods: Sequence[Manifest], template: Manifest) -> list[str]:
    """Those that pods of this template have downloaded, each once, the oldest pod's first."""
    told = (told_revision(pod) for pod in _of_template(pods, template))
    return list(dict.fromkeys(each for each in told if each is not None))


def image_ids(pods: Sequence[Manifest], template: Manifest) -> list[str]:
    """The digests of the image that servers of this template run, each once, the oldest pod's first."""
    told = [
        str(status.get("imageID", ""))
        for pod in _of_template(pods, template)
        for status in _statuses(pod)
        if status["name"] == "server"
    ]
    return list(dict.fromkeys(_reference(each) for each in told if "sha256:" in each))


def server_image_of(template: Manifest) -> str:
    """The image that servers of this template are started from, by the name that was given."""
    containers = template["spec"].get("containers") or ()
    return next((str(each.get("image", "")) for each in containers if each["name"] == "server"), "")


def restarts(pods: Sequence[Manifest]) -> int:
    """Of the servers of pods that are there."""
    return sum(
        int(status.get("restartCount", 0)) for pod in pods for status in _statuses(pod) if status["name"] == "server"
    )


def _of_template(pods: Sequence[Manifest], template: Manifest) -> list[Manifest]:
    """The pods that run the same images with the same arguments; which ReplicaSet they are of, they do not tell."""
    wanted = _asks_for(template["spec"])
    found = [pod for pod in pods if _asks_for(pod["spec"]) == wanted]
    return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))


def _asks_for(spec: Manifest) -> list[tuple[str, str, tuple[str, ...]]]:
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    ours = [each for each in containers if each["name"] in ("pull", "server")]
    return [(each["name"], str(each.get("image")), tuple(each.get("args") or ())) for each in ours]


def _statuses(pod: Manifest) -> Iterator[Manifest]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _revision(message: str) -> str | None:
    """None where it is no such report: the container's own end may have been another."""
    try:
        told = json.loads(message)["revision"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return told if isinstance(told, str) and 0 < len(told) <= LONGEST_REVISION else None


def _reference(image_id: str) -> str:
    """Without what some container runtimes put before it."""
    return image_id.removeprefix("docker-pullable://")
