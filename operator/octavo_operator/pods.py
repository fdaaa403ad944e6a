"""What pods say about themselves, in their own words and those of scheduler and kubelet. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from octavo_operator.endings import is_silent

Manifest = Mapping[str, Any]

_WAITING_IN_VAIN: Final = frozenset(
    {
        *("CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"),
        *("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"),
    }
)


OUT_OF_MEMORY: Final = "OOMKilled"
_CRASHES: Final = 2
"""Restarts from which on one that is not ready counts as crashing, also while it runs: one may be mended by itself."""


@dataclass(frozen=True, slots=True)
class Unscheduled:
    """Pods without a node: `count` that the scheduler refused with `messages`, `undecided` that it has yet to see."""

    count: int
    undecided: int
    reason: str
    messages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps pods from running; `reason` is the kubelet's."""

    reason: str
    message: str


def living(pods: Sequence[Manifest]) -> list[Manifest]:
    """The pods that neither are ending nor have ended: what those say is about the past."""
    return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp") and not has_ended(pod)]


def has_ended(pod: Manifest) -> bool:
    """Whether none of its containers will ever run again: evicted, or finished."""
    return (pod.get("status") or {}).get("phase") in {"Failed", "Succeeded"}


def unscheduled(pods: Sequence[Manifest]) -> Unscheduled:
    """Which pods have no node, and what the scheduler says about them."""
    refused: list[Manifest] = []
    undecided = 0
    for pod in pods:
        verdict = next((each for each in _conditions(pod) if each["type"] == "PodScheduled"), None)
        if verdict is not None and verdict["status"] == "False":
            refused.append(verdict)
        elif not pod["spec"].get("nodeName") and (verdict is None or verdict["status"] != "True"):
            undecided += 1
    messages = dict.fromkeys(each.get("message") or each.get("reason", "no reason given") for each in refused)
    reason = str(refused[0].get("reason") or "Unschedulable") if refused else ""
    return Unscheduled(len(refused), undecided, reason, tuple(messages))


def describe_trouble(pods: Sequence[Manifest]) -> Trouble | None:
    """The first container that cannot run, and how many pods have one like it."""
    found = [(pod, each) for pod in pods for each in _containers(pod) if _trouble(each)]
    if not found:
        return None
    pod, container = found[0]
    reason = _trouble(container)
    others = len({each["metadata"]["name"] for each, _ in found}) - 1
    more = f" (and {others} more {'pod' if others == 1 else 'pods'})" if others else ""
    return Trouble(reason, f"pod {pod['metadata']['name']}{more}: {reason}: {_explanation(container)}")


def describe_start(pods: Sequence[Manifest]) -> str:
    """What pods that are not ready yet do now, and what became of the last that was put off its node."""
    doing: dict[str, int] = {}
    for pod in pods:
        if not pod["metadata"].get("deletionTimestamp") and not has_ended(pod) and not _is_ready(pod):
            step = _step(pod)
            doing[step] = doing.get(step, 0) + 1
    told = ", ".join(f"{count} {step}" for step, count in sorted(doing.items()))
    lost = max(
        (pod for pod in pods if _lost(pod)), key=lambda pod: str(pod["status"].get("startTime", "")), default=None
    )
    if lost is None:
        return told
    words = f"pod {lost['metadata']['name']} was ended: {lost['status']['reason']}: {lost['status'].get('message', '')}"
    return f"{told}; {words}" if told else words


def why_it_fails(pods: Sequence[Manifest]) -> str:
    """The last words of the pod that failed last, or why a container cannot start; empty where nothing is wrong."""
    trouble = describe_trouble(living(pods))
    if trouble is not None:
        return trouble.message
    ended = [each.get("state", {}).get("terminated") for pod in pods for each in _containers(pod)]
    failed = [each for each in ended if each is not None and each.get("exitCode", 0) != 0]
    if not failed:
        return ""
    last = max(failed, key=lambda each: str(each.get("finishedAt", "")))
    lines = [line.strip() for line in str(last.get("message", "")).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {last.get('exitCode')} ({last.get('reason', 'no reason given')})"


def _trouble(container: Manifest) -> str:
    """Why it cannot run; empty where it runs, or may yet. Between two crashes it runs for a while, and is not well."""
    waiting, ended = _reason(container), _last_end(container)
    if waiting not in _WAITING_IN_VAIN:
        again = container.get("restartCount", 0) >= _CRASHES and ended.get("exitCode", 0) != 0
        waiting = "CrashLoopBackOff" if again and not container.get("ready") else ""
    killed = ended.get("reason") == OUT_OF_MEMORY and not container.get("ready")
    return OUT_OF_MEMORY if killed and waiting in ("", "CrashLoopBackOff") else waiting


def _explanation(container: Manifest) -> str:
    """What the container said when it ended, else what the kubelet says."""
    ended, waiting = _last_end(container), str(container["state"].get("waiting", {}).get("message", ""))
    if not ended:
        return waiting
    cause = f"it ended with exit code {ended.get('exitCode')}"
    cause += f" ({ended['reason']})" if ended.get("reason") not in (None, "", "Error") else ""
    if ended.get("reason") == OUT_OF_MEMORY and container.get("name") == "server":
        return f"{cause}: it needs more memory than its limit: raise spec.resources.memory"
    last_words = [line.strip() for line in str(ended.get("message", "")).splitlines() if line.strip()]
    return f"{cause}: {last_words[-1]}" if last_words else "; ".join(filter(None, [cause, waiting]))


def _last_end(container: Manifest) -> Manifest:
    """How it ended last, empty where it has not: what it is now where it has yet to be started again, else before."""
    now, before = container.get("state", {}).get("terminated"), container.get("lastState", {}).get("terminated")
    return now if now is not None and container.get("restartCount") else before or {}


def _step(pod: Manifest) -> str:
    """What a pod is doing, in the words that complete "2 …"."""
    if is_silent(pod):
        return f"on node {pod['spec'].get('nodeName')}, which does not answer"
    running = [each["name"] for each in _containers(pod) if "running" in (each.get("state") or {})]
    if "server" in running:
        return "loading the model"
    if "pull" in running:
        return "downloading the model"
    if running:
        return "in their init containers"
    return "waiting for images and volumes" if pod["spec"].get("nodeName") else "waiting for a node"


def _is_ready(pod: Manifest) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in _conditions(pod))


def _lost(pod: Manifest) -> bool:
    """Whether its node did away with it: an eviction, or a device that could not be had."""
    status = pod.get("status") or {}
    return status.get("phase") == "Failed" and bool(status.get("reason"))


def _reason(container: Manifest) -> str:
    return str(container.get("state", {}).get("waiting", {}).get("reason", ""))


def _containers(pod: Manifest) -> Iterator[Manifest]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _conditions(pod: Manifest) -> Sequence[Manifest]:
    conditions: Sequence[Manifest] = (pod.get("status") or {}).get("conditions") or ()
    return conditions
